"""MATH (Hendrycks et al. 2021): the training set of competition problems, by level.

The default, levels 3 to 5, is the second training set of the paper. Demonstrations are expert
traces (`traces`), otherwise the data's own solutions where it has them. No problem of MATH500 is in
the training set. Rows of unknown level are left out unless all levels are asked for.
"""

from __future__ import annotations

import dataclasses
import re

from bridge_jax import tasks
from bridge_jax.data import datasets
from bridge_jax.data.datasets import Source
from bridge_jax.types import Task

DEFERS_COMPARISONS = True
LEVELS = (1, 2, 3, 4, 5)


def level_of(row: dict) -> int | None:
    """ "Level 5" -> 5; None for "Level ?"."""
    found = re.search("[1-5]", str(row["level"]))
    return int(found[0]) if found else None


SOURCE = Source(
    "train/math_train.jsonl",
    ("DigitalLearningGmbH/MATH-lighteval",),
    "train",
    7498,
    "5b0348a37927",
    {"level": level_of, "answer": lambda row: tasks.last_boxed(row["solution"]) or ""},
)


@dataclasses.dataclass(frozen=True)
class Config(tasks.Training):
    """Settings."""

    levels: tuple[int, ...] = (3, 4, 5)
    held_out: tuple[str, ...] = ("math500",)


def make(cfg: Config) -> Task:
    """Problems of the chosen levels."""
    if not cfg.levels or set(cfg.levels) - set(LEVELS):
        raise ValueError(f"task.levels={cfg.levels}; allowed: one or more of {LEVELS}")
    rows = datasets.read(SOURCE, cfg.data_dir, cfg.allow_changed_data)
    chosen = [
        row for row in rows if row.get("level") in cfg.levels or len(set(cfg.levels)) == len(LEVELS)
    ]
    return tasks.training("math", chosen, lambda row: row.get("solution") or "", cfg)
