"""AMC 12 of 2022 and 2023: 83 problems with integer answers, reported as avg@32 by several papers.

LUFFY, SRFT, ReLIFT, Prefix-RFT, RL-PLUS and GAC call it "AMC"; the 40 of amc23 are among them. The
declared hash is that of RL-PLUS's copy (github.com/YihongDong/RL-PLUS, data/valid.parquet, "amc"),
each problem once; the hub's rows were not compared with it. Both have floats ("142.0").
"""

from __future__ import annotations

from bridge_jax import tasks
from bridge_jax.data.datasets import Source
from bridge_jax.types import Task

DEFERS_COMPARISONS = True
Config = tasks.Benchmark
SOURCE = Source(
    "benchmarks/amc83.jsonl",
    ("AI-MO/aimo-validation-amc",),
    "train",
    83,
    "bf616dadb693",
    {"answer": lambda row: str(int(float(row["answer"])))},
)


def make(cfg: Config) -> Task:
    """The benchmark as a task without training data."""
    return tasks.benchmark("amc83", SOURCE, cfg)
