"""GSM8K (Cobbe et al. 2021): grade-school word problems with integer answers.

7,473 problems to train on; the data's own test set of 1,319 is held out. The hub's solutions end in
"#### n", the JSONL's in the sentence before it. A demonstration ends with the boxed answer instead,
as the prompt asks. Calculator marks <<...>> are removed.
"""

from __future__ import annotations

import dataclasses
import re

from bridge_jax import tasks
from bridge_jax.data import datasets
from bridge_jax.data.datasets import Source
from bridge_jax.types import Task

DEFERS_COMPARISONS = True
MARKS = re.compile(r"<<.*?>>")
FIELDS = {
    "problem": "question",
    "answer": lambda row: row["answer"].rpartition("####")[2].strip().replace(",", ""),
    "solution": lambda row: MARKS.sub("", row["answer"].rpartition("####")[0]).strip(),
}
TRAIN = Source(
    "train/gsm8k_train.jsonl", ("openai/gsm8k", "main"), "train", 7473, "a748a3bf0ea9", FIELDS
)
TEST = Source(
    "train/gsm8k_test.jsonl", ("openai/gsm8k", "main"), "test", 1319, "4452dc589f71", FIELDS
)


@dataclasses.dataclass(frozen=True)
class Config(tasks.Training):
    """Settings; held_out adds benchmarks to the task's own test set."""


def solution(row: dict) -> str:
    """The data's solution with the answer in a box at its end."""
    worked = (row.get("solution") or "").strip()
    return f"{worked}\nThe answer is \\boxed{{{row['answer']}}}." if worked else ""


def make(cfg: Config) -> Task:
    """The first split is the data's own test set."""
    train, test = (
        datasets.read(source, cfg.data_dir, cfg.allow_changed_data) for source in (TRAIN, TEST)
    )
    return tasks.training(
        "gsm8k", train, solution, cfg, {"gsm8k": tuple(tasks.problem_from_row(row) for row in test)}
    )
