"""What is compared in grading, by which rule, and what can become of it."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Outcome(enum.StrEnum):
    """Only `correct` is rewarded.

    The others are counted apart, so that a broken grader never looks like a bad model.
    """

    correct = "correct"
    wrong = "wrong"
    no_answer = "no_answer"  # no box, or whatever the task asks for, in the text
    parse_error = "parse_error"  # an answer that cannot be read
    timeout = "timeout"
    grader_error = "grader_error"


class Rule(NamedTuple):
    """How a benchmark compares two answers, where it differs from plain mathematical equality."""

    absolute: float = 0.0  # numbers this far apart are equal
    relative: float = 0.0  # the same as a share of the gold answer
    parts: bool = False  # the gold answer is a list of several answers, in any order
    unit: str = ""  # unit of the gold answer: an answer may state it or leave it out


class DeferredComparison(NamedTuple):
    """An answer that only symbolic algebra can judge: work for the processes of grading.pool."""

    gold: str
    answer: str
    rule: Rule = Rule()
