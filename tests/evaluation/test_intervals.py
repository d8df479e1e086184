"""Coverage of every interval by simulation, the two-way analysis by hand, and its edges.

The simulations draw answers from a latent model: an answer is right where the sum of a method's
level, the problem's ease, the method's bent for the problem, the run's luck and what is left is
above 0, all of them normal. So the accuracy for runs and problems like these is known. The random
seeds are fixed; 2,000 draws give the coverage with a standard error of half a point.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from bridge_jax.evaluation import intervals
from tests import errors

LOW, HIGH = 0.93, 0.97
SPREADS = {"small": 0.03, "large": 0.3}  # of runs, latent: 1 and 9 points of accuracy
EASE, BENT, REST = 1.0, 0.5, 0.5  # standard deviations, latent
LEVELS = (0.7, 0.6)  # true accuracies of the two methods
DRAWS, CHUNK = 2000, 200


def normal(rng, *shape: int) -> np.ndarray:
    return rng.standard_normal((CHUNK, *shape), dtype=np.float32)


def answers(rng, ease, luck, level: float, spread: float, samples: int = 1) -> np.ndarray:
    """Scores [draws, runs, problems] of a method that is right in a share `level` of all cases."""
    runs, problems = luck.shape[1], ease.shape[2]
    total = math.sqrt(EASE**2 + BENT**2 + REST**2 + spread**2)
    latent = stats.norm.ppf(level) * total + EASE * ease + BENT * normal(rng, 1, problems)
    latent = latent + spread * luck
    right = [latent + REST * normal(rng, runs, problems) > 0 for _ in range(samples)]
    return np.mean(right, axis=0, dtype=np.float64)


def pairs(runs, problems: int, spread: float, samples: int = 1, shared_luck: float = 0.0):
    """Chunks of scores of two methods; shared_luck: share of the runs' variance due to the seed."""
    rng = np.random.default_rng([*runs, problems, int(100 * spread)])
    for _ in range(DRAWS // CHUNK):
        ease, common = normal(rng, 1, problems), normal(rng, max(runs), 1)
        luck = [
            math.sqrt(shared_luck) * common[:, :each]
            + math.sqrt(1 - shared_luck) * normal(rng, each, 1)
            for each in runs
        ]
        yield [answers(rng, ease, *given, spread, samples) for given in zip(luck, LEVELS)]


def covered(bounds: intervals.Bounds, truth: float) -> np.ndarray:
    return (bounds.low <= truth) & (truth <= bounds.high)


def coverage_of_difference(runs, problems, spread, same_seeds, **options) -> list[float]:
    """How often the interval holds the true difference, for each way of taking the seeds."""
    found = [
        [
            covered(intervals.crossed_difference(x, y, same), LEVELS[0] - LEVELS[1])
            for same in same_seeds
        ]
        for x, y in pairs(runs, problems, spread, **options)
    ]
    return [float(each) for each in np.mean(found, axis=(0, 2))]


# ---- two methods


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("problems", [96, 500])
@pytest.mark.parametrize("runs", [2, 4, 8])
def test_difference_covers(runs, problems, spread):
    """93 to 97%, seeds shared and not."""
    found = coverage_of_difference((runs, runs), problems, SPREADS[spread], (True, False))
    assert all(LOW <= each <= HIGH for each in found), found


@pytest.mark.parametrize("runs,samples", [((2, 4), 1), ((4, 8), 1), ((2, 2), 4), ((4, 4), 4)])
def test_difference_covers_with_unequal_numbers_of_runs_and_with_samples(runs, samples):
    """Intervals of a difference cover the truth at their level."""
    for spread in SPREADS.values():
        found = coverage_of_difference(runs, 96, spread, (runs[0] == runs[1],), samples=samples)
        assert LOW <= found[0] <= HIGH, (spread, found)


def test_seeds_that_both_have_are_paired():
    """Where luck goes with the seed, the paired interval covers and is less than half as wide."""
    x, y = next(pairs((4, 4), 500, 0.3, shared_luck=0.95))
    paired, apart = (intervals.crossed_difference(x, y, same) for same in (True, False))
    assert np.median(paired.high - paired.low) < 0.5 * np.median(apart.high - apart.low)
    (found,) = coverage_of_difference((4, 4), 500, 0.3, (True,), shared_luck=0.95)
    assert LOW <= found <= HIGH


@pytest.mark.parametrize("left_out", ["runs", "problems"])
def test_both_components_are_needed(monkeypatch, left_out):
    """Without its runs, or its problems, the interval does not cover: these tests would see it."""
    whole = intervals.mean_squares

    def without_runs(scores_RP):
        squares = whole(scores_RP)
        return squares._replace(runs=squares.rest)

    if left_out == "runs":
        monkeypatch.setattr(intervals, "mean_squares", without_runs)
        (found,) = coverage_of_difference((8, 8), 500, SPREADS["large"], (True,))
    else:
        found = np.mean(
            [
                covered(intervals.bands((x - y).mean(axis=2).T), LEVELS[0] - LEVELS[1])
                for x, y in pairs((8, 8), 96, SPREADS["small"])
            ]
        )
    assert found < LOW - 0.05


def test_two_way_analysis_by_hand():
    """Mean squares term by term, variance of the mean, Satterthwaite's formula, Student's t."""
    rng = np.random.default_rng(0)
    x, y = rng.random((3, 5)), rng.random((3, 5))
    gap, R, P = x - y, 3, 5
    run, problem, mean = gap.mean(axis=1), gap.mean(axis=0), gap.mean()
    A = P * sum((run[r] - mean) ** 2 for r in range(R)) / (R - 1)
    B = R * sum((problem[p] - mean) ** 2 for p in range(P)) / (P - 1)
    cells = itertools.product(range(R), range(P))
    E = sum((gap[r, p] - run[r] - problem[p] + mean) ** 2 for r, p in cells) / ((R - 1) * (P - 1))
    limit = (R - 1) / stats.chi2.ppf(0.25, R - 1)
    df = (limit * A + B) ** 2 / ((limit * A) ** 2 / (R - 1) + B**2 / (P - 1))
    half = stats.t.ppf(0.975, df) * math.sqrt(max(A + B - E, E) / (R * P))
    found = intervals.difference(dict(enumerate(x)), dict(enumerate(y)))
    assert found == pytest.approx((mean, max(-1, mean - half), min(1, mean + half), P))


def test_runs_of_their_own_by_hand():
    """Other seeds on either side: a run component of each, and one of problems."""
    rng = np.random.default_rng(1)
    x, y = rng.random((3, 40)) / 4 + 0.5, rng.random((2, 40)) / 4
    parts, rests = [], []
    for side in (x, y):
        R, P = side.shape
        E = ((side - side.mean(1, keepdims=True) - side.mean(0) + side.mean()) ** 2).sum()
        rests.append(E / ((R - 1) * (P - 1)) / (R * P))
        parts.append((side.mean(axis=1).var(ddof=1) / R, R - 1))
    of_problems = (x.mean(axis=0) - y.mean(axis=0)).var(ddof=1) / 40
    variance = max(of_problems + sum(a for a, _ in parts) - sum(rests), sum(rests))
    # the limit takes the degrees of freedom of both sides for those of this one, twice
    limited = [(a * 2 * df / stats.chi2.ppf(0.25, 2 * df), df) for a, df in parts]
    limited.append((of_problems, 39))
    df = sum(v for v, _ in limited) ** 2 / sum(v**2 / n for v, n in limited)
    mean = x.mean() - y.mean()
    half = stats.t.ppf(0.975, df) * math.sqrt(variance)
    found = intervals.difference({1: x[0], 2: x[1], 3: x[2]}, {7: y[0], 8: y[1]})
    assert found == pytest.approx((mean, mean - half, mean + half, 40))


def test_the_order_of_seeds_does_not_matter():
    """Runs are paired by their seed, not by their place."""
    rng = np.random.default_rng(2)
    x, y = (rng.random((4, 30)) for _ in range(2))
    first, second = dict(zip("abcd", x)), dict(zip("abcd", y))
    turned = dict(reversed(second.items()))
    assert intervals.difference(first, second) == intervals.difference(first, turned)
    other = intervals.difference(first, dict(zip("badc", y)))
    assert other.mean == pytest.approx(intervals.difference(first, second).mean)
    assert other.low != pytest.approx(intervals.difference(first, second).low)


def test_two_shared_seeds_are_not_paired():
    """Which of them goes with which makes no difference; with a third it does."""
    rng = np.random.default_rng(6)
    x, y = (0.1 * rng.random((3, 200)) + 0.2 * rng.random((3, 1)) for _ in range(2))
    for seeds in (2, 3):
        straight = intervals.difference(dict(enumerate(x[:seeds])), dict(enumerate(y[:seeds])))
        crossed = intervals.difference(
            dict(enumerate(x[:seeds])), dict(enumerate(np.roll(y[:seeds], 1, axis=0)))
        )
        assert (straight.low == pytest.approx(crossed.low)) == (seeds == 2)


def test_too_few_runs_or_problems_have_no_interval():
    """Too few runs or problems give a mean without an interval."""
    rng = np.random.default_rng(3)
    x, y = (rng.random((3, 20)) for _ in range(2))
    several = dict(enumerate(x))
    for found in (
        intervals.difference({0: y[0]}, several),
        intervals.difference(several, {0: y[0]}),
        intervals.difference({0: x[0]}, {0: y[0]}),
        intervals.difference({0: [1.0], 1: [0.0]}, {0: [0.0], 1: [0.0]}),
    ):
        assert math.isnan(found.low) and math.isnan(found.high) and not math.isnan(found.mean)
    alone, single = (
        intervals.over_runs_and_problems(x[:1]),
        intervals.over_runs_and_problems(x[:, :1]),
    )
    assert math.isnan(alone.low) and alone.mean == pytest.approx(x[0].mean()) and alone.n == 20
    assert math.isnan(single.low) and single.n == 1
    with errors.raises(ValueError, "20", "19"):
        intervals.difference(several, {0: x[0][:19], 1: x[1][:19]})


def test_problems_without_a_score_are_left_out():
    """A problem that one run lacks is left out of both sides, and n says how many are left."""
    rng = np.random.default_rng(4)
    x, y = (rng.random((3, 20)) for _ in range(2))
    holes = x.copy()
    holes[1, 4] = holes[2, 7] = np.nan
    kept = np.delete(np.arange(20), [4, 7])
    assert intervals.difference(dict(enumerate(holes)), dict(enumerate(y))) == intervals.difference(
        dict(enumerate(x[:, kept])), dict(enumerate(y[:, kept]))
    )
    assert intervals.over_runs_and_problems(holes) == intervals.over_runs_and_problems(x[:, kept])
    assert intervals.difference_of_models(holes[1], y[1]).n == 19
    nothing = intervals.difference(dict(enumerate(x * np.nan)), dict(enumerate(y)))
    assert math.isnan(nothing.mean) and nothing.n == 0


@pytest.mark.parametrize("runs", [2, 4])
def test_equal_scores_prove_little(runs):
    """No score differs: the bound is that of a share of 0 of n (Clopper and Pearson)."""
    same = {seed: np.ones(96) for seed in range(runs)}
    bound = 1 - 0.025 ** (1 / 96)
    assert intervals.difference(same, same) == pytest.approx((0, -bound, bound, 96))
    assert intervals.difference_of_models(np.ones(96), np.ones(96)) == pytest.approx(
        (0, -bound, bound, 96)
    )
    worse = {seed: np.zeros(96) for seed in range(runs)}
    assert intervals.difference(same, worse) == pytest.approx((1, 1 - 2 * bound, 1, 96))
    found = intervals.over_runs_and_problems(list(same.values()))
    assert found.high == 1 and 0.95 < found.low < 0.97
    assert intervals.over_runs_and_problems(list(worse.values())).high == pytest.approx(
        1 - found.low
    )


def test_difference_of_models_covers():
    """Two models, paired over problems, within [-1, 1]."""
    rng, found = np.random.default_rng(5), []
    for _ in range(DRAWS // CHUNK):
        ease, luck = normal(rng, 1, 96), np.zeros((CHUNK, 1, 1))
        x, y = (answers(rng, ease, luck, level, 0.0)[:, 0] for level in LEVELS)
        found += [intervals.difference_of_models(*both) for both in zip(x, y)]
    assert LOW <= np.mean([one.low <= 0.1 <= one.high for one in found]) <= HIGH
    assert intervals.difference_of_models([1, 1, 1, 0], [0, 0, 0, 0]).high == 1


# ---- one method


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("problems", [96, 500])
@pytest.mark.parametrize("runs", [4, 8])
def test_accuracy_over_runs_and_problems_covers(runs, problems, spread):
    """Intervals of an accuracy cover the truth at their level."""
    found = [intervals.crossed_mean(x) for x, _ in pairs((runs, runs), problems, SPREADS[spread])]
    assert LOW <= np.mean([covered(one, LEVELS[0]) for one in found]) <= HIGH
    assert all((one.low >= 0).all() and (one.high <= 1).all() for one in found)


@pytest.mark.parametrize("spread", SPREADS)
def test_accuracy_over_two_runs(spread):
    """One degree of freedom for the runs: 92 to 98% is what it comes to."""
    found = [intervals.crossed_mean(x) for x, _ in pairs((2, 2), 96, SPREADS[spread])]
    assert 0.92 <= np.mean([covered(one, LEVELS[0]) for one in found]) <= 0.98
    assert all((one.low >= 0).all() and (one.high <= 1).all() for one in found)


@pytest.mark.parametrize("runs", [3, intervals.BAND_RUNS, 8])
def test_bands_over_runs_cover_for_these_problems(runs):
    """Accuracies on one set of problems; the truth is the mean over runs for this very set."""
    rng = np.random.default_rng(runs)
    ease_P = rng.standard_normal(96) + 0.8
    found = []
    for spread in SPREADS.values():
        truth = stats.norm.cdf(ease_P / math.sqrt(REST**2 + spread**2)).mean()
        luck = spread * rng.standard_normal((DRAWS, runs, 1))
        right = ease_P + luck + REST * rng.standard_normal((DRAWS, runs, 96)) > 0
        bounds = intervals.bands(right.mean(axis=2).T, shares=True)
        found.append(np.mean(covered(bounds, truth)))
        assert (bounds.low >= 0).all() and (bounds.high <= 1).all()
    assert all(LOW <= each <= HIGH for each in found), found


def test_bands_are_students_and_of_shares_wilsons():
    """Values 1, 2, 3: half width 4.3027 / sqrt(3) (t with 2 degrees of freedom, from a table)."""
    found = intervals.over_runs([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)
    assert found == pytest.approx((2, 2 - half, 2 + half, 3), abs=1e-5)
    alone, none = intervals.over_runs([0.5]), intervals.over_runs([])
    assert alone.mean == 0.5 and math.isnan(alone.low) and math.isnan(none.mean) and none.n == 0
    # 0.6 and 0.8: variance of the mean .01; a bound b solves (b - .7)^2 = t^2 .01 b (1 - b) / .21
    share = intervals.over_runs([0.6, 0.8], shares=True)
    t = stats.t.ppf(0.975, 1)
    for bound in (share.low, share.high):
        assert (bound - 0.7) ** 2 == pytest.approx(t**2 * 0.01 * bound * (1 - bound) / 0.21)
    assert 0 < share.low < 0.7 < share.high < 1
    for equal in (0.0, 0.4, 1.0):
        assert intervals.over_runs([equal] * 3, shares=True)[:3] == pytest.approx((equal,) * 3)
    assert intervals.over_runs([0.5, 1.5], shares=True).high > 1.5  # no shares after all


# ---- one model


@pytest.mark.parametrize("n", [30, 100, 500])
def test_binomial_coverage(n):
    """Exact, over all counts: 95% on average over shares from 2 to 98%, and within [0, 1]."""
    share = np.linspace(0.02, 0.98, 97)
    mean = np.arange(n + 1) / n
    bounds = intervals.of_shares(mean, mean * (1 - mean), n)
    held = (bounds.low[:, None] <= share) & (share <= bounds.high[:, None])
    found = (stats.binom.pmf(np.arange(n + 1)[:, None], n, share) * held).sum(axis=0)
    assert 0.94 <= found.mean() <= 0.965 and found.min() > 0.91
    assert (bounds.low >= 0).all() and (bounds.high <= 1).all() and (bounds.high > bounds.low).all()


def test_of_zeros_and_ones_it_is_wilsons():
    """Its bounds solve (b - mean)^2 = t^2 b (1 - b) / n."""
    of = lambda share: intervals.of_shares(share, share * (1 - share), 30)
    found, t = of(7 / 30), stats.t.ppf(0.975, 29)
    for bound in (found.low, found.high):
        assert (bound - 7 / 30) ** 2 == pytest.approx(t**2 * bound * (1 - bound) / 30)
    assert of(0.0).low == 0 and of(1.0).high == 1


@pytest.mark.parametrize("a,b", [(0.6, 0.4), (0.2, 3), (0.1, 8), (3, 0.3)])
@pytest.mark.parametrize("n", [30, 100])
def test_shares_of_several_samples_cover(n, a, b):
    """avg@4 of problems whose difficulty is Beta(a, b), from easy to hardly ever solved."""
    rng = np.random.default_rng([n, int(10 * a)])
    values = rng.binomial(4, rng.beta(a, b, (DRAWS, n))) / 4
    bounds = intervals.of_shares(values.mean(axis=1), values.var(axis=1), n)
    assert LOW <= np.mean(covered(bounds, a / (a + b))) <= 0.985
    assert (bounds.low >= 0).all() and (bounds.high <= 1).all()
