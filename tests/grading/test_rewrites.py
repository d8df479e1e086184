r"""The grader on real gold answers spelled otherwise, and on answers that mean something else.

At least 95 of 100 of every kind of spelling are called correct, and nothing that means something
else ever is. Without the data beside the project the golds are those written by hand.
"""

from __future__ import annotations

import pytest

from bridge_jax.grading.outcome import Outcome
from bridge_jax.grading.pool import Pool
from tests.grading import golds, rewrites
from tests.grading.different import CHANGED
from tests.grading.same import KEPT

WANTED = 0.95
EACH = 80  # pairs a kind
real_golds = pytest.mark.skipif(
    not golds.DATA.is_dir(), reason="the real data do not stand beside the project"
)


# one fixture grades everything, for minutes where the machine is busy
pytestmark = pytest.mark.timeout(1200)


def graded(found: list[rewrites.Pair]) -> dict:
    """Rates by (means the same, kind). A machine that is busy gets a deadline that it can keep."""
    with Pool(deadline=20.0) as pool:
        return rewrites.rates(found, rewrites.grade(found, pool))


@pytest.fixture(scope="module")
def rates():
    return graded(rewrites.sample(golds.ground(), EACH))


def failures(rates: dict) -> str:
    """What stands against the two promises, with examples."""
    lines = []
    for (same, kind), rate in rates.items():
        if same and rate.correct < WANTED * rate.pairs:
            lines.append(f"{kind}: {rate.correct} of {rate.pairs} correct, wanted {WANTED:.0%}")
            lines += rewrites.shown(rate.bad, 5)
        elif not same and rate.correct:
            lines.append(f"{kind}: {rate.correct} of {rate.pairs} called correct, wanted none")
            lines += rewrites.shown(rate.bad, 5)
    return "\n".join(lines)


@pytest.mark.parametrize("kind", KEPT)
def test_other_spellings_are_correct(kind, rates):
    """Gold answers in other spellings are correct at the required rate."""
    failed = failures({(True, kind): rates[True, kind]})
    assert not failed, failed


@pytest.mark.parametrize("kind", CHANGED)
def test_other_meanings_are_never_correct(kind, rates):
    """Changed gold answers are never correct."""
    failed = failures({(False, kind): rates[False, kind]})
    assert not failed, failed


@pytest.mark.slow
@pytest.mark.timeout(7200)
@real_golds
def test_every_gold_of_the_benchmarks_and_training_sets():
    """The rates hold for every gold answer of benchmarks and training sets."""
    every = [*golds.BUILT_IN, *golds.benchmarks(), *golds.training(each=0)]
    failed = failures(graded(rewrites.one_of_each(every)))
    assert not failed, failed


@pytest.mark.parametrize("outcome, same", [("correct", False), ("wrong", True), ("timeout", True)])
def test_a_grader_that_says_one_thing_fails_every_kind(outcome, same):
    """The measure itself: of a grader that calls everything correct it names every kind of wrong
    answer.
    """
    found = rewrites.sample(golds.BUILT_IN, 5)
    failed = failures(rewrites.rates(found, [Outcome(outcome)] * len(found)))
    named = {line.partition(":")[0] for line in failed.split("\n") if not line.startswith(" ")}
    assert named == set(KEPT if same else CHANGED)


def test_no_answer_means_the_same_and_something_else():
    """The two files of kinds do not contradict each other."""
    ground = rewrites.thinned(golds.ground(), 40)
    same, other = set(), set()
    for pair in rewrites.pairs(ground):
        (same if pair.same else other).add((pair.gold.text, pair.gold.rule, pair.answer))
    assert len(same) > 10_000 and len(other) > 10_000
    assert same & other == set()


def test_golds_written_by_hand_have_every_kind():
    """So that a clone without data tests all that there is."""
    found = {(pair.same, pair.kind) for pair in rewrites.pairs(golds.BUILT_IN)}
    assert found == {(True, kind) for kind in KEPT} | {(False, kind) for kind in CHANGED}


def test_samples_are_the_same_each_time():
    """Two samples of rewrites are equal."""
    one, other = (rewrites.sample(golds.BUILT_IN, 10) for _ in range(2))
    assert one == other and len(one) > 900


@real_golds
def test_real_golds_are_read_and_understood():
    """Nearly every gold has a shape, so that what is said of the grader is said of real answers."""
    found = golds.benchmarks()
    assert len(found) > 1600 and any(gold.rule.parts for gold in found)
    assert sum(gold.shape == "other" for gold in found) < 0.02 * len(found)
    assert len(golds.training()) == 1200


@pytest.mark.parametrize(
    "text, shape",
    [
        (r"11,\! 111,\! 100", "integer"),
        (r"\frac 34", "fraction"),
        (r"137 \frac{1}{2}", "mixed"),
        (r"864 \mbox{ inches}^2", "unit"),
        (r"\left(\frac{3}{5},\frac{8}{3}\right]", "interval"),
        (r"(0,9) \cup (9,36)", "union"),
        (r"\left( 3, \frac{\pi}{2} \right)", "tuple"),
        ("f(n)=n$, $g(n)=1", "named"),
        (r"\frac{\cos (2 t)}{15}", "formula"),
        ("MR=SRMC", "other"),
        ("np.arcsin(10/13)", "other"),
    ],
)
def test_shapes_of_golds(text, shape):
    """Each gold answer has the shape by which it is sampled."""
    assert golds.Gold(text).shape == shape
