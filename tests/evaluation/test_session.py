"""What an evaluation warns about when it sums up its rows."""

from __future__ import annotations

import logging

import pytest

from bridge_jax.data.batches import Prompts
from bridge_jax.evaluation import completions, scores, session
from bridge_jax.evaluation.benchmarks import Benchmark
from bridge_jax.evaluation.options import Options


@pytest.mark.parametrize(
    "name, answered, hint",
    [("custom_exam", 0, "--pattern"), ("exam", 0, "--prompt"), ("custom_exam", 1, "")],
)
def test_rows_without_an_answer_are_warned_about(caplog, name, answered, hint):
    """Where more than nine in ten have none, with the flags that say how they are read."""
    problems = tuple(completions.problem_of(f"{i}+1=", str(i + 1)) for i in range(10))
    benchmark = Benchmark(name, completions.free_task("raw"), problems, "", Prompts(problems, ()))
    rows = {
        (problem.id, scores.GREEDY): {
            "id": problem.id,
            "sample": scores.GREEDY,
            "outcome": "wrong" if i < answered else "no_answer",
            "outcome_lenient": "wrong",
            "tokens": 3,
            "stopped": True,
        }
        for i, problem in enumerate(problems)
    }
    with caplog.at_level(logging.WARNING):
        session.summarize(Options(), benchmark, rows)
    assert [hint in record.getMessage() for record in caplog.records] == [True] * bool(hint)
