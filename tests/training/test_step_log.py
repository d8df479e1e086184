"""The line of a step is written after its update; a skipped update keeps its batch."""

from __future__ import annotations

import os

import jax
import numpy as np
import pytest

from bridge_jax.rundir import checkpoint, logbook
from bridge_jax.training import build
from bridge_jax.training.rollouts import StepSampler
from tests import tiny_runs
from tests.tiny_runs import go, quick  # noqa: F401 (fixtures)
from tests.training.faults import poison


@pytest.mark.parametrize("method", [pytest.param("grpo", marks=pytest.mark.slow), "bridge"])
def test_a_poisoned_step_changes_nothing(quick, tmp_path, monkeypatch, caplog, method):
    """NaN rewards at steps 2 and 3: parameters and optimizer states stay, the batches are kept, the
    run goes on.
    """
    poison(monkeypatch, {2, 3})
    given = dict(log__skipped_limit=3, checkpoint__every=1)
    (setup, _), found = build.build(tiny_runs.config(method), jax.devices()[:1]), {}
    for step, skipped in ((1, 0), (3, 2), (4, 0)):
        go(tmp_path, method, stop_at=step, **given)
        with checkpoint.Checkpoints(str(tmp_path), read_only=True) as store:
            restored, meta = store.restore(build.abstract_state(setup))
            found[step] = jax.tree.leaves((restored.params, restored.opt_state))
            assert meta["step"] == step and meta["skipped_in_row"] == skipped
    go(tmp_path, method, **given)
    skipped = [line["update/skipped"] for line in tiny_runs.lines(tmp_path)[1:]]
    assert skipped == [0, 1, 1, 0, 0] and "rl/J" in tiny_runs.lines(tmp_path)[2]["nonfinite"]
    assert sorted(os.listdir(tmp_path / "batches")) == ["step_000002.npz", "step_000003.npz"]
    batch = np.load(tmp_path / "batches" / "step_000002.npz")
    assert np.isnan(batch["rollouts/theta/reward_B"]).all() and batch[
        "rollouts/theta/seqs/tokens_BT"
    ].shape == (8, 15)
    assert [
        record.message
        for record in caplog.records
        if "step 3: gradient or objective not finite" in record.message
    ]
    same = [np.array_equal(a, b) for a, b in zip(found[1], found[3])]
    assert all(same) and not all(np.array_equal(a, b) for a, b in zip(found[3], found[4]))


def test_a_step_is_logged_behind_the_next_samples(quick, tmp_path, monkeypatch):
    """The device never waits for the log: step n is fetched when the samples of n + 1 are under
    way.
    """
    events, start, write = [], StepSampler.start, logbook.Logbook.write

    def started(self, params, rows):
        events.append(f"sample {rows.step + 1}")
        return start(self, params, rows)

    def written(self, step, metrics):
        events.append(f"log {step}")
        return write(self, step, metrics)

    monkeypatch.setattr(StepSampler, "start", started)
    monkeypatch.setattr(logbook.Logbook, "write", written)
    go(tmp_path, "grpo", steps=3, eval__every=0, checkpoint__every=0)
    assert events == ["sample 1", "sample 2", "log 1", "sample 3", "log 2", "log 3"]
