"""What is evaluated and saved after a step, and when a signal or skipped updates delay it."""

from __future__ import annotations

import os
import signal

import pytest

from bridge_jax.evaluation import evaluate
from bridge_jax.rundir import checkpoint
from tests import tiny_runs
from tests.tiny_runs import STEPS, go, quick, unbroken  # noqa: F401 (fixtures)
from tests.training.faults import poison, signal_at


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(STEPS, marks=pytest.mark.slow)],
)
def test_sigterm_saves_within_the_step_and_goes_on(quick, unbroken, tmp_path, monkeypatch, step):
    """At an ordinary step, at one that is due to be evaluated (3), and at the last."""
    with monkeypatch.context() as patch:
        signal_at(patch, step)
        assert go(tmp_path)["stopped"]
        assert checkpoint.Checkpoints(str(tmp_path), read_only=True).steps()[-1] == step
    assert not go(tmp_path)["stopped"]
    tiny_runs.assert_same_run(tmp_path, unbroken("bridge"))


def saved_steps(monkeypatch) -> list[int]:
    """Fills with the steps that are saved from here on."""
    steps, save = [], checkpoint.Checkpoints.save

    def noted(self, step, *given, **named):
        steps.append(step)
        return save(self, step, *given, **named)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", noted)
    return steps


@pytest.mark.parametrize(
    "every, skipped, saved",
    [
        pytest.param(1, {2, 3}, [1, 4, 5], marks=pytest.mark.slow),
        # what was due meanwhile is saved as soon as an update was finite
        pytest.param(2, {2, 3}, [4, 5], marks=pytest.mark.slow),
        pytest.param(3, {3}, [4, 5], marks=pytest.mark.slow),
        # the end is saved: a run that ended is not taken up again from before
        (2, {4, 5}, [2, 5]),
        pytest.param(0, {2}, [5], marks=pytest.mark.slow),
    ],
)
def test_nothing_that_is_due_is_saved_while_updates_are_skipped(
    quick, tmp_path, monkeypatch, caplog, every, skipped, saved
):
    """What falls due meanwhile is saved at the next finite update, or at the end."""
    poison(monkeypatch, skipped)
    steps = saved_steps(monkeypatch)
    given = dict(log__skipped_limit=9, eval__every=0, checkpoint__every=every)
    assert go(tmp_path, "grpo", **given)["step"] == STEPS
    assert steps == saved
    # an end in the middle of it is said, with the last good step
    warning = "the state of step 5 may be ruined, and those up to step 2 are good"
    assert (warning in caplog.text) == (STEPS in skipped)


def test_a_signal_while_updates_are_skipped_saves_beside_the_last_good(
    quick, tmp_path, monkeypatch
):
    """Nothing is lost by it, and what may be ruined takes nothing's place."""
    poison(monkeypatch, {3, 4})
    given = dict(log__skipped_limit=9, eval__every=0, checkpoint__every=1, checkpoint__keep=1)
    with monkeypatch.context() as patch:
        signal_at(patch, 4)
        assert go(tmp_path / "hurt", "grpo", **given)["stopped"]
    assert checkpoint.Checkpoints(str(tmp_path / "hurt"), read_only=True).steps() == [1, 4]
    go(tmp_path / "hurt", "grpo", **given)
    go(tmp_path / "whole", "grpo", **given)
    tiny_runs.assert_same_run(tmp_path / "hurt", tmp_path / "whole", "grpo")


@pytest.mark.parametrize("keep", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_last_good_checkpoint_takes_no_more_room(quick, tmp_path, monkeypatch, keep):
    """While a checkpoint is written there are as many beside it as are kept, and one of them is
    good.
    """
    there, save = [], checkpoint.ocp.CheckpointManager.save

    def noted(self, step, *given, **named):
        there.append(sorted(self.all_steps()))
        return save(self, step, *given, **named)

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", noted)
    go(tmp_path, "sft", eval__every=0, checkpoint__every=1, checkpoint__keep=keep)
    assert there == [list(range(max(1, step - keep), step)) for step in range(1, STEPS + 1)]
    assert checkpoint.Checkpoints(str(tmp_path), read_only=True).steps() == [4, 5]


def test_what_a_checkpoint_counts_on_is_on_disk_before_it(quick, tmp_path, monkeypatch):
    """metrics.jsonl as it is then, whole: a power cut behind the save finds the lines of its
    steps.
    """
    synced, seen = {}, []
    fsync, save = os.fsync, checkpoint.Checkpoints.save

    def noted(handle):
        fsync(handle)
        synced[os.fstat(handle).st_ino] = os.fstat(handle).st_size

    def saved(self, step, *given, **named):
        path = tmp_path / "metrics.jsonl"
        assert synced.get(path.stat().st_ino) == path.stat().st_size
        seen.append([line["step"] for line in tiny_runs.lines(tmp_path)])
        return save(self, step, *given, **named)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(checkpoint.Checkpoints, "save", saved)
    go(tmp_path, "grpo", eval__every=0)
    assert seen == [[1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5]]


def test_sigterm_during_an_evaluation(quick, unbroken, tmp_path, monkeypatch):
    """Ends between two batches of it; the evaluation is made up for when the run goes on, also
    after a second signal.
    """
    evaluate_split, seen = evaluate.evaluate, []

    def second_batch(*given, **named):
        # the one of step 3, and the pending one
        if len(seen) in (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)
        seen.append(1)
        return evaluate_split(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "evaluate", second_batch)
        assert go(tmp_path, "grpo")["stopped"]
        assert [line["step"] for line in tiny_runs.lines(tmp_path)] == [0, 1, 2]
        assert checkpoint.Checkpoints(str(tmp_path), read_only=True).steps()[-1] == 3
        assert go(tmp_path, "grpo") == {"stopped": True}
    assert not go(tmp_path, "grpo")["stopped"]
    tiny_runs.assert_same_run(tmp_path, unbroken("grpo"), "grpo")
