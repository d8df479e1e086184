"""The files of a run directory stay valid and tell one story, whatever was killed; mirrors never stop a run."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax import logbook
from bridge_jax.logbook import Logbook, open_run
from bridge_jax.types import Rollouts, Sequences

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
