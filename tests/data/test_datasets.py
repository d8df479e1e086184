"""Bad rows of data files are named by file and row; changed data are refused."""

from __future__ import annotations

import contextlib
import json
import sys
import types

import pytest

from bridge_jax.data import datasets
from bridge_jax.data.datasets import Source
from bridge_jax.filesystem import hub as hub_client
from tests import errors
from tests.data.problems import write

ROWS = [{"id": str(i), "problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(3)]


SOURCE = Source(
    "benchmarks/some.jsonl",
    ("who/what", "main"),
    "test",
    3,
    datasets.content_hash(ROWS),
    {"problem": "question"},
)


def hub(monkeypatch, rows, error=None, refusal=None):
    """A module `datasets` that has one data set; returns what was asked of it.

    refusal: what the hub answers when it is looked up.
    """
    asked = []
    commit = None if refusal else "c0ffee"
    monkeypatch.setattr(hub_client, "look_up", lambda *asked: (commit, refusal))
    monkeypatch.setattr(
        hub_client,
        "offline",
        lambda is_offline: contextlib.nullcontext(asked.append(("offline", is_offline))),
    )

    class Rows(list):
        column_names = ("question", "answer")

    def load_dataset(*name, split, revision, streaming):
        assert not streaming
        asked.append((name, split, revision))
        if error:
            raise error
        return Rows(rows)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_files_and_hub_give_the_same_rows(tmp_path, monkeypatch):
    """With and without the folder's name; the hub's fields are renamed, its rows numbered."""
    flat, nested = (
        write(tmp_path / "flat", ROWS),
        write(tmp_path / "nested" / "benchmarks", ROWS).parent,
    )
    assert datasets.read(SOURCE, str(flat)) == datasets.read(SOURCE, str(nested)) == ROWS
    asked = hub(
        monkeypatch, [{"question": row["problem"], "answer": row["answer"]} for row in ROWS]
    )
    found = datasets.read(SOURCE)
    assert asked == [("offline", False), (("who/what", "main"), "test", "c0ffee")]
    assert [{key: row[key] for key in ROWS[0]} for row in found] == ROWS


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch):
    """The error names the data set, the cause and the local file that would do."""
    hub(monkeypatch, [], error=ConnectionError("no route"))
    with errors.raises(ValueError, "who/what/main/test", "no route", "data_dir", "some.jsonl"):
        datasets.read(SOURCE)
    # not asked again with retries: only what is on disk is read
    asked = hub(
        monkeypatch, [], error=ValueError("not in the cache"), refusal=ConnectionError("no route")
    )
    with errors.raises(ValueError, "who/what/main/test", "no route", "data_dir", "some.jsonl"):
        datasets.read(SOURCE)
    assert asked == [("offline", True), (("who/what", "main"), "test", None)]


def test_a_data_set_that_the_hub_refuses_is_not_asked_again(monkeypatch):
    """No such name, or a gated one: one look, and the error says what to do."""

    class RepositoryNotFoundError(Exception):
        pass

    class GatedRepoError(RepositoryNotFoundError):
        pass

    for refusal, reported in (
        (RepositoryNotFoundError("404"), "no such name, or it is private.*set data_dir"),
        (
            GatedRepoError("403"),
            "gated: accept its terms at https://.*/datasets/who/what and set H",
        ),
    ):
        asked = hub(monkeypatch, [], refusal=refusal)
        with pytest.raises(ValueError, match=reported):
            datasets.read(SOURCE)
        assert asked == []


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"id": "7", "problem": "What?"},
            ("some.jsonl", "row 3", "'answer'", "id, problem"),
        ),
        ({"id": "7", "answer": "4"}, ("some.jsonl", "row 3", "'problem'")),
        ({"problem": "What?", "answer": "4"}, ("some.jsonl", "row 3", "'id'")),
        ({"id": "7", "problem": "What?", "answer": None}, ("row 3", "'answer'")),
        (
            {"id": "7", "problem": "What?", "answer": "  "},
            ("some.jsonl", "row 3", "'7'", "answer", "'  '"),
        ),
        ({"id": "7", "problem": "", "answer": "4"}, ("row 3", "'7'", "problem", "''")),
        (
            {"id": "7", "problem": "What?", "answer": 4},
            ("row 3", "'7'", "answer", "4"),
        ),
        (
            {"id": "0", "problem": "What?", "answer": "4"},
            ("some.jsonl", "row 3", "'0'", "row 1"),
        ),
        ("{torn", ("some.jsonl", "line 3", "JSON")),
        ('["a"]', ("some.jsonl", "line 3", "object", "list")),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    """A row that lacks a field or holds another type is named by file and number."""
    with errors.raises(ValueError, message):
        datasets.read(SOURCE, str(write(tmp_path, [*ROWS[:2], row])))


def test_changed_data_is_refused_or_reported(tmp_path, caplog):
    """A missing row and an altered answer; white space and order do not matter."""
    spaced = [dict(row, problem=row["problem"].replace(" ", "  \n")) for row in ROWS[::-1]]
    assert len(datasets.read(SOURCE, str(write(tmp_path / "spaced", spaced)))) == 3
    for name, rows in (("short", ROWS[:2]), ("altered", [*ROWS[:2], dict(ROWS[2], answer="5")])):
        folder = str(write(tmp_path / name, rows))
        with errors.raises(ValueError, f"{len(rows)} rows", "3", SOURCE.digest):
            datasets.read(SOURCE, folder)
        assert (
            datasets.read(SOURCE, folder, allow_changed=True) == rows
            and "used anyway" in caplog.text
        )
        caplog.clear()


def test_files_that_are_not_there(tmp_path):
    """A missing file and an empty one are refused with the folders that were searched."""
    with errors.raises(ValueError, "some.jsonl", str(tmp_path), "benchmarks"):
        datasets.read(SOURCE, str(tmp_path))
    with errors.raises(ValueError, "some.jsonl", "rows"):
        datasets.read(SOURCE, str(write(tmp_path, [])))


def test_line_ends_inside_strings_do_not_cut_rows(tmp_path):
    """str.splitlines would cut at U+2028."""
    rows = [dict(ROWS[0], problem="a\u2028b"), ROWS[1]]
    (tmp_path / "some.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8"
    )
    assert datasets.jsonl(tmp_path / "some.jsonl") == rows


def test_files_that_are_no_utf8_and_half_characters_are_named(tmp_path):
    """The error names the file of another encoding, and the row with half a character."""
    path = tmp_path / "some.jsonl"
    path.write_bytes("".join(json.dumps(row) + "\n" for row in ROWS).encode("utf-16"))
    with errors.raises(ValueError, "some.jsonl", "iconv -f UTF-16"):
        datasets.read(SOURCE, str(tmp_path))
    write(tmp_path, [ROWS[0], '{"id": "7", "problem": "a \\ud835?", "answer": "4"}'])
    with errors.raises(ValueError, "some.jsonl", "line 2", "character"):
        datasets.jsonl(path)


def test_a_hub_row_that_lacks_what_is_taken_from_it_is_named(monkeypatch):
    """The error names the data set, the row and the field."""
    fields = {"problem": "question", "answer": lambda row: row["answer"].strip()}
    hub(monkeypatch, [{"question": "a", "answer": "1"}, {"question": "b", "answer": None}])
    with errors.raises(ValueError, "who/what/main/test", "row 2", "'answer'"):
        datasets.read(SOURCE._replace(fields=fields))


def test_a_data_dir_that_does_not_exist(tmp_path):
    """It is the folder that is missing, not a file in it."""
    with pytest.raises(ValueError, match=r"nowhere' is no folder; give the folder that holds some"):
        datasets.read(SOURCE, str(tmp_path / "nowhere"))
