"""A run whose updates are not finite stops, and goes back to its last good checkpoint."""

from __future__ import annotations

import os

import numpy as np
import pytest

from bridge_jax.training import divergence
from tests import errors, tiny_runs
from tests.tiny_runs import STEPS, go, quick  # noqa: F401 (fixtures)
from tests.training.faults import poison


@pytest.mark.parametrize("method", ["grpo", pytest.param("sft", marks=pytest.mark.slow)])
def test_divergence_stops_the_run(quick, tmp_path, monkeypatch, method):
    """Every update not finite: stops after the limit, says where the batches are; no checkpoint
    holds a NaN.
    """
    given = dict(log__skipped_limit=2, checkpoint__every=1)
    if method == "sft":  # a learning rate that throws the weights out of range in one step
        given |= dict(optim__base__learning_rate=1e38)
    else:
        poison(monkeypatch, range(2, 99))
    flags = "--config.optim.base.learning_rate", "--config.log.skipped_limit"
    named = "2 updates", "step 3", str(tmp_path / "batches"), *flags
    with errors.raises(divergence.Diverged, named):
        go(tmp_path, method, **given)
    assert [line["update/skipped"] for line in tiny_runs.lines(tmp_path)[1:]] == [0, 1, 1]
    held = tiny_runs.state(tmp_path, method, **given)
    assert not any(np.isnan(array).any() for array in held.values() if array.dtype.kind == "f")


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_diverged_goes_back_to_the_last_good_checkpoint(
    quick, tmp_path, monkeypatch, keep
):
    """The newest may be ruined, although its update was finite: the message names the one before,
    and the flags.
    """
    given = dict(log__skipped_limit=2, eval__every=0, checkpoint__every=1, checkpoint__keep=keep)
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    go(whole, "grpo", **given | dict(steps=2))
    with monkeypatch.context() as patch:
        poison(patch, range(4, 99))
        with pytest.raises(divergence.Diverged) as error:
            go(hurt, "grpo", **given)
    good = hurt / "checkpoints" / "step_000002"
    flags = "--force_config", "--config.optim.base.learning_rate", "--config.log.skipped_limit"
    errors.assert_names(str(error.value), "step 2", str(good), "diverged_step_000003", *flags)
    assert (hurt / "checkpoints" / "diverged_step_000003").is_dir()
    held, wanted = (tiny_runs.state(workdir, "grpo", **given) for workdir in (hurt, whole))
    assert all(np.array_equal(held[key], wanted[key]) for key in wanted)
    lower = dict(optim__base__learning_rate=1e-3)
    assert go(hurt, "grpo", force=True, **given | lower)["step"] == STEPS
    assert [line["step"] for line in tiny_runs.lines(hurt)] == [1, 2, 3, 4, 5]
    # what led to it is still there to be looked at
    aside = tiny_runs.lines(hurt / "set_aside_1")
    assert [line.get("update/skipped") for line in aside] == [0, 0, 0, 1, 1]


def test_without_a_checkpoint_that_is_known_to_be_good_none_is_renamed(
    quick, tmp_path, monkeypatch
):
    """A diverged run without a good checkpoint says so and leaves its checkpoints in place."""
    poison(monkeypatch, range(2, 99))
    given = dict(log__skipped_limit=2, eval__every=0)
    for every, named in ((1, ("step 1", "--workdir")), (0, ("--workdir",))):
        with errors.raises(divergence.Diverged, named):
            go(tmp_path / str(every), "grpo", checkpoint__every=every, **given)
    assert os.listdir(tmp_path / "1" / "checkpoints") == ["step_000001"]
