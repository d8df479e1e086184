"""OlympiadBench (He et al. 2024), OE_TO_maths_en_COMP: 675 open-ended problems in English.

Fields of the data set the rule of comparison: `is_multiple_answer`, several answers in any order;
`error`, an absolute tolerance; `unit`, which an answer may give or leave out. Tuples are compared
in order, intervals with their brackets. The gold answer is the first entry of `final_answer`
without its outer dollar signs; several answers keep an inner "$,$".
"""

from __future__ import annotations

from bridge_jax import tasks
from bridge_jax.data.datasets import Source
from bridge_jax.grading.outcome import Rule
from bridge_jax.types import Task

DEFERS_COMPARISONS = True
Config = tasks.Benchmark
SOURCE = Source(
    "benchmarks/olympiadbench.jsonl",
    ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP"),
    "train",
    675,
    "38ec789e54de",
    {
        "id": lambda row: str(row["id"]),
        "problem": "question",
        "answer": lambda row: row["final_answer"][0].strip("$"),
    },
)


def rule(row: dict) -> Rule:
    """The rule by which this row's answers are compared."""
    error = row.get("error") or "0"
    try:
        absolute = float(error)
    except ValueError:
        raise ValueError(
            f"olympiadbench, id {row['id']}: error {error!r} is not a number"
        ) from None
    return Rule(
        absolute=absolute, parts=bool(row.get("is_multiple_answer")), unit=row.get("unit") or ""
    )


def make(cfg: Config) -> Task:
    """The benchmark as a task without training data."""
    return tasks.benchmark("olympiadbench", SOURCE, cfg, rule)
