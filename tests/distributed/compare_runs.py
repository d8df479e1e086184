"""Whether two runs came to the same, however many processes each had."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bridge_jax.rundir import checkpoint
from bridge_jax.training import build
from tests import tiny_runs
from tests.distributed import host_runs
from tests.tiny_runs import STEPS

MAXIMISED = (
    "rl/",
    "sft/",
    "bridge/J_hat",
    "bridge/gain",
    "bridge/kl_hat",
)  # metrics: objectives and what they are made of


def state(workdir, method: str) -> dict[str, np.ndarray]:
    """Of the newest checkpoint, whoever wrote it."""
    given = {key: value for key, value in host_runs.CONFIG.items() if not key.startswith("hosts")}
    run, _ = build.build(tiny_runs.config(method, **given), jax.devices()[: host_runs.DEVICES])
    with checkpoint.Checkpoints(str(workdir / "run"), read_only=True) as store:
        restored, _ = store.restore(build.abstract_state(run))
    leaves = jax.tree_util.tree_flatten_with_path(restored)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def samples(workdir, step: int) -> list[tuple]:
    """What was sampled and what became of it."""
    rows = tiny_runs.rows(workdir / "run" / "rollouts" / f"step_{step:06d}.jsonl")
    return [(row["id"], row["sample"], row["ids"], row["outcome"]) for row in rows]


def assert_same(workdir, other, method: str = "grpo") -> None:
    """Samples, outcomes and rewards are equal, what is maximised to 1e-6; the rest but for the
    order in which devices add up.

    Adam divides by the root of the second moment, so that the last bits of a gradient near zero
    decide its step: parameters and moments differ by up to 2e-5 of their array's largest number
    after five steps of 1e-2, and an element near zero by any factor.
    """
    mine, theirs = tiny_runs.lines(workdir / "run"), tiny_runs.lines(other / "run")
    steps = [line["step"] for line in mine]
    assert steps == [line["step"] for line in theirs]
    # a line of step 0 has the evaluation before training, where there is one
    assert steps in (list(range(1, STEPS + 1)), list(range(STEPS + 1)))
    mine, theirs = mine[-STEPS:], theirs[-STEPS:]
    for step, a, b in zip(range(1, STEPS + 1), mine, theirs):
        assert samples(workdir, step) == samples(other, step)
        assert a.keys() == b.keys() and a["reward/mean"] == b["reward/mean"]
        exact = [
            key for key in a if key.startswith(("reward/", "budget/", "eval/")) and a[key] != b[key]
        ]
        assert exact == []
        for key in a:
            bound = dict(abs=1e-6, rel=0) if key.startswith(MAXIMISED) else dict(abs=1e-5, rel=1e-5)
            assert a[key] == pytest.approx(b[key], **bound), (step, key)
    assert mine[0]["grad/norm_theta"] == pytest.approx(theirs[0]["grad/norm_theta"], rel=1e-6)
    one, another = state(workdir, method), state(other, method)
    assert one.keys() == another.keys()
    for key in one:
        largest = np.abs(one[key]).max(initial=0.0)
        np.testing.assert_allclose(one[key], another[key], rtol=0, atol=1e-4 * largest, err_msg=key)


def assert_each_goes_on(chain: host_runs.Chain, but: str = "") -> None:
    """Each attempt from the last checkpoint, whatever ended the one before; but: that did not
    begin.
    """
    ends = [end for name, end in chain.made.items() if name != but]
    for before, after in zip(ends, ends[1:]):
        assert f"steps {before.steps[-1] + 1} to {STEPS}" in after.texts[0]


def assert_undisturbed(chain: host_runs.Chain, one) -> None:
    """State and metrics of all attempts together are those of one whole run."""
    end = chain.made["last"]
    assert end.codes == [0] and end.unfinished == []
    assert_same(chain.workdir, one)
