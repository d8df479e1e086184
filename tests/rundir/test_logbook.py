"""The record of a run stays valid, and agrees with the restored state, whatever was killed."""

from __future__ import annotations

import json
import logging
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.filesystem import files
from bridge_jax.rundir import layout, logbook
from bridge_jax.rundir.logbook import Logbook
from bridge_jax.types import Rollouts, Sequences
from tests import errors
from tests.filesystem import full_disk
from tests.rundir.run_records import make_record


def test_metrics_are_one_valid_object_a_line_with_step_first(tmp_path):
    """Each line of metrics is strict JSON with the step first and null for nonfinite."""
    with Logbook(tmp_path, 0) as book:
        book.write(
            1,
            {
                "reward/mean": np.float32(0.5),
                "rollout/tokens": np.int64(7),
                "run/phase": "rl",
                "a/b/c": True,
            },
        )
        book.write(
            2,
            {
                "reward/mean": math.nan,
                "grad/norm": jnp.float32(jnp.inf),
                "bridge/gain": jnp.bfloat16(1.5),
                "time/x": None,
                "z/neg": -math.inf,
            },
        )
        assert len(logbook.read(tmp_path)) == 2  # on disk before close
    with open(tmp_path / "metrics.jsonl") as file:
        texts = file.read().splitlines()
    refuse = lambda name: pytest.fail(f"{name} is not JSON")  # noqa: E731
    first, second = (json.loads(text, parse_constant=refuse) for text in texts)
    assert list(first)[0] == list(second)[0] == "step"
    assert first == {
        "step": 1,
        "reward/mean": 0.5,
        "rollout/tokens": 7,
        "run/phase": "rl",
        "a/b/c": True,
    }
    assert second == {
        "step": 2,
        "reward/mean": None,
        "grad/norm": None,
        "bridge/gain": 1.5,
        "time/x": None,
        "z/neg": None,
        "nonfinite": ["reward/mean", "grad/norm", "z/neg"],
    }
    assert logbook.read(tmp_path) == [first, second]


def test_what_is_no_metric_is_refused(tmp_path):
    """A bad key, a value that is no scalar, and a repeated step are errors."""
    with Logbook(tmp_path, 0) as book:
        for key in ("loss", "reward/", "/mean", "a b/c", "step"):
            with errors.raises(ValueError, repr(key), "group/name"):
                book.write(1, {key: 1.0})
        for value in (np.ones(2), [1.0, 2.0], object()):
            with errors.raises(ValueError, "'a/b'", "scalar"):
                book.write(1, {"a/b": value})
        book.write(1, {"a/b": 1.0})
        with errors.raises(AssertionError, "step 1"):
            book.write(1, {"a/b": 1.0})
    with errors.raises(ValueError, "metrics.jsonl", "--workdir"):
        logbook.read(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "tail", ["", '{"step": 5, "a/b": 0.', '{"step": 5}', "\0\0\0", '[1]\n{"step": 5}\n', "\n"]
)
def test_resume_cuts_back_to_the_restored_step_and_drops_a_torn_line(tmp_path, tail):
    """A resumed record ends with the restored step, even after a torn line."""
    with Logbook(tmp_path, 0) as book:
        for step in range(1, 5):
            book.write(step, {"a/b": float(step)})
            book.write_rollouts(step, [{"text": str(step)}])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(tail)
    (
        tmp_path / "rollouts/.step_000002.jsonl.6i9d_hzl"
    ).touch()  # kill -9 within the writing of a file
    with Logbook(tmp_path, 2) as book:
        assert [line["step"] for line in logbook.read(tmp_path)] == [1, 2]
        assert sorted(os.listdir(tmp_path / "rollouts")) == [
            "step_000001.jsonl",
            "step_000002.jsonl",
        ]
        book.write(3, {"a/b": 33.0})
    assert [line["a/b"] for line in logbook.read(tmp_path)] == [1.0, 2.0, 33.0]
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "rollouts"]


def test_resume_at_the_end_keeps_a_whole_line_that_lacks_its_newline(tmp_path):
    """A whole last line without a newline is kept at resume."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
    with Logbook(tmp_path, 2) as book:
        book.write(3, {})
    assert [line["step"] for line in logbook.read(tmp_path)] == [1, 2, 3]


def test_nothing_to_cut_leaves_the_file_itself_alone(tmp_path):
    """A record that ends with the restored step is not rewritten."""
    with Logbook(tmp_path, 0) as book:
        book.write(1, {})
    before = os.stat(tmp_path / "metrics.jsonl").st_ino
    Logbook(tmp_path, 1).close()
    assert os.stat(tmp_path / "metrics.jsonl").st_ino == before


def test_rollouts_hold_arrays_as_lists_and_unicode_as_itself(tmp_path):
    """Dumped rollouts hold arrays as lists, NaN as null and Unicode as itself."""
    with Logbook(tmp_path, 0) as book:
        path = book.write_rollouts(
            12,
            [
                {
                    "prompt": "é",
                    "ids": np.arange(3),
                    "logp": jnp.bfloat16([-0.5, -1.0]),
                    "outcome": "correct",
                    "reward": np.float32(1),
                    "inner": {1: (math.nan, 2)},
                },
                {"prompt": "b"},
            ],
        )
    assert path == os.path.join(tmp_path, "rollouts", "step_000012.jsonl")
    with open(path) as file:
        rows = [json.loads(text) for text in file]
    assert rows == [
        {
            "prompt": "é",
            "ids": [0, 1, 2],
            "logp": [-0.5, -1.0],
            "outcome": "correct",
            "reward": 1.0,
            "inner": {"1": [None, 2]},
        },
        {"prompt": "b"},
    ]


def test_a_batch_is_dumped_by_the_paths_of_its_arrays(tmp_path):
    """A dumped batch names each array by its path in the tree."""
    seqs = Sequences(
        np.ones((1, 2), np.int32),
        np.ones(1, np.int32),
        np.ones((2, 3), np.int32),
        np.ones(2, np.int32),
    )
    rollouts = Rollouts(
        seqs, np.full((2, 3), np.nan, np.float32), jnp.bfloat16([1.5, 2]), np.float32(1)
    )
    with Logbook(tmp_path, 0) as book:
        path = book.write_batch(7, {"rollouts": {"theta": rollouts}, "demos": None})
    assert path == os.path.join(tmp_path, "batches", "step_000007.npz")
    with np.load(path) as arrays:
        assert np.isnan(arrays["rollouts/theta/logp_BT"]).all()
        assert arrays["rollouts/theta/seqs/tokens_BT"].shape == (2, 3)
        assert arrays["rollouts/theta/reward_B"].tolist() == [1.5, 2.0] and len(arrays.files) == 7


def test_a_logbook_that_does_not_write_accepts_everything(tmp_path):
    """A logbook with writes=False accepts all calls and makes no file."""
    with Logbook(tmp_path / "none", 0, mirrors=("tensorboard",), writes=False) as book:
        book.write(1, {"a/b": 1.0})
        assert book.write_rollouts(1, [{}]) is book.write_batch(1, {"x": np.ones(1)}) is None
    assert os.listdir(tmp_path) == []


# ---- a record and the checkpoints behind it


def contents(folder) -> dict[str, bytes]:
    """Every file below the folder by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_whole_record_is_renamed_and_none_of_it_is_lost(tmp_path):
    """A whole record set aside is unchanged in a folder of its own number."""
    make_record(tmp_path, 13)
    before = contents(tmp_path)
    place = logbook.set_aside(str(tmp_path), -1)
    assert place == str(tmp_path / "set_aside_1") and contents(tmp_path / "set_aside_1") == before
    assert not layout.recorded(str(tmp_path)) and (tmp_path / "config.json").exists()
    assert logbook.set_aside(str(tmp_path), -1) is None
    make_record(tmp_path, 2)
    assert logbook.set_aside(str(tmp_path), -1) == str(tmp_path / "set_aside_2")
    assert contents(tmp_path / "set_aside_1") == before


def test_the_later_part_of_a_record_is_set_aside_with_all_lines(tmp_path):
    """What lies after the restored step is copied aside before it is cut."""
    make_record(tmp_path, 5)
    before = contents(tmp_path)
    assert logbook.set_aside(str(tmp_path), 5) is None
    place = tmp_path / "set_aside_1"
    assert logbook.set_aside(str(tmp_path), 3) == str(place)
    aside = contents(place)
    later = [f"rollouts/{kind}_00000{step}.jsonl" for kind in ("step", "eval") for step in (4, 5)]
    assert set(aside) == {
        *("config.json", "metrics.jsonl", "solved.jsonl", "batches/step_000005.npz"),
        *later,
    }
    Logbook(tmp_path, 3).close()
    there = {
        name: text for name, text in contents(tmp_path).items() if not name.startswith("set_aside")
    }
    assert before == there | aside and len(logbook.read(tmp_path)) == 4
    assert logbook.read_solved(tmp_path) == {"held_out": "01"}


@pytest.mark.parametrize("what", ["rollouts", "batches", "solved.jsonl"])
def test_a_record_is_known_by_any_part_of_it(tmp_path, what):
    """As after a kill in the middle of setting it aside."""
    make_record(tmp_path, 2)
    for name in {"metrics.jsonl", "rollouts", "batches", "solved.jsonl"} - {what}:
        os.rename(tmp_path / name, tmp_path / f"gone_{name}")
    assert layout.recorded(str(tmp_path)) and not layout.begun(str(tmp_path))
    assert os.path.exists(os.path.join(logbook.set_aside(str(tmp_path), -1), what))
    assert not layout.recorded(str(tmp_path))


@pytest.mark.parametrize(
    "steps, flaws",
    [
        ([0, 1, 2, 3, 4, 5], []),
        ([1, 2, 3, 4, 5], []),
        ([1, 2, 4, 5], ["the line of step 3 is missing"]),
        ([0, 4], ["the line of steps 1 to 3, 5 is missing"]),
        ([], ["the line of steps 1 to 5 is missing"]),
        ([1, 2, 2, 3, 4, 5], ["step 2: more than one line of each"]),
        ([1, 3, 2, 4, 5], ["the steps are not in their order"]),
        ([1, 2, 3, 3, 5], ["the line of step 4 is missing", "step 3: more than one line"]),
    ],
)
def test_a_hole_in_the_metrics_is_reported_at_resume(tmp_path, caplog, steps, flaws):
    """Missing, repeated and disordered steps are reported and left as they are."""
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {n}}}\n' for n in steps))
    with caplog.at_level(logging.WARNING):
        Logbook(tmp_path, 5).close()
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == len(flaws)
    assert all(flaw in message for flaw, message in zip(flaws, warnings))
    # nothing is repaired by guessing
    assert [line["step"] for line in logbook.read(tmp_path)] == steps


def test_a_missing_file_of_metrics_is_reported(tmp_path, caplog):
    """A resumed run without metrics.jsonl gets a warning, a new run none."""
    Logbook(tmp_path, 2).close()
    assert "the line of steps 1 to 2 is missing" in caplog.text
    caplog.clear()
    Logbook(tmp_path, 0).close()
    assert not caplog.records


@pytest.mark.parametrize("broken", ["{", "[1]", '{"a": 2}', '{"step": 1}{"step": 2}', "\0\0"])
def test_a_corrupt_line_in_the_middle_is_reported_and_kept_in_a_copy(tmp_path, caplog, broken):
    """A corrupt line is cut after a copy of the file was kept."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{broken}\n{{"step": 3}}\n{{"step": 4}}\n')
    before = path.read_text()
    with caplog.at_level(logging.WARNING):
        Logbook(tmp_path, 3).close()
    assert "line 2 is none of a step" in caplog.text and "step 2 is missing" in caplog.text
    assert [line["step"] for line in logbook.read(tmp_path)] == [1, 3]
    assert (tmp_path / "damaged_metrics.jsonl_1").read_text() == before
    caplog.clear()
    Logbook(tmp_path, 3).close()
    assert "step 2 is missing" in caplog.text
    assert sorted(os.listdir(tmp_path)) == ["damaged_metrics.jsonl_1", "metrics.jsonl"]


def test_solved_problems_are_cut_back_and_mended_like_the_metrics(tmp_path):
    """solved.jsonl follows the restored step and survives torn lines."""
    path = tmp_path / "solved.jsonl"
    path.write_text('{"step": 1, "held_out": "01"}\n{"step": 3, "held_out": "11"}\n{"step": 5, "he')
    with Logbook(tmp_path, 3) as book:
        assert logbook.read_solved(tmp_path) == {"held_out": "11"}
        with path.open("a") as file:
            file.write('{"step": 4, "held')
        book.write_solved(5, {"held_out": "10"})
    assert logbook.read_solved(tmp_path) == {"held_out": "10"}
    Logbook(tmp_path, 1).close()
    assert logbook.read_solved(tmp_path) == {"held_out": "01"}


def test_sync_puts_all_that_was_written_on_disk(tmp_path, monkeypatch):
    """The lines, and the files' names: without its name on disk a file is lost in a power cut."""
    with Logbook(tmp_path, 0) as book:
        book.write(1, {"a/b": 1.0})
        book.write_rollouts(1, [{"text": "a"}])
        synced, real = [], os.fsync
        monkeypatch.setattr(
            os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino) or real(handle)
        )
        book.sync()
    wanted = [tmp_path / "metrics.jsonl", tmp_path, tmp_path / "rollouts"]
    assert [path.stat().st_ino for path in wanted] == synced
    with Logbook(tmp_path / "none", 0, writes=False) as book:
        book.sync()


def test_a_full_disk_names_the_file_and_loses_no_line(tmp_path):
    """A write to a full disk names its file and leaves earlier lines whole."""
    with full_disk.small(tmp_path / "disk", 64) as disk, Logbook(disk, 0) as book:
        book.write(1, {"a/b": 1.0})
        filler = full_disk.fill(disk)
        before = contents(disk)
        for name, write in (
            ("metrics.jsonl", lambda: book.write(2, {"a/text": "x" * 9000})),
            ("step_000002.jsonl", lambda: book.write_rollouts(2, [{"text": "x" * 9000}])),
            ("step_000002.npz", lambda: book.write_batch(2, {"x": np.ones(9000)})),
            ("solved.jsonl", lambda: book.write_solved(2, {"held_out": "1" * 9000})),
        ):
            with errors.raises(files.NoSpace, name):
                write()
        assert {name: text for name, text in contents(disk).items() if text} == before
        filler.unlink()
        book.write(3, {"a/b": 3.0})
        assert [line["step"] for line in logbook.read(disk)] == [1, 3]
