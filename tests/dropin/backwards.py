"""A short string of digits, to be written backwards: 314> becomes #413. Generated, compared
exactly.

One string in five is held out, by a hash of it. A task for the tests alone: tests/test_dropin.py
drops it into a copy of the package.
"""

from __future__ import annotations

import dataclasses
import random

from bridge_jax.grading.outcome import Outcome
from bridge_jax.tasks import check_rows, question_id
from bridge_jax.types import Problem, Task

ALPHABET = "0123456789>#"
HELD_OUT = 5  # one string in so many is held out


@dataclasses.dataclass(frozen=True)
class Config:
    """What to generate."""

    digits: int = 4
    train_size: int = 200
    demo_size: int = 50
    eval_size: int = 50
    seed: int = 0


def make(cfg: Config) -> Task:
    """Task with the split "held_out"."""
    if not 2 <= cfg.digits <= 8:
        raise ValueError(f"task.digits={cfg.digits}; allowed: from 2 to 8")
    problems = [problem(f"{number:0{cfg.digits}}>") for number in range(10**cfg.digits)]
    random.Random(cfg.seed).shuffle(problems)
    train = [row for row in problems if row.id % HELD_OUT]
    held_out = sorted(row for row in problems if row.id % HELD_OUT == 0)[: cfg.eval_size]
    return Task(
        name="backwards",
        train=check_rows(train[: cfg.train_size], "backwards train"),
        demos=check_rows(train[: cfg.demo_size], "backwards demos", demos=True),
        splits={"held_out": check_rows(held_out, "backwards held_out")},
        messages=lambda problem: [{"role": "user", "content": problem.question}],
        extract=behind_mark,
        lenient=behind_mark,
        compare=compare,
    )


def problem(question: str) -> Problem:
    """The string as a problem."""
    answer = question[-2::-1]
    return Problem(question_id(question), question, answer, f"#{answer}", level=0)


def behind_mark(text: str) -> str | None:
    """What stands behind the last #."""
    _, mark, answer = text.rpartition("#")
    return answer if mark else None


def compare(problem: Problem, answer: str) -> Outcome:
    """The very same digits."""
    return Outcome.correct if answer == problem.answer else Outcome.wrong
