"""The files of a run directory stay valid and tell one story, whatever was killed; mirrors never stop a run."""

from __future__ import annotations

import json
import logging
import math
import os
import pathlib
import subprocess
import sys
import textwrap
import types

import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.filesystem import files
from bridge_jax.rundir import logbook
from bridge_jax.rundir.logbook import Logbook, open_run
from bridge_jax.types import Rollouts, Sequences
from tests.filesystem import full_disk

CONFIG = {"seed": 1, "steps": 10, "optim": {"lr": 0.1, "betas": (0.9, 0.99)}, "log": {"every": 1}}
IGNORE = ("steps", "log.")


def on_disk(workdir):
    with open(f"{workdir}/config.json") as file:
        return json.load(file)


def changed(**groups):
    return CONFIG | {
        key: CONFIG[key] | value if isinstance(value, dict) else value
        for key, value in groups.items()
    }


def begin(workdir) -> None:
    """A line of metrics: from here on the run's config may not change."""
    (workdir / "metrics.jsonl").write_text('{"step": 0}\n')


def test_open_run_takes_a_corrected_config_where_nothing_was_begun(tmp_path):
    open_run(tmp_path, CONFIG, {}, ignore=IGNORE)
    (tmp_path / "metrics.jsonl").touch()
    open_run(tmp_path, changed(optim={"lr": 0.2}), {}, ignore=IGNORE)
    assert on_disk(tmp_path)["config"]["optim"]["lr"] == 0.2


def test_open_run_writes_the_config_and_opens_the_same_run_again(tmp_path):
    workdir = tmp_path / "a" / "b"
    for _ in range(2):
        open_run(workdir, CONFIG, {"seed": (1, 0)}, ignore=IGNORE)
        want = {
            "config": json.loads(json.dumps(CONFIG)),
            "diff": {"seed": [1, 0]},
            "facts": {},
            "changes": [],
        }
        assert on_disk(workdir) == want
    assert os.listdir(workdir) == ["config.json"]  # no temporary file is left


def test_open_run_refuses_another_config_and_shows_it(tmp_path):
    open_run(tmp_path, CONFIG, {}, ignore=IGNORE)
    begin(tmp_path)
    with pytest.raises(ValueError) as error:
        open_run(tmp_path, changed(optim={"lr": 0.2}, steps=20), {}, ignore=IGNORE)
    text = str(error.value)
    assert ["optim.lr", "0.1", "0.2"] in [
        line.split() for line in text.splitlines()
    ] and "in the run" in text
    assert "steps" not in text and "--force_config" in text and "another --workdir" in text
    assert on_disk(tmp_path)["config"]["optim"]["lr"] == 0.1


def test_open_run_lets_harmless_keys_change_and_keeps_what_changed(tmp_path, caplog):
    open_run(tmp_path, CONFIG, {}, ignore=IGNORE)
    begin(tmp_path)
    open_run(tmp_path, changed(steps=20, log={"every": 5, "new": True}), {}, ignore=IGNORE)
    assert on_disk(tmp_path)["config"]["steps"] == 20
    with caplog.at_level(logging.WARNING):
        open_run(
            tmp_path,
            changed(steps=20, log={"every": 5, "new": True}, seed=2),
            {},
            force=True,
            ignore=IGNORE,
        )
    assert "another config" in caplog.text and on_disk(tmp_path)["config"]["seed"] == 2
    assert on_disk(tmp_path)["changes"] == [
        {"steps": [10, 20], "log.every": [1, 5], "log.new": ["(not set)", True]},
        {"seed": [1, 2]},
    ]


def test_an_ignored_key_is_not_a_prefix_of_others(tmp_path):
    open_run(tmp_path, {"steps": 1, "steps_between": 1}, {}, ignore=("steps",))
    begin(tmp_path)
    with pytest.raises(ValueError, match="steps_between"):
        open_run(tmp_path, {"steps": 1, "steps_between": 2}, {}, ignore=("steps",))


def test_open_run_says_why_it_cannot(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match="cannot write to workdir .*Not a directory; take another --workdir"
    ):
        open_run(tmp_path / "file" / "run", CONFIG, {})
    (tmp_path / "config.json").write_text('{"config": ')
    begin(tmp_path)
    with pytest.raises(ValueError, match="config.json is no config of a run"):
        open_run(tmp_path, CONFIG, {})


def test_a_kill_while_a_file_is_replaced_leaves_the_old_one(tmp_path, monkeypatch):
    open_run(tmp_path, CONFIG, {})
    before = on_disk(tmp_path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        os, "fsync", killed
    )  # the moment before the new file takes the old one's place
    with pytest.raises(KeyboardInterrupt):
        open_run(tmp_path, changed(seed=5), {}, force=True)
    assert on_disk(tmp_path) == before and os.listdir(tmp_path) == ["config.json"]


def test_metrics_are_one_valid_object_a_line_with_step_first(tmp_path):
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
    with Logbook(tmp_path, 0) as book:
        for key in ("loss", "reward/", "/mean", "a b/c", "step"):
            with pytest.raises(ValueError, match="wanted group/name"):
                book.write(1, {key: 1.0})
        for value in (np.ones(2), [1.0, 2.0], object()):
            with pytest.raises(ValueError, match="'a/b' must be a scalar"):
                book.write(1, {"a/b": value})
        book.write(1, {"a/b": 1.0})
        with pytest.raises(AssertionError, match="step 1 after"):
            book.write(1, {"a/b": 1.0})
    with pytest.raises(ValueError, match="no metrics.jsonl in .*--workdir of a run"):
        logbook.read(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "tail", ["", '{"step": 5, "a/b": 0.', '{"step": 5}', "\0\0\0", '[1]\n{"step": 5}\n', "\n"]
)
def test_resume_cuts_back_to_the_restored_step_and_drops_a_torn_line(tmp_path, tail):
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
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
    with Logbook(tmp_path, 2) as book:
        book.write(3, {})
    assert [line["step"] for line in logbook.read(tmp_path)] == [1, 2, 3]


def test_nothing_to_cut_leaves_the_file_itself_alone(tmp_path):
    with Logbook(tmp_path, 0) as book:
        book.write(1, {})
    before = os.stat(tmp_path / "metrics.jsonl").st_ino
    Logbook(tmp_path, 1).close()
    assert os.stat(tmp_path / "metrics.jsonl").st_ino == before


def test_rollouts_hold_arrays_as_lists_and_unicode_as_itself(tmp_path):
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
    with Logbook(tmp_path / "none", 0, mirrors=("tensorboard",), writes=False) as book:
        book.write(1, {"a/b": 1.0})
        assert book.write_rollouts(1, [{}]) is book.write_batch(1, {"x": np.ones(1)}) is None
    assert os.listdir(tmp_path) == []


class FakeWriter:
    """Stands for tensorboardX.SummaryWriter."""

    made = []

    def __init__(self, logdir, purge_step):
        self.logdir, self.purge_step, self.points, self.closed = logdir, purge_step, [], False
        self.made.append(self)

    def add_scalar(self, key, value, step):
        self.points.append((key, value, step))

    def close(self):
        self.closed = True


def test_tensorboard_mirrors_numbers_at_explicit_steps(tmp_path, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=FakeWriter)
    )
    with Logbook(tmp_path, 4, mirrors=("tensorboard",)) as book:
        book.write(7, {"a/b": 1.0, "a/name": "text", "a/none": None, "a/nan": math.nan})
    writer = FakeWriter.made.pop()
    assert (writer.purge_step, writer.points, writer.closed) == (5, [("a/b", 1.0, 7)], True)


def fake_wandb(calls: list, fails_at: int = 99):
    def log(values):
        if values["step"] == fails_at:
            raise ConnectionError("no network")
        calls.append(("log", values))

    run = types.SimpleNamespace(
        log=log,
        finish=lambda: calls.append(("finish",)),
        define_metric=lambda *a, **k: calls.append(("define", a, k)),
    )
    return types.SimpleNamespace(init=lambda **k: calls.append(("init", k)) or run)


def test_wandb_gets_the_step_as_a_metric_and_resumes_one_run(tmp_path, monkeypatch):
    open_run(tmp_path, CONFIG, {})
    calls = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(calls))
    for start in (0, 1):
        with Logbook(tmp_path, start, mirrors=("wandb",)) as book:
            book.write(start + 1, {"a/b": 1.0})
    first, second = (call[1] for call in calls if call[0] == "init")
    assert first == second and first["resume"] == "allow" and first["config"]["seed"] == 1
    assert ("define", ("*",), {"step_metric": "step"}) in calls
    assert [call[1] for call in calls if call[0] == "log"] == [
        {"step": 1, "a/b": 1.0},
        {"step": 2, "a/b": 1.0},
    ]
    assert calls[-1] == ("finish",)


def test_a_mirror_that_fails_is_left_out_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    calls = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(calls, fails_at=2))
    with caplog.at_level(logging.WARNING), Logbook(tmp_path, 0, mirrors=("wandb",)) as book:
        for step in (1, 2, 3):
            book.write(step, {"a/b": 1.0})
    assert [call[1]["step"] for call in calls if call[0] == "log"] == [1] and len(
        logbook.read(tmp_path)
    ) == 3
    assert caplog.text.count("mirror 'wandb' failed at step 2") == 1


@pytest.mark.parametrize("name, module", [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_mirror_that_is_not_installed_names_the_pip_command(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)  # makes `import` fail
    with pytest.raises(ValueError, match=f"log.mirrors has '{name}'.*pip install {module}"):
        Logbook(tmp_path, 0, mirrors=(name,))
    with pytest.raises(ValueError, match="unknown mirror .*did you mean"):
        Logbook(tmp_path, 0, mirrors=(name[:-1],))


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 30.0, 31.0])
    monkeypatch.setattr(logbook.time, "monotonic", lambda: next(clock))
    with logbook.progress(10, 6, "train") as show:
        for step in (7, 8, 9, 10):
            show(step, f"reward {step}")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["7/10", "9/10", "10/10"]
    assert lines[0] == "train 7/10  1 s/step, 3 s left  reward 7"
    assert lines[1] == "train 9/10  10 s/step, 10 s left  reward 9"


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with logbook.progress(4, 1, "train") as show:
        show(3, "reward 0.5")
        show(4, "reward 1")
    text = capsys.readouterr().err
    assert "4/4" in text and "train" in text


def test_a_key_that_came_later_is_no_difference(tmp_path):
    """A run that was begun before a key existed goes on while the key is at its default, and not when it is set."""
    open_run(tmp_path, CONFIG, {}, ignore=IGNORE)
    begin(tmp_path)
    newer, defaults = changed(fresh=0.0), {"fresh": 0.0}
    assert logbook.check_run(tmp_path, newer, {}, ignore=IGNORE, defaults=defaults)["changes"] == []
    with pytest.raises(ValueError, match="fresh"):
        logbook.check_run(tmp_path, changed(fresh=0.5), {}, ignore=IGNORE, defaults=defaults)
    with pytest.raises(ValueError, match="fresh"):
        logbook.check_run(tmp_path, newer, {}, ignore=IGNORE)


# ---- a record and the checkpoints behind it


def make_record(workdir, steps: int) -> None:
    """A run's record of so many steps, each evaluated, each with rollouts; the last update was skipped."""
    open_run(workdir, CONFIG, {})
    with Logbook(workdir, -1) as book:
        book.write(0, {})
        for step in range(1, steps + 1):
            book.write(step, {"a/b": float(step)})
            book.write_solved(step, {"held_out": "01"})
            book.write_rollouts(step, [{"text": str(step)}])
            book.write_rollouts(step, [{"text": str(step)}], "eval")
        book.write_batch(steps, {"x": np.ones(2)})


def contents(folder) -> dict[str, bytes]:
    """Every file below the folder by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_whole_record_is_renamed_and_none_of_it_is_lost(tmp_path):
    make_record(tmp_path, 13)
    before = contents(tmp_path)
    place = logbook.set_aside(str(tmp_path), -1)
    assert place == str(tmp_path / "set_aside_1") and contents(tmp_path / "set_aside_1") == before
    assert not logbook.recorded(str(tmp_path)) and (tmp_path / "config.json").exists()
    assert logbook.set_aside(str(tmp_path), -1) is None
    make_record(tmp_path, 2)
    assert logbook.set_aside(str(tmp_path), -1) == str(tmp_path / "set_aside_2")
    assert contents(tmp_path / "set_aside_1") == before


def test_the_later_part_of_a_record_is_set_aside_with_all_lines(tmp_path):
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
    assert logbook.recorded(str(tmp_path)) and not logbook.begun(str(tmp_path))
    assert os.path.exists(os.path.join(logbook.set_aside(str(tmp_path), -1), what))
    assert not logbook.recorded(str(tmp_path))


def test_a_run_without_its_config_is_refused(tmp_path, caplog):
    """Whether what it left is a line or a checkpoint; forced, it goes on and says so."""
    for left in ("metrics.jsonl", "checkpoints/step_000002/state"):
        workdir = tmp_path / left.partition("/")[0]
        (workdir / left).parent.mkdir(parents=True)
        (workdir / left).write_text('{"step": 1}\n')
        with pytest.raises(ValueError, match="no config.json.*--force_config"):
            logbook.check_run(workdir, CONFIG, {})
        assert logbook.check_run(workdir, CONFIG, {}, force=True)["config"]["seed"] == 1
        assert "config.json is missing" in caplog.text
        caplog.clear()


def test_whether_the_steps_that_are_taken_again_come_out_the_same(tmp_path):
    """Not under another config, nor where nobody knows under which they were taken."""
    make_record(tmp_path, 3)
    given = dict(force=True, ignore=IGNORE)
    asked = lambda **keys: logbook.check_run(tmp_path, changed(**keys), {}, **given)
    (free,) = IGNORE[:1]
    other = {
        name: logbook.changed(str(tmp_path), asked(**keys), IGNORE)
        for name, keys in (("none", {}), ("free", {free: 99}), ("seed", {"seed": 9}))
    }
    assert other == {"none": False, "free": False, "seed": True}
    # a change of long ago is none of now
    logbook.write_config(tmp_path, asked(seed=9))
    assert not logbook.changed(str(tmp_path), asked(seed=9), IGNORE)
    (tmp_path / "config.json").unlink()
    assert logbook.changed(str(tmp_path), asked(seed=9), IGNORE)


def test_a_probe_that_a_kill_left_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".writable_0_123").touch()
    assert not logbook.begun(tmp_path)


@pytest.mark.parametrize(
    "steps, told",
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
def test_a_hole_in_the_metrics_is_said_at_resume(tmp_path, caplog, steps, told):
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {n}}}\n' for n in steps))
    with caplog.at_level(logging.WARNING):
        Logbook(tmp_path, 5).close()
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == len(told)
    assert all(wanted in message for wanted, message in zip(told, said))
    # nothing is repaired by guessing
    assert [line["step"] for line in logbook.read(tmp_path)] == steps


def test_a_missing_file_of_metrics_is_said(tmp_path, caplog):
    Logbook(tmp_path, 2).close()
    assert "the line of steps 1 to 2 is missing" in caplog.text
    caplog.clear()
    Logbook(tmp_path, 0).close()
    assert not caplog.records


@pytest.mark.parametrize("broken", ["{", "[1]", '{"a": 2}', '{"step": 1}{"step": 2}', "\0\0"])
def test_a_corrupt_line_in_the_middle_is_said_and_kept_in_a_copy(tmp_path, caplog, broken):
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
    """The lines, and the names of the files: a name that is not on disk is no file after a power cut."""
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
            with pytest.raises(files.NoSpace, match=f"{name} could not be written"):
                write()
        assert {name: text for name, text in contents(disk).items() if text} == before
        filler.unlink()
        book.write(3, {"a/b": 3.0})
        assert [line["step"] for line in logbook.read(disk)] == [1, 3]


CLAIMS = """
    import sys, time
    from bridge_jax.rundir import logbook
    with getattr(logbook, sys.argv[1])(sys.argv[2]):
        print("held", flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("how, told", [("claimed", "trains in"), ("attended", "earlier run is")])
def test_a_directory_that_a_process_still_has_is_refused(tmp_path, how, told):
    """Be it the first of a run's processes, or another one that has outlived it."""
    env = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", textwrap.dedent(CLAIMS), how, str(tmp_path)]
    holder = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=told), logbook.claimed(str(tmp_path)):
            pytest.fail("two runs in one directory")
    finally:
        holder.kill()
        holder.wait()
    with logbook.claimed(str(tmp_path)):
        # the others of this run come in beside each other
        with logbook.attended(str(tmp_path)), logbook.attended(str(tmp_path)):
            pass


def test_a_save_that_was_cut_off_is_no_run(tmp_path):
    """A run of which nothing else stands begins anew; beside a checkpoint its config is missed."""
    (tmp_path / "checkpoints" / "step_000004.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not logbook.begun(str(tmp_path))
    logbook.check_run(str(tmp_path), {"steps": 1}, {})
    (tmp_path / "checkpoints" / "step_000002").mkdir()
    assert logbook.begun(str(tmp_path))
    with pytest.raises(ValueError, match="no config.json"):
        logbook.check_run(str(tmp_path), {"steps": 1}, {})
