"""AIME 2024 I and II: 30 problems whose answers are integers from 0 to 999.

Leading zeros are ignored. The paper reports pass@1 and avg@8; with n = 30 a score of 10% has a
standard error of 5.5 points.
"""

from __future__ import annotations

from bridge_jax import tasks
from bridge_jax.data.datasets import Source
from bridge_jax.types import Task

DEFERS_COMPARISONS = True
Config = tasks.Benchmark
SOURCE = Source(
    "benchmarks/aime24.jsonl", ("HuggingFaceH4/aime_2024",), "train", 30, "cc6616bfe26e", {}
)


def make(cfg: Config) -> Task:
    """The benchmark as a task without training data."""
    return tasks.benchmark("aime24", SOURCE, cfg)
