"""What both stages of the grader say of a pair, without worker processes: for strings that the
tests wrote themselves.
"""

from __future__ import annotations

from bridge_jax.grading.equivalence import compare, symbolic
from bridge_jax.grading.outcome import DeferredComparison, Outcome, Rule


def outcome(gold: str, answer: str, rule: Rule = Rule()) -> Outcome:
    """The cheap stage and, where it leaves off, algebra in this process."""
    found = compare(gold, answer, rule)
    return symbolic(found) if isinstance(found, DeferredComparison) else found


def both_ways(gold: str, answer: str, rule: Rule = Rule()) -> list[bool]:
    """Whether each is a correct answer where the other is gold."""
    return [
        outcome(one, other, rule) == Outcome.correct
        for one, other in ((gold, answer), (answer, gold))
    ]
