"""What can become of one graded completion."""
from __future__ import annotations

import enum


class Outcome(enum.StrEnum):
    """Only `correct` is rewarded; the others are counted apart, so that a broken grader never looks like a bad model."""
    correct = "correct"
    wrong = "wrong"
    no_answer = "no_answer"        # no box, or whatever the task asks for, in the text
    parse_error = "parse_error"    # an answer that cannot be read
    timeout = "timeout"
    grader_error = "grader_error"
