r"""Scores of an evaluation with their errors; pure functions of rows of transcripts.

Each problem i has one value v_i: 1 or 0 (greedy), c_i / n (avg@n), or the unbiased pass@k of Chen
et al. 2021, 1 - C(n - c_i, k) / C(n, k), where c_i of its n samples are correct. A benchmark's
score is the mean of v over ALL its problems; a problem whose prompt was too long counts as 0.

A score has two errors, which are never added up. `stderr` is over the choice of problems; the
samples of a problem are one cluster. `sampling_error` is over the choice of samples, for the given
problems. The 95% intervals (intervals.py) stay within [0, 1], and so are no multiples of the
errors. The average is the mean of the benchmarks' scores. Left out: files and generation; the
spread between runs, since one model is evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bridge_jax.evaluation import intervals
from bridge_jax.grading.outcome import Outcome

# reading -> key of its outcome in a row
READINGS = {"strict": "outcome", "lenient": "outcome_lenient"}
# stands for the sample id of a greedy completion
GREEDY = "greedy"
GREEDY_METRIC = "greedy pass@1"


class Score(NamedTuple):
    """A share in [0, 1], its standard errors and 95% intervals; None where there is none."""

    value: float
    stderr: float | None = None
    sampling_error: float | None = None
    # over problems
    interval: tuple[float, float] | None = None
    # over samples
    sampling_interval: tuple[float, float] | None = None


def binomial_error(successes: float, n: float) -> float:
    """Standard error of a share of n independent problems.

    The share is shrunken as by Agresti and Coull, so that the error is not 0 at 0 or n successes.
    """
    share = (successes + 2) / (n + 4)
    return math.sqrt(share * (1 - share) / (n + 4))


def problems_score(values: Sequence[float]) -> Score:
    """Mean of one value in [0, 1] a problem, with its error and interval over problems."""
    n, mean = len(values), sum(values) / len(values)
    error, interval = spread_of(mean, sum((value - mean) ** 2 for value in values) / n, n)
    return Score(mean, error, interval=interval)


def spread_of(mean: float, variance: float, units: float):
    """Standard error and 95% interval of a mean of independent units in [0, 1].

    The error is that of binomial_error for the number of 0/1 answers that determine the mean as
    precisely as these units. A single unit has no interval.
    """
    answers = float(intervals.effective_units(mean, variance, units))
    _, low, high = intervals.of_shares(mean, variance, units)
    error = binomial_error(answers * mean, answers)
    return error, (float(low), float(high)) if units > 1 else None


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): chance that k of n samples include one of the c correct ones.

    The k samples are drawn without replacement.
    """
    assert 0 <= c <= n and 1 <= k <= n, (n, c, k)
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def sampling_variance(n: int, c: int, k: int) -> float | None:
    """Jackknife variance of pass_at_k over the n samples of one problem; None for k = n.

    (n - 1) / n sum_j (pass_at_k without sample j - mean of these)^2. For k = 1 this is
    p (1 - p) / (n - 1) with p = c / n. With k = n no sample can be left out.
    """
    if k >= n:
        return None
    without_right = pass_at_k(n - 1, c - 1, k) if c else 0.0
    without_wrong = pass_at_k(n - 1, c, k) if c < n else 0.0
    return (n - 1) / n * (c * (n - c) / n) * (without_right - without_wrong) ** 2


def steps_to(n: int) -> list[int]:
    """1, 2, 4, ... and n: the k of pass@k."""
    return sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | {n})


def sampled_score(counts: Sequence[int], n: int, k: int) -> Score:
    """pass@k over problems, `counts` of whose n samples are correct.

    A unit is one problem for the error over problems, k samples of a problem for that over samples.
    """
    score = problems_score([pass_at_k(n, c, k) for c in counts])
    if k >= n:
        return score
    groups = len(counts) * n / k
    variance = groups * sum(sampling_variance(n, c, k) for c in counts) / len(counts) ** 2
    error, interval = spread_of(score.value, variance, groups)
    return score._replace(sampling_error=error, sampling_interval=interval)


def scores(
    ids: Sequence[int], rows: Iterable[Mapping], samples: int = 0, greedy: bool = True
) -> dict[str, dict[str, Score]]:
    """{reading: {metric: Score}} of one benchmark.

    A problem of `ids` without rows counts as not answered. rows: transcripts. For each problem
    there are `samples` rows (0: none), and one greedy row if `greedy`.
    """
    rows, result = list(rows), {}
    for reading, key in READINGS.items():
        right = {row["id"]: 0 for row in rows} | dict.fromkeys(ids, 0)
        hits = {
            id
            for row in rows
            for id in [row["id"]]
            if row["sample"] == GREEDY and row[key] == Outcome.correct
        }
        for row in rows:
            right[row["id"]] += row["sample"] != GREEDY and row[key] == Outcome.correct
        metrics = {}
        if greedy:
            metrics[GREEDY_METRIC] = problems_score([float(id in hits) for id in ids])
        if samples:
            counts = [right[id] for id in ids]
            metrics[f"avg@{samples}"] = sampled_score(counts, samples, 1)
            metrics |= {f"pass@{k}": sampled_score(counts, samples, k) for k in steps_to(samples)}
        result[reading] = metrics
    return result


def average(of_benchmarks: Sequence[Score]) -> Score:
    """Mean of benchmark scores, whose errors are independent; None where one of them has none.

    Errors: sqrt(sum error^2) / number. Intervals: the distances from score to bound are combined
    in the same way (Zou and Donner 2008, Statistics in Medicine 27, 1693-1702), which keeps the
    average within [0, 1].
    """
    number = len(of_benchmarks)
    mean = sum(score.value for score in of_benchmarks) / number

    def combined(errors):
        return None if None in errors else math.sqrt(sum(error**2 for error in errors)) / number

    def around(found):
        if None in found:
            return None
        below, above = (
            combined([score.value - one[side] for score, one in zip(of_benchmarks, found)])
            for side in (0, 1)
        )
        return mean - below, mean + above

    _, stderrs, samplings, found, of_samples = zip(*of_benchmarks)
    return Score(mean, combined(stderrs), combined(samplings), around(found), around(of_samples))


def lengths_and_outcomes(rows: Sequence[Mapping], too_long: int, per_problem: int = 1) -> dict:
    """Mean length, truncation and outcomes of rows of one kind.

    too_long: problems that were not asked; they are counted among the outcomes alone.
    """
    made, absent = len(rows), too_long * per_problem
    share = lambda key, kind: sum(row[key] == kind for row in rows) / max(1, made + absent)
    mean = lambda values: sum(values) / max(1, made)
    outcomes = {
        reading: {str(kind): share(key, kind) for kind in Outcome}
        | {"too_long": absent / max(1, made + absent)}
        for reading, key in READINGS.items()
    }
    return {
        "rows": made,
        "tokens": mean([row["tokens"] for row in rows]),
        "truncated": mean([not row["stopped"] for row in rows]),
        "outcomes": outcomes,
    }
