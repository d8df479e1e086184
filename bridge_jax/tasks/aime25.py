"""AIME 2025 I and II: 30 problems whose answers are integers from 0 to 999.

It is not one of the paper's five benchmarks.
"""

from __future__ import annotations

from bridge_jax import tasks
from bridge_jax.data.datasets import Source
from bridge_jax.types import Task

DEFERS_COMPARISONS = True
Config = tasks.Benchmark
SOURCE = Source("benchmarks/aime25.jsonl", ("math-ai/aime25",), "test", 30, "58b6f8f2ab78", {})


def make(cfg: Config) -> Task:
    """The benchmark as a task without training data."""
    return tasks.benchmark("aime25", SOURCE, cfg)
