r"""95% intervals: of a share, of a method's mean over its runs, of the difference of two methods.

A score lies in [0, 1]: the share of a run's answers to a problem that are right, 0 or 1 for one
greedy answer. The runs of a method differ in their seed and are a sample of all seeds; the problems
are a sample of all problems of their kind; every run answers every problem. So runs and problems
are random factors, and they are crossed:

    score_rp = mean + run_r + problem_p + rest_rp,    r = 1 .. R runs, p = 1 .. P problems

Mean squares of this two-way layout with random effects, and what each estimates (Scheffe 1959, The
Analysis of Variance, chapter 7; Searle, Casella, McCulloch 1992, Variance Components, chapter 4):

    A = P sum_r (mean_r - mean)^2 / (R - 1)                             P Var(run) + Var(rest)
    B = R sum_p (mean_p - mean)^2 / (P - 1)                             R Var(problem) + Var(rest)
    E = sum_rp (score_rp - mean_r - mean_p + mean)^2 / (R-1) (P-1)      Var(rest)

    Var(mean) = Var(run) / R + Var(problem) / P + Var(rest) / (R P)

is estimated by (A + B - E) / (R P), and never by less than E / (R P). A sum of mean squares v with
df degrees of freedom each, here of A and B, is taken as a multiple of a chi-square that has its
variance, one with (sum v)^2 / sum(v^2 / df) degrees of freedom (Satterthwaite 1946, Biometrics
Bulletin 2, 110-114; Welch 1947, Biometrika 34, 28-35), and the quantile is Student's t.

That formula takes mean squares in place of their expectations. With few runs A is mostly far below
its expectation; then the formula gives too many degrees of freedom, and intervals cover 85 to 93%.
So A is multiplied by nu / chi2_nu(1/4), in this formula alone and not in the variance: this is the
upper limit of a one-sided 75% interval for its expectation. nu is R - 1, twice that where two
methods have a run component each. The 1/4 was chosen by simulation.

The interval of a share is Wilson's (1927), which stays within [0, 1], for the number of answers of
0 or 1 that would have this variance (Korn and Graubard 1998, Survey Methodology 24, 193-201).

tests/evaluation/test_intervals.py tests the coverage. Where only about three problems decide, as
for 96 problems and accuracies of 97% or more, intervals over eight runs cover about 90%. Two runs
with a small spread, and a method with a small effect on single problems, give intervals that are
too wide: they cover 97 to 99%. Left out: correction for many comparisons; problems that come in
groups.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

# on either side
TAIL = 0.025
# of the chi-square, in the degrees of freedom
RUN_LIMIT = 0.25
# shared seeds from which on runs are paired
PAIRED_RUNS = 3
# runs from which on curves have a band, those of fewer are drawn one by one: two accuracies are
# equal too often by chance, and Student's t makes a band of three 2.5 times as wide as their spread
BAND_RUNS = 4


class Interval(NamedTuple):
    """A mean over n, and its 95% interval; nan where there is none."""

    mean: float
    low: float
    high: float
    n: int


class MeanSquares(NamedTuple):
    """Of scores [..., R, P]: A of runs, B of problems, E of the rest, all divided by R P."""

    runs: np.ndarray
    problems: np.ndarray
    rest: np.ndarray


class Bounds(NamedTuple):
    """Means and the bounds of their 95% intervals, arrays of one shape."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


# ---- one model


def of_shares(mean: ArrayLike, variance: ArrayLike, units: ArrayLike) -> Bounds:
    """Mean of units in [0, 1] with this variance; Wilson's interval where each is 0 or 1."""
    mean, units = np.asarray(mean, float), np.asarray(units, float)
    return _within_0_1(mean, effective_units(mean, variance, units), units - 1)


def effective_units(mean: ArrayLike, variance: ArrayLike, units: ArrayLike) -> np.ndarray:
    """How many 0/1 answers determine the mean as precisely as these units; at least as many."""
    mean, units = np.asarray(mean, float), np.asarray(units, float)
    return units * np.maximum(1.0, mean * (1 - mean) / with_one_more(mean, variance, units))


def with_one_more(mean: ArrayLike, variance: ArrayLike, units: ArrayLike) -> np.ndarray:
    """Variance with one more unit, of 0 or 1; never 0, since a few equal scores prove little."""
    share = (units * mean + 1) / (units + 2)
    return (units * variance + share * (1 - share)) / (units + 1)


def difference_of_models(first: ArrayLike, second: ArrayLike) -> Interval:
    """Mean score of the first model less the second's, paired over the problems that both have."""
    first_P, second_P = np.asarray(first, float), np.asarray(second, float)
    _check_problems(len(first_P), len(second_P))
    gap_P = (first_P - second_P)[~np.isnan(first_P - second_P)]
    n = len(gap_P)
    if n < 2:
        return _without_interval(gap_P, n)
    return _interval(_of_difference(gap_P.mean(), gap_P.var(ddof=1) / n, n - 1, n), n)


# ---- runs


def over_runs(values: ArrayLike, shares: bool = False) -> Interval:
    """Mean of independent values, one a run, by Student's t.

    Where the values are accuracies, the interval is for the very problems they were measured on.
    """
    values_R = np.asarray(values, float)
    return _interval(bands(values_R, shares), len(values_R))


def bands(values_RX: np.ndarray, shares: bool = False) -> Bounds:
    """Mean over runs at each point, by Student's t; that of shares stays within [0, 1]."""
    runs = len(values_RX)
    if runs < 2:
        mean_X = values_RX.sum(axis=0) / runs if runs else np.full(values_RX.shape[1:], np.nan)
        return Bounds(mean_X, mean_X * np.nan, mean_X * np.nan)
    mean_X, variance_X = values_RX.mean(axis=0), values_RX.var(axis=0, ddof=1) / runs
    if shares and values_RX.min() >= 0 and values_RX.max() <= 1:
        inside_X = (variance_X > 0) & (mean_X > 0) & (mean_X < 1)
        answers_X = mean_X * (1 - mean_X) / np.where(inside_X, variance_X, 1.0)
        return _within_0_1(mean_X, np.where(inside_X, answers_X, np.inf), runs - 1)
    half_X = special.stdtrit(runs - 1, 1 - TAIL) * np.sqrt(variance_X)
    return Bounds(mean_X, mean_X - half_X, mean_X + half_X)


def over_runs_and_problems(scores: ArrayLike) -> Interval:
    """Mean of a method's scores [runs, problems], for runs and problems like these.

    nan for one run or one problem. A problem that a run has no score of (nan) is left out. n:
    problems.
    """
    scores_RP = _complete(np.asarray(scores, float))
    if min(scores_RP.shape) < 2:
        return _without_interval(scores_RP, scores_RP.shape[1])
    return _interval(crossed_mean(scores_RP), scores_RP.shape[1])


def crossed_mean(scores_RP: np.ndarray) -> Bounds:
    """The two-way analysis of a method's scores [..., R, P], within [0, 1]."""
    runs, problems = scores_RP.shape[-2:]
    mean, squares = scores_RP.mean(axis=(-2, -1)), mean_squares(scores_RP)
    of_problems = with_one_more(mean, problems * squares.problems, problems) / problems
    variance = np.maximum(of_problems + squares.runs - squares.rest, squares.rest)
    df = degrees_of_freedom([(squares.runs, runs - 1)], of_problems, problems - 1)
    mixed = (mean > 0) & (mean < 1)
    return _within_0_1(mean, np.where(mixed, mean * (1 - mean) / variance, problems), df)


def difference(
    first: Mapping[Hashable, ArrayLike], second: Mapping[Hashable, ArrayLike]
) -> Interval:
    """Mean score of the first method less the second's, for runs and problems like these.

    first, second: seed -> scores [problems]. The problems are the same for both, and paired. Runs
    are paired where both sides have the same seeds, three or more: then the two-way analysis is of
    the differences. Otherwise each side's run component is estimated by itself,

        Var = Var_p(first's mean_p - second's mean_p) / P + sum over both sides of (A - E) / (R P),

    which takes what a run of one side owes to its seed as independent of the other side's. Two
    seeds are treated so even where they are shared: paired, their run component would have one
    degree of freedom, with which the plain formula covers 87 to 95% and a guarded one is up to
    twice as wide as this. Where a seed helps or hurts both sides alike, this errs on the wide side.

    nan for fewer than two runs on a side, or two problems. A problem that a run has no score of
    (nan) is left out. n: problems. Where no score differs at all, the interval reaches as far as a
    share may that was 0 of n times.
    """
    x_RP, y_RP = (
        np.stack([np.asarray(side[seed], float) for seed in sorted(side, key=str)])
        for side in (first, second)
    )
    _check_problems(x_RP.shape[1], y_RP.shape[1])
    both_RP = _complete(np.concatenate([x_RP, y_RP]))
    x_RP, y_RP, problems = both_RP[: len(x_RP)], both_RP[len(x_RP) :], both_RP.shape[1]
    if min(len(x_RP), len(y_RP), problems) < 2:
        gap_P = x_RP.mean(axis=0) - y_RP.mean(axis=0)
        return _without_interval(gap_P, problems)
    return _interval(crossed_difference(x_RP, y_RP, first.keys() == second.keys()), problems)


def crossed_difference(x_RP: np.ndarray, y_RP: np.ndarray, same_seeds: bool) -> Bounds:
    """The two-way analysis of `difference`, of scores [..., R, P].

    same_seeds: row r of one side is of the same seed as row r of the other.
    """
    problems = x_RP.shape[-1]
    gap_P = x_RP.mean(axis=-2) - y_RP.mean(axis=-2)
    paired = same_seeds and x_RP.shape[-2] >= PAIRED_RUNS
    sides = [x_RP - y_RP] if paired else [x_RP, y_RP]
    squares = [mean_squares(side_RP) for side_RP in sides]
    # the variance is at least what the rest alone would make it
    rest = mean_squares(x_RP - y_RP).rest if same_seeds else sum(each.rest for each in squares)
    of_problems = gap_P.var(axis=-1, ddof=1) / problems
    variance = np.maximum(of_problems + sum(each.runs - each.rest for each in squares), rest)
    of_runs = [(each.runs, side_RP.shape[-2] - 1) for each, side_RP in zip(squares, sides)]
    df = degrees_of_freedom(of_runs, of_problems, problems - 1)
    return _of_difference(gap_P.mean(axis=-1), variance, df, problems)


def mean_squares(scores_RP: np.ndarray) -> MeanSquares:
    """A, B and E of the two-way layout, divided by R P as they enter the variance of the mean."""
    runs, problems = scores_RP.shape[-2:]
    run_R1, problem_1P = scores_RP.mean(-1, keepdims=True), scores_RP.mean(-2, keepdims=True)
    rest_RP = scores_RP - run_R1 - problem_1P + problem_1P.mean(-1, keepdims=True)
    return MeanSquares(
        run_R1[..., 0].var(axis=-1, ddof=1) / runs,
        problem_1P[..., 0, :].var(axis=-1, ddof=1) / problems,
        (rest_RP**2).mean(axis=(-2, -1)) / ((runs - 1) * (problems - 1)),
    )


def degrees_of_freedom(
    of_runs: list[tuple[np.ndarray, int]], of_problems: np.ndarray, problems_df: int
) -> np.ndarray:
    """Satterthwaite's, of the mean squares (value, df) of runs, at their limit, and of problems."""
    limits = [run_limit(len(of_runs) * df) for _, df in of_runs]
    parts = [(limit * value, df) for limit, (value, df) in zip(limits, of_runs)]
    parts.append((of_problems, problems_df))
    spread = np.asarray(sum(value**2 / df for value, df in parts))
    total = np.asarray(sum(value for value, _ in parts))
    return np.where(spread > 0, total**2 / np.where(spread > 0, spread, 1.0), problems_df)


def run_limit(df: int) -> float:
    """Upper limit of a one-sided 75% interval for a mean square's expectation, as a multiple."""
    return df / special.chdtri(df, 1 - RUN_LIMIT)


# ---- parts


def _within_0_1(mean, answers, df) -> Bounds:
    """Wilson's interval of a share of so many answers of 0 or 1, with Student's quantile."""
    t = special.stdtrit(df, 1 - TAIL)
    centre = mean + t**2 / (2 * answers)
    half = t * np.sqrt(mean * (1 - mean) / answers + t**2 / (4 * answers**2))
    scale = 1 + t**2 / answers
    # at a mean of 0 or 1 rounding must not push a bound beyond it
    low = np.minimum(mean, np.maximum(0.0, (centre - half) / scale))
    high = np.maximum(mean, np.minimum(1.0, (centre + half) / scale))
    return Bounds(np.asarray(mean), low, high)


def _of_difference(mean, variance, df, problems: int) -> Bounds:
    """Student's t within [-1, 1]; without variance, as far as problems not seen could move it."""
    half = special.stdtrit(df, 1 - TAIL) * np.sqrt(variance)
    unseen = 1 - TAIL ** (1 / problems)
    low = np.where(variance > 0, mean - half, mean - unseen * (1 + mean))
    high = np.where(variance > 0, mean + half, mean + unseen * (1 - mean))
    return Bounds(np.asarray(mean), np.maximum(-1.0, low), np.minimum(1.0, high))


def _interval(bounds: Bounds, n: int) -> Interval:
    return Interval(*(float(value) for value in bounds), n)


def _without_interval(values: np.ndarray, n: int) -> Interval:
    mean = float(values.mean()) if values.size else np.nan
    return Interval(mean, np.nan, np.nan, n)


def _complete(scores_RP: np.ndarray) -> np.ndarray:
    """The problems that every run has a score of."""
    return scores_RP[:, ~np.isnan(scores_RP).any(axis=0)]


def _check_problems(first: int, second: int) -> None:
    if first != second:
        raise ValueError(
            f"{first} problems on one side, {second} on the other: not the same held-out split"
        )
