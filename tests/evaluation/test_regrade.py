"""Rollouts of a run are graded again. The command: tests/experiments/test_grade.py."""

from __future__ import annotations

import pytest

from bridge_jax.evaluation import regrade
from bridge_jax.grading.outcome import Outcome
from bridge_jax.tasks import arithmetic
from tests.tiny_runs import quick, unbroken  # noqa: F401 (fixtures)


@pytest.mark.slow
def test_it_finds_nothing_where_nothing_changed_and_everything_that_did(unbroken, monkeypatch):
    """The run was graded by parity: the same grader changes nothing; one that turns it round
    changes every row.
    """
    run, kept = unbroken("grpo"), {}
    for path in sorted(run.rglob("*")):
        kept[path] = path.read_bytes() if path.is_file() else None
    rows = regrade.regrade(run)
    assert rows and all(row["outcome"] == row["outcome_now"] for row in rows)
    assert "0 outcomes change" in regrade.summary(rows)
    turned = {"correct": "wrong", "wrong": "correct"}
    before, parity = [row["outcome"] for row in rows], arithmetic.compare
    monkeypatch.setattr(
        arithmetic, "compare", lambda problem, answer: Outcome(turned[parity(problem, answer)])
    )
    rows = regrade.regrade(run)
    assert [row["outcome_now"] for row in rows] == [turned[outcome] for outcome in before]
    summary, right = regrade.summary(rows), before.count("correct")
    assert (
        f"{len(rows)} outcomes change; mean reward {right / len(rows):.4f} -> {1 - right / len(rows):.4f}"
        in summary
    )
    assert f"correct -> wrong: {right}" in summary and "step " in summary and "text ends" in summary
    assert kept == {
        path: path.read_bytes() if path.is_file() else None for path in sorted(run.rglob("*"))
    }
