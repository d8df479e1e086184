"""AMC 2023 (12A and 12B): 40 problems with integer answers.

The hub's copy has them as floats ("27.0").
"""

from __future__ import annotations

from bridge_jax import tasks
from bridge_jax.data.datasets import Source
from bridge_jax.types import Task

DEFERS_COMPARISONS = True
Config = tasks.Benchmark
SOURCE = Source(
    "benchmarks/amc23.jsonl",
    ("math-ai/amc23",),
    "test",
    40,
    "3c8fe7344289",
    {"problem": "question", "answer": lambda row: str(int(float(row["answer"])))},
)


def make(cfg: Config) -> Task:
    """The benchmark as a task without training data."""
    return tasks.benchmark("amc23", SOURCE, cfg)
