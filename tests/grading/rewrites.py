r"""The grader's rates on answers that mean the same as real golds, and on answers that do not, kind
by kind.

    python -m tests.grading.rewrites                 # a sample of every kind
    python -m tests.grading.rewrites --each=600      # ten times as much
    python -m tests.grading.rewrites --kind=base     # kinds whose name has "base"

same.py and different.py hold the kinds, golds.py the gold answers. Everything is deterministic.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import random
from collections.abc import Iterable
from typing import NamedTuple

from bridge_jax.grading.equivalence import compare
from bridge_jax.grading.outcome import DeferredComparison, Outcome, Rule
from bridge_jax.grading.pool import Pool
from tests.grading import golds
from tests.grading.different import CHANGED
from tests.grading.golds import Gold
from tests.grading.same import KEPT

BY_HAND = frozenset(golds.BUILT_IN)
LONGEST = 390  # characters; the grader may refuse longer answers


class Pair(NamedTuple):
    """A gold answer, another answer, and whether that means the same."""

    kind: str
    same: bool
    gold: Gold
    answer: str


def pairs(found: Iterable[Gold], kind: str = "") -> list[Pair]:
    """All pairs of every kind whose name has `kind`."""
    different = list({(gold.text, gold.rule, gold.question): gold for gold in found}.values())
    return [
        Pair(name, same, gold, answer)
        for same, kinds in ((True, KEPT), (False, CHANGED))
        for name in kinds
        if kind in name
        for gold in different
        for answer in dict.fromkeys(kinds[name](gold))
        if len(answer) <= LONGEST
    ]


def sample(found: Iterable[Gold], each: int, kind: str = "") -> list[Pair]:
    """At most `each` pairs a kind, the shapes of golds in turn, real golds and those written by
    hand.
    """
    by_kind = collections.defaultdict(list)
    for pair in pairs(thinned(found, each), kind):
        by_kind[pair.same, pair.kind].append(pair)
    drawn = []
    for of_kind in by_kind.values():
        groups = collections.defaultdict(list)
        for pair in of_kind:
            groups[pair.gold.shape, pair.gold in BY_HAND].append(pair)
        drawn += in_turn(groups, of_kind[0].kind)[:each]
    return drawn


def in_turn(groups: dict, seed: str) -> list:
    """The members of each group in a random order, the groups taking turns."""
    draw, shuffled = random.Random(seed), []
    for group in sorted(groups):
        shuffled.append(draw.sample(groups[group], len(groups[group])))
    missing = object()
    turns = itertools.zip_longest(*shuffled, fillvalue=missing)
    return [member for turn in turns for member in turn if member is not missing]


def thinned(found: Iterable[Gold], each: int) -> list[Gold]:
    """At most `each` real golds of a shape, and all that were written by hand."""
    groups = collections.defaultdict(list)
    for gold in found:
        groups[gold.shape].append(gold)
    for shape, group in groups.items():
        by_hand = [gold for gold in group if gold in BY_HAND]
        real = [gold for gold in group if gold not in BY_HAND]
        groups[shape] = by_hand + random.Random(shape).sample(real, min(each, len(real)))
    return [gold for group in groups.values() for gold in group]


def one_of_each(found: Iterable[Gold]) -> list[Pair]:
    """One pair of every kind for every gold that is spelled differently."""
    draw, drawn = random.Random(0), []
    for gold in {(gold.text, gold.rule): gold for gold in found}.values():
        by_kind = collections.defaultdict(list)
        for pair in pairs([gold]):
            by_kind[pair.same, pair.kind].append(pair)
        drawn += [draw.choice(of_kind) for of_kind in by_kind.values()]
    return drawn


def grade(found: list[Pair], pool: Pool) -> list[Outcome]:
    """The grader's outcomes: the cheap stage, and workers under a deadline for what it leaves
    open.
    """
    first = [compare(pair.gold.text, pair.answer, pair.gold.rule) for pair in found]
    deferred = [outcome for outcome in first if isinstance(outcome, DeferredComparison)]
    judged = dict(zip(deferred, pool.grade(deferred))) if deferred else {}
    return [
        judged[outcome] if isinstance(outcome, DeferredComparison) else outcome for outcome in first
    ]


class Rate(NamedTuple):
    """How a kind came out: how many pairs, how many called correct, the pairs that came out
    otherwise.
    """

    pairs: int
    correct: int
    bad: list[tuple[Pair, Outcome]]


def rates(found: list[Pair], outcomes: list[Outcome]) -> dict[tuple[bool, str], Rate]:
    """Rates by (means the same, kind)."""
    by_kind = collections.defaultdict(list)
    for pair, outcome in zip(found, outcomes, strict=True):
        by_kind[pair.same, pair.kind].append((pair, outcome))
    return {
        key: Rate(
            len(graded),
            sum(outcome == Outcome.correct for _, outcome in graded),
            [each for each in graded if (each[1] == Outcome.correct) != key[0]],
        )
        for key, graded in by_kind.items()
    }


def shown(bad: list[tuple[Pair, Outcome]], examples: int) -> list[str]:
    """Lines for the first pairs that came out otherwise (0: all)."""
    return [
        f"    gold {pair.gold.text!r}  answer {pair.answer!r}  {outcome}"
        + (f"  {pair.gold.rule}" if pair.gold.rule != Rule() else "")
        for pair, outcome in bad[: examples or None]
    ]


def table(found: list[Pair], outcomes: list[Outcome], examples: int) -> str:
    """Rates by kind, and examples of what came out otherwise."""
    lines, graded = [], rates(found, outcomes)
    for same in (True, False):
        lines.append("MEANS THE SAME: share correct" if same else "MEANS SOMETHING ELSE: correct")
        for (_, kind), rate in ((key, rate) for key, rate in graded.items() if key[0] == same):
            figure = f"{rate.correct / rate.pairs:7.1%}" if same else f"{rate.correct:7d}"
            lines += [f"{figure} of {rate.pairs:6d}  {kind}", *shown(rate.bad, examples)]
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--each", type=int, default=60, help="pairs a kind")
    parser.add_argument("--kind", default="", help="only kinds whose name has this")
    parser.add_argument("--examples", type=int, default=6, help="pairs shown a kind; 0: all")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    found = sample(golds.ground(), given.each, given.kind)
    with Pool(workers=given.workers, deadline=20.0) as pool:
        print(table(found, grade(found, pool), given.examples))


if __name__ == "__main__":
    main()
