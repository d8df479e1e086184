"""Records of grading: outcomes, rules of comparison, deferred comparisons."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Outcome(enum.StrEnum):
    """The result of grading a completion.

    Only `correct` is rewarded. The others are counted separately, so that a broken grader never
    looks like a bad model.
    """

    correct = "correct"
    wrong = "wrong"
    no_answer = "no_answer"  # the text has no box, or no other form of answer that the task wants
    parse_error = "parse_error"  # the answer cannot be parsed
    timeout = "timeout"
    grader_error = "grader_error"


class Rule(NamedTuple):
    """The rule of a comparison: its differences from plain mathematical equality."""

    absolute: float = 0.0  # absolute tolerance of numbers
    relative: float = 0.0  # relative tolerance, as a share of the gold answer
    parts: bool = False  # the gold answer is a list of several answers, in any order
    unit: str = ""  # unit of the gold answer, which an answer may give or leave out


class DeferredComparison(NamedTuple):
    """A comparison that the processes of grading.pool make: by symbolic algebra or a function."""

    gold: str
    answer: str
    rule: Rule = Rule()
    function: str = ""  # the name of a function of grading.rewards; "": symbolic algebra
    question: str = ""  # for the function
