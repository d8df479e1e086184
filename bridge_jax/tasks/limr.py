"""LIMR (Li et al. 2025, arXiv 2502.11886): 1,389 MATH problems of levels 3 to 5, chosen for RL.

This is the paper's training set. Demonstrations are expert traces (`traces`; the paper's are by
DeepSeek-R1), otherwise MATH's own solutions where the JSONL has them. Held out by default: the
paper's five benchmarks.
"""

from __future__ import annotations

import dataclasses

from bridge_jax import tasks
from bridge_jax.data import datasets
from bridge_jax.data.datasets import Source
from bridge_jax.types import Task

DEFERS_COMPARISONS = True
PAPER = ("math500", "minerva_math", "olympiadbench", "aime24", "amc23")
SOURCE = Source(
    "train/limr.jsonl", ("GAIR/LIMR",), "train", 1389, "34d418b94878", {"problem": "prompt"}
)


@dataclasses.dataclass(frozen=True)
class Config(tasks.Training):
    """Settings."""

    held_out: tuple[str, ...] = PAPER


def make(cfg: Config) -> Task:
    """All of LIMR."""
    rows = datasets.read(SOURCE, cfg.data_dir, cfg.allow_changed_data)
    return tasks.training("limr", rows, lambda row: row.get("solution") or "", cfg)
