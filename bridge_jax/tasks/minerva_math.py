"""Minerva Math (Lewkowycz et al. 2022): 272 problems of MIT OpenCourseWare.

Answers are numbers, formulas or equations. The gold answer is the last box of the reference
solution. Physical quantities are rounded, so numbers are equal up to a relative 1e-4, the tolerance
of the evaluation that the paper uses (Qwen2.5-Math). Units may be left out.
"""

from __future__ import annotations

from bridge_jax import tasks
from bridge_jax.data.datasets import Source
from bridge_jax.grading.outcome import Rule
from bridge_jax.types import Task

DEFERS_COMPARISONS = True
Config = tasks.Benchmark
SOURCE = Source(
    "benchmarks/minerva_math.jsonl",
    ("math-ai/minervamath",),
    "test",
    272,
    "989570fc2170",
    {"problem": "question"},
)


def make(cfg: Config) -> Task:
    """The benchmark as a task without training data."""
    return tasks.benchmark("minerva_math", SOURCE, cfg, lambda row: Rule(relative=1e-4))
