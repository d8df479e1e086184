"""MATH500 (Lightman et al. 2023): 500 problems of the MATH test set (Hendrycks et al. 2021).

Answers are compared mathematically; units and degree signs may be left out.
"""

from __future__ import annotations

from bridge_jax import tasks
from bridge_jax.data.datasets import Source
from bridge_jax.types import Task

DEFERS_COMPARISONS = True
Config = tasks.Benchmark
SOURCE = Source(
    "benchmarks/math500.jsonl",
    ("HuggingFaceH4/MATH-500",),
    "test",
    500,
    "db657b4eb43f",
    {"id": "unique_id"},
)


def make(cfg: Config) -> Task:
    """The benchmark as a task without training data."""
    return tasks.benchmark("math500", SOURCE, cfg)
