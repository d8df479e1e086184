"""Transcripts and manifests on disk: torn lines, full disks, folders of other evaluations."""

from __future__ import annotations

import json

import pytest

from bridge_jax.evaluation import transcripts
from bridge_jax.evaluation.transcripts import Transcripts
from bridge_jax.filesystem import files
from tests import errors
from tests.filesystem import full_disk
from tests.filesystem.full_disk import disk_for


def row(id: int, sample=0, text: str = "é\ud800\n") -> dict:
    return {"id": id, "sample": sample, "text": text}


def test_rows_come_back_and_none_is_written_twice(tmp_path):
    """Rows are read back in order, and a known row is not written again."""
    path = tmp_path / "task.jsonl"
    store = Transcripts(path)
    store.append([row(1), row(1, "greedy"), row(2)])
    store.append([row(2, text="other"), row(3)])
    assert list(Transcripts(path).rows) == [(1, 0), (1, "greedy"), (2, 0), (3, 0)]
    assert Transcripts(path).rows[2, 0] == row(2) and Transcripts(path).rows == store.rows
    assert len(path.read_bytes().splitlines()) == 4


@pytest.mark.parametrize("cut", [0, 1, -2])
def test_a_torn_last_line_is_dropped(tmp_path, cut):
    """Wherever the kill came, up to the last brace."""
    path = tmp_path / "task.jsonl"
    Transcripts(path).append([row(1), row(2)])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[: first + cut] if cut >= 0 else whole[:cut])
    store = Transcripts(path)
    assert list(store.rows) == [(1, 0)] and path.read_bytes() == whole[:first]
    store.append([row(2)])
    assert path.read_bytes() == whole


def test_a_row_that_lacks_its_newline_alone_is_a_row(tmp_path):
    """A whole last row without a newline is kept and completed."""
    path = tmp_path / "task.jsonl"
    Transcripts(path).append([row(1), row(2)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    store = Transcripts(path)
    assert list(store.rows) == [(1, 0), (2, 0)] and path.read_bytes() == whole


def test_a_broken_line_inside_is_named(tmp_path):
    """A broken line before the last is an error that names its number."""
    path = tmp_path / "task.jsonl"
    Transcripts(path).append([row(1), row(2)])
    lines = path.read_text().splitlines()
    for broken in ("{", "[1]", '{"id": 1}', '"text"'):
        path.write_text("\n".join([lines[0], broken, lines[1]]) + "\n")
        with errors.raises(ValueError, "task.jsonl", "line 2"):
            Transcripts(path)


def test_a_full_disk_loses_nothing_that_was_written(tmp_path):
    """A failed append leaves the rows before it and can be repeated."""
    path = tmp_path / "task.jsonl"
    store = Transcripts(path)
    store.append([row(1)])
    before = path.read_bytes()
    with (
        disk_for(len(before) + 30),
        errors.raises(OSError, "task.jsonl", "1 rows", "room"),
    ):
        store.append([row(2), row(3)])
    assert path.read_bytes() == before and list(store.rows) == [(1, 0)]
    store.append([row(2), row(3)])
    assert list(Transcripts(path).rows) == [(1, 0), (2, 0), (3, 0)]


MADE = {
    "model": {"weights": "abc"},
    "generation": {"max_new": 5, "dtype": "float32"},
    "task one": {"data": "x"},
}


def test_a_folder_that_was_made_otherwise_is_refused(tmp_path):
    """A folder made with other settings is refused with the differences."""
    folder = transcripts.open_folder(tmp_path / "deep" / "out", MADE)
    assert transcripts.open_folder(folder, MADE) == folder
    with pytest.raises(
        ValueError,
        match="generation.max_new +6 +5",
    ):
        transcripts.open_folder(folder, MADE | {"generation": {"max_new": 6, "dtype": "float32"}})
    with pytest.raises(ValueError, match="task one.data"):
        transcripts.open_folder(folder, MADE | {"task one": {"data": "y"}})
    assert json.loads((folder / "manifest.json").read_text()) == MADE


def test_groups_can_be_added(tmp_path):
    """A folder accepts new tasks and samples, but no changed ones."""
    other = {key: MADE[key] for key in ("model", "generation")} | {
        "task two": {"data": "z"},
        "sampled": {"samples": 4},
    }
    transcripts.open_folder(tmp_path, MADE)
    transcripts.open_folder(tmp_path, other)
    assert json.loads((tmp_path / "manifest.json").read_text()) == MADE | other
    with pytest.raises(ValueError, match="sampled.samples"):
        transcripts.open_folder(tmp_path, MADE | {"sampled": {"samples": 8}})


def test_folders_that_cannot_be_used(tmp_path):
    """A file, a lost manifest and a broken one are clear errors."""
    (tmp_path / "file").write_text("")
    with errors.raises(ValueError, "--out=", str(tmp_path / "file")):
        transcripts.open_folder(tmp_path / "file", MADE)
    lost = tmp_path / "lost"
    lost.mkdir()
    (lost / "task.jsonl").write_text("")
    with errors.raises(ValueError, str(lost), "task.jsonl", "manifest.json"):
        transcripts.open_folder(lost, MADE)
    (lost / "manifest.json").write_text("{")
    with errors.raises(ValueError, str(lost / "manifest.json")):
        transcripts.open_folder(lost, MADE)


def test_a_second_evaluation_of_a_folder_is_refused(tmp_path):
    """One evaluation at a time has a folder; the lock is gone afterwards."""
    out = tmp_path / "deep" / "out"
    with transcripts.folder_lock(out):
        for _ in range(2):
            with errors.raises(ValueError, f"--out={out}"):
                with transcripts.folder_lock(out):
                    pytest.fail("both write it")
    with transcripts.folder_lock(out):
        (out / ".table.md.ab12_cd3").touch()
    with transcripts.folder_lock(out):
        assert [file.name for file in out.iterdir()] == [transcripts.LOCK]
    assert list(out.iterdir()) == []


def test_a_full_disk_is_no_wrong_folder(tmp_path):
    """A full disk is reported as such when the folder is made."""
    with full_disk.small(tmp_path / "disk", 64) as disk:
        full_disk.fill(disk)
        with errors.raises(files.NoSpace, "manifest.json"):
            transcripts.open_folder(disk / "out", MADE | {"text": {"long": "x" * 9000}})
