"""Mirrors get every number at its step, and never stop a run."""

from __future__ import annotations

import logging
import math
import sys
import types

import pytest

from bridge_jax.rundir import logbook, mirrors
from bridge_jax.rundir.logbook import Logbook
from tests import errors
from tests.rundir.run_records import CONFIG, open_run


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
    """TensorBoard gets the finite numbers at their steps, and nothing else."""
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
    """A resumed run logs to the same wandb run, with the step as a metric."""
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
    """A mirror that raises is dropped with one warning, and the run goes on."""
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
    """A mirror that is not installed or not known is an error with the remedy."""
    monkeypatch.setitem(sys.modules, module, None)  # makes `import` fail
    with errors.raises(ValueError, "log.mirrors", f"'{name}'", f"pip install {module}"):
        Logbook(tmp_path, 0, mirrors=(name,))
    with errors.raises(ValueError, repr(name[:-1]), repr(name)):
        Logbook(tmp_path, 0, mirrors=(name[:-1],))


@pytest.mark.slow  # with the packages that .ci/run installs for the second selection
def test_a_real_offline_run_of_wandb(tmp_path, monkeypatch):
    """Without a network and an account W&B keeps the run's files, with every key in its summary."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    open_run(tmp_path, CONFIG, {})
    with Logbook(tmp_path, 0, mirrors=("wandb",)) as book:
        book.write(1, {"time/mfu": 0.25, "lr/base": 1e-4})
        run = wandb.run
        assert run.offline and run.id == (tmp_path / "wandb_id").read_text()
        assert dict(run.summary)["time/mfu"] == 0.25 and dict(run.summary)["lr/base"] == 1e-4
    files = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 1 and files[0].stat().st_size > 0


@pytest.mark.slow
def test_real_event_files_of_tensorboard(tmp_path):
    """The events can be read back: key, step, value."""
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    from tensorboardX.proto import event_pb2

    with Logbook(tmp_path, 0, mirrors=("tensorboard",)) as book:
        book.write(3, {"time/mfu": 0.25})
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, found = path.read_bytes(), []
    while data:
        # a record: its length, 8 bytes; a checksum of 4; the event; a checksum of 4
        length = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    assert found == [("time/mfu", 3, 0.25)]


@pytest.mark.parametrize("name, module", [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_is_reported_before_a_run_begins(monkeypatch, name, module):
    """With the command that installs it; without importing it. Unknown names are not its matter."""
    config = {"log": {"mirrors": (name,)}}
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ValueError, match=rf"'{name}'.* package {module}: pip install -e \"\.\[logs"
    ):
        mirrors.check_installed(config)
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    mirrors.check_installed(config)
    for other in ({}, {"log": {}}, {"log": {"mirrors": ("nothing",)}}):
        mirrors.check_installed(other)
