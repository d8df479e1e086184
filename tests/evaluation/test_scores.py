"""Scores against hand-computed numbers, brute force and simulations."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest

from bridge_jax.evaluation import scores
from bridge_jax.evaluation.scores import Score
from tests.evaluation.graded_rows import rows


def test_binomial_error():
    """By hand: 3 of 10 -> share 5/14; at 0 of n it is not 0."""
    assert scores.binomial_error(3, 10) == pytest.approx(math.sqrt(5 / 14 * 9 / 14 / 14))
    assert scores.binomial_error(0, 100) == pytest.approx(math.sqrt(2 / 104 * 102 / 104 / 104))


def test_error_over_problems():
    """binomial_error, of zeros and ones; else of the number of answers with the same variance.

    The values 1/2, 1/2 have variance 0, and with one more problem, right or wrong, 1/2 * 1/2 / 3,
    which is that of 6 answers.
    """
    assert scores.problems_score([1, 1, 1, 0, 0, 0, 0, 0, 0, 0]).stderr == pytest.approx(
        scores.binomial_error(3, 10)
    )
    assert scores.problems_score([0.5, 0.5]).stderr == pytest.approx(math.sqrt(0.25 / 10))
    many = [i % 5 / 4 for i in range(4000)]
    assert scores.problems_score(many).stderr == pytest.approx(
        statistics.stdev(many) / math.sqrt(4000), rel=1e-3
    )


def test_intervals_of_a_score():
    """Both intervals are around the score and within [0, 1]; one problem has none."""
    score = scores.sampled_score([4, 0, 1, 2, 4, 4], 4, 2)
    for low, high in (score.interval, score.sampling_interval):
        assert 0 <= low < score.value < high <= 1
    assert score.interval[0] < score.sampling_interval[0]  # problems differ more than samples
    assert scores.problems_score([1.0]).interval is None
    never = scores.sampled_score([0] * 50, 4, 1)
    assert never.sampling_error > 0 == never.sampling_interval[0]
    assert never.sampling_interval[1] < never.interval[1] < 0.1


@pytest.mark.parametrize("a,b", [(0.6, 0.4), (0.2, 3), (3, 0.3)])
@pytest.mark.parametrize("n,k", [(4, 1), (8, 1), (8, 2), (8, 4)])
def test_intervals_over_samples_cover(a, b, n, k):
    """40 problems of Beta(a, b) difficulty, sampled repeatedly; the truth is their mean pass@k."""
    rng = np.random.default_rng([int(10 * a), n, k])
    chance, held = rng.beta(a, b, 40), []
    truth = np.mean(1 - (1 - chance) ** k)
    for counts in rng.binomial(n, chance, (1000, 40)):
        low, high = scores.sampled_score(list(map(int, counts)), n, k).sampling_interval
        held.append(low <= truth <= high)
    assert 0.93 <= np.mean(held) <= 0.995


@pytest.mark.parametrize(
    "a,b,problems,k", [(0.6, 0.4, 100, 1), (0.6, 0.4, 100, 8), (0.2, 3, 100, 4), (3, 0.3, 30, 4)]
)
def test_intervals_over_problems_cover(a, b, problems, k):
    """pass@k of 8 samples on new problems each time; the samples of a problem are one cluster."""
    rng, held = np.random.default_rng([problems, k]), []
    truth = np.mean(1 - (1 - rng.beta(a, b, 10**6)) ** k)
    for chance in rng.beta(a, b, (2000, problems)):
        low, high = scores.sampled_score(list(map(int, rng.binomial(8, chance))), 8, k).interval
        held.append(low <= truth <= high)
    assert 0.93 <= np.mean(held) <= 0.97


@pytest.mark.parametrize(
    "n,c,k,expected",
    [
        (4, 1, 2, 0.5),
        (4, 2, 2, 5 / 6),
        (5, 0, 3, 0),
        (5, 3, 3, 1),
        (10, 3, 1, 0.3),
        (4, 4, 4, 1),
        (8, 1, 8, 1),
    ],
)
def test_pass_at_k_by_hand(n, c, k, expected):
    """pass@k equals values worked out by hand."""
    assert scores.pass_at_k(n, c, k) == pytest.approx(expected)


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample():
    """pass@k equals the share of subsets with a correct sample."""
    for n, c, k in [(6, 2, 3), (7, 1, 4), (5, 4, 2)]:
        subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
        assert scores.pass_at_k(n, c, k) == pytest.approx(sum(map(max, subsets)) / len(subsets))


def test_sampling_variance():
    """k = 1: p (1 - p) / (n - 1); any k: the jackknife, spelled out; k = n: None."""
    assert scores.sampling_variance(8, 3, 1) == pytest.approx(3 / 8 * 5 / 8 / 7)
    assert scores.sampling_variance(8, 0, 2) == scores.sampling_variance(8, 8, 2) == 0
    assert scores.sampling_variance(8, 3, 8) is None and scores.sampling_variance(1, 1, 1) is None
    for n, c, k in [(6, 2, 3), (8, 1, 4), (5, 4, 2)]:
        left = [scores.pass_at_k(n - 1, c - (j < c), k) for j in range(n)]
        expected = (n - 1) / n * sum((x - sum(left) / n) ** 2 for x in left)
        assert scores.sampling_variance(n, c, k) == pytest.approx(expected)


def test_sampling_error_is_the_spread_over_new_samples():
    """Simulated: problems of fixed difficulty, sampled again and again."""
    rng, p, n = np.random.default_rng(0), np.asarray([0.1, 0.5, 0.8, 0.9]), 16
    for k, near in ((1, 0.03), (2, 0.08), (4, 0.2)):
        draws = rng.binomial(n, p, (4000, 4))
        found = [scores.sampled_score(list(map(int, counts)), n, k) for counts in draws]
        true = np.std([score.value for score in found])
        estimated = math.sqrt(np.mean([score.sampling_error**2 for score in found]))
        assert estimated == pytest.approx(true, rel=near), k


def test_steps_to():
    """The values of k are 1, the powers of two below n, and n."""
    assert [scores.steps_to(n) for n in (1, 2, 4, 6, 8)] == [
        [1],
        [1, 2],
        [1, 2, 4],
        [1, 2, 4, 6],
        [1, 2, 4, 8],
    ]


def test_scores_by_hand():
    """2 of 4, 1 of 4, and a problem that was not asked; greedy is right on one of the three."""
    table = scores.scores(
        [1, 2, 3], rows(1, "cwcw", "c") + rows(2, "wwwc", "w", lenient="ccccc"), samples=4
    )
    strict, lenient = table["strict"], table["lenient"]
    assert list(strict) == ["greedy pass@1", "avg@4", "pass@1", "pass@2", "pass@4"]
    assert strict["greedy pass@1"][:3] == (1 / 3, pytest.approx(scores.binomial_error(1, 3)), None)
    assert strict["avg@4"] == strict["pass@1"] and strict["avg@4"].value == pytest.approx(
        (0.5 + 0.25) / 3
    )
    assert strict["avg@4"].stderr == scores.problems_score([0.5, 0.25, 0]).stderr
    # 12 samples of variance 12 (1/12 + 1/16) / 9 = .194, more than that of 12 answers, .1875
    assert strict["avg@4"].sampling_error == pytest.approx(scores.binomial_error(3, 12))
    assert strict["pass@2"].value == pytest.approx((5 / 6 + 1 / 2) / 3)
    assert (
        strict["pass@4"].value == pytest.approx(2 / 3) and strict["pass@4"].sampling_error is None
    )
    assert lenient["avg@4"].value == pytest.approx(1.5 / 3) and lenient[
        "greedy pass@1"
    ].value == pytest.approx(2 / 3)
    assert list(scores.scores([1], rows(1, "cw"), samples=2, greedy=False)["strict"]) == [
        "avg@2",
        "pass@1",
        "pass@2",
    ]
    assert list(scores.scores([1], rows(1, "", "c"))["strict"]) == ["greedy pass@1"]


def test_average():
    """Mean of the benchmarks, not of the problems; errors and distances add in quadrature."""
    found = scores.average(
        [Score(0.5, 0.03, 0.01, (0.44, 0.58), (0.4, 0.6)), Score(0.1, 0.04, 0.02, (0.02, 0.25))]
    )
    assert found.interval == pytest.approx((0.3 - 0.1 / 2, 0.3 + 0.17 / 2))
    assert found.sampling_interval is None
    assert found.value == pytest.approx(0.3) and found.stderr == pytest.approx(0.05 / 2)
    assert found.sampling_error == pytest.approx(math.sqrt(0.0005) / 2)
    assert scores.average([Score(0.5, 0.03, None), Score(0.1, 0.04, 0.02)]).sampling_error is None


def test_lengths_and_outcomes():
    """Shares are of all rows, also of problems that were not asked; lengths of generated rows."""
    found = scores.lengths_and_outcomes(rows(1, "cn") + rows(2, "wc"), too_long=1, per_problem=2)
    assert found["rows"] == 4 and found["tokens"] == 10 and found["truncated"] == 0.25
    strict = found["outcomes"]["strict"]
    assert strict["correct"] == pytest.approx(2 / 6) and strict["too_long"] == pytest.approx(2 / 6)
    assert sum(strict.values()) == pytest.approx(1) and strict["timeout"] == 0
