"""Groups, intervals, curves and the paired bootstrap, against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from bridge_jax import comparison
from bridge_jax.comparison import Run


def a_run(seed=0, method="grpo", lines=None, steps=2, solved=None, **task) -> Run:
    config = {
        "seed": seed,
        "steps": steps,
        "method": {"name": method, "lam": 0.5},
        "task": {"name": "arithmetic", **task},
    }
    return Run(
        f"{method}_{seed}",
        config,
        lines or [{"step": 0, "m/x": 0.0}, {"step": 2, "m/x": 1.0 + seed}],
        solved or {},
    )


def test_interval_is_students():
    """Values 1, 2, 3: mean 2, half width 4.3027 / sqrt(3) (t with 2 degrees of freedom, from a table)."""
    found = comparison.interval([1.0, 2.0, 3.0])
    assert (
        found.mean == 2
        and found.n == 3
        and found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)
    )
    assert math.isnan(comparison.interval([1.0]).low) and comparison.interval([1.0]).mean == 1


def test_groups_differ_in_more_than_the_seed():
    half = a_run(method="bridge")
    other = a_run(method="bridge")
    other.config["method"]["lam"] = 0.3
    groups = comparison.grouped([a_run(0), a_run(1), half, other])
    assert {name: len(group) for name, group in groups.items()} == {
        "grpo": 2,
        "bridge (lam=0.5)": 1,
        "bridge (lam=0.3)": 1,
    }


def test_groups_of_equal_numbers_and_of_other_problems():
    """1 and 1.0 are one setting; another number of held-out problems is not, however alike the rest."""
    runs = [a_run(seed, method="bridge") for seed in range(4)]
    runs[0].config["method"]["lam"], runs[1].config["method"]["lam"] = 1, 1.0
    runs[2].config["eval"], runs[3].config["eval"] = (
        {"every": 9, "limit": 4},
        {"every": 5, "limit": 8},
    )
    assert sorted(map(len, comparison.grouped(runs).values())) == [1, 1, 2]


def test_curve_and_budget():
    """Seeds 0 and 1 end at 1 and 2: halfway in between their mean is .75; beyond a run's last point there is nothing."""
    group = [a_run(0), a_run(1)]
    made = comparison.curve(group, "m/x", "step")
    assert made.seeds == 2 and made.mean[0] == 0 and made.mean[-1] == 1.5
    assert comparison.at_budget(group[1], "m/x", "step", 1.0) == 1.0 and math.isnan(
        comparison.at_budget(group[1], "m/x", "step", 3.0)
    )
    assert (
        comparison.curve([a_run(0), a_run(1, lines=[{"step": 0}, {"step": 2}])], "m/x", "step")
        is None
    )


def test_notes_tell_what_cannot_be_compared():
    groups = {
        "a": [a_run(0, levels=[1]), a_run(0, levels=[1])],
        "b": [a_run(0, levels=[2], lines=[{"step": 1}])],
    }
    told = "\n".join(comparison.notes(groups, "m/x"))
    assert "2 different tasks" in told and "not distinct" in told and "one seed" in told
    assert "at step 1 of 2, not finished" in told and "no m/x; b has no mean" in told
    assert comparison.notes({"a": [a_run(0), a_run(1)]}, "m/x") == []
    nameless = a_run(7)
    del nameless.config["seed"]
    assert "grpo_7: its config names no seed" in comparison.notes(
        {"a": [nameless, a_run(0), a_run(0)]}, "m/x"
    )


def test_runs_are_judged_by_their_problems():
    """The same settings, other rows behind the split of the metric: not to be compared; other training rows do not matter."""
    rows = lambda held_out, train="t": {"rows": {"held_out": held_out, "train": train}}
    runs = lambda facts: [a_run(seed)._replace(facts=one) for seed, one in enumerate(facts)]
    told = lambda *facts: "\n".join(comparison.notes({"a": runs(facts)}, "eval/held_out_accuracy"))
    assert "2 different tasks" in told(rows("x"), rows("y")) and "different tasks" not in told(
        rows("x"), rows("x", "u")
    )


def test_paired_bootstrap():
    """Pairing shows: one side solves what the other does and 10 of 100 more. Unpaired noise alone would hide that."""
    rng = np.random.default_rng(0)
    base = (rng.random((1, 100)) < 0.5).astype(int)
    better = base.copy()
    better[0, np.flatnonzero(base[0] == 0)[:10]] = 1
    found = comparison.paired_bootstrap(better, base)
    assert (
        found.mean == pytest.approx(0.1)
        and 0.03 < found.low < 0.07
        and 0.13 < found.high < 0.17
        and found.n == 100
    )
    same = comparison.paired_bootstrap(base, base)
    assert same.low == same.high == 0
    with pytest.raises(ValueError, match="100 problems on one side, 90"):
        comparison.paired_bootstrap(base, base[:, :90])


def test_paired_bootstrap_is_that_of_the_definition():
    """Draw by draw: the problems, then the seeds of either side; the percentiles of the differences of their means."""
    data = np.random.default_rng(1)
    first, second = data.random((3, 17)), data.random((2, 17))
    rng, found = np.random.default_rng(5), []
    for _ in range(40):
        problems = rng.integers(17, size=17)
        of = lambda solved: solved[rng.integers(len(solved), size=len(solved))][:, problems].mean()
        found.append(of(first) - of(second))
    made = comparison.paired_bootstrap(first, second, draws=40, seed=5)
    np.testing.assert_allclose(
        (made.mean, made.low, made.high),
        (first.mean() - second.mean(), *np.percentile(found, [2.5, 97.5])),
        rtol=1e-12,
    )


def test_covers_the_truth():
    """95% intervals of the bootstrap hold the true difference (0) in about 95 of 100 draws of problems."""
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        first, second = ((rng.random((1, 200)) < 0.5).astype(int) for _ in range(2))
        found = comparison.paired_bootstrap(first, second, draws=300, seed=seed)
        held += found.low <= 0 <= found.high
    assert held >= 88


def test_load(tmp_path):
    """Only whole run directories; the last solved line counts."""
    with pytest.raises(ValueError, match="no run directory"):
        comparison.find(str(tmp_path / "*"))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(ValueError, match="config.json cannot be read"):
        comparison.load(str(tmp_path / "one"))
    (tmp_path / "one" / "config.json").write_text(json.dumps({"config": {"steps": 3}}))
    (tmp_path / "one" / "solved.jsonl").write_text(
        '{"step": 0, "a": "00"}\n{"step": 3, "a": "01"}\n'
    )
    with pytest.raises(ValueError, match="typo: no run directory"):
        comparison.find(f"{tmp_path}/o*,{tmp_path}/typo")
    run = comparison.load(comparison.find(str(tmp_path / "o*"))[0])
    assert run.solved["a"].tolist() == [0, 1]
