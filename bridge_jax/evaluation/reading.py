"""Read completions: cut them at the first stop string, extract their answers, compare and grade.

Training's rewards (`grade`) and evaluations (evaluate.py) both read completions here. Text, length,
log-probabilities, and so the gradient, end at the first stop string of the task.
"""

from __future__ import annotations

import bisect
import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bridge_jax.distributed import multihost
from bridge_jax.grading.outcome import DeferredComparison, Outcome
from bridge_jax.grading.pool import Pool
from bridge_jax.sampling.sampler import Samples
from bridge_jax.types import Problem, Task


class Graded(NamedTuple):
    """Completions on the host with the outcome of each; row b belongs to prompt b // M."""

    # numpy arrays, each row cut where a stop string ends
    samples: Samples
    texts: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    # tokens that were sampled behind stop strings
    unread: int = 0

    @property
    def reward_B(self) -> np.ndarray:
        """1.0 for a correct row, else 0.0, float32."""
        return np.asarray([outcome is Outcome.correct for outcome in self.outcomes], np.float32)


class Reading(NamedTuple):
    """The answer that one way of extracting finds in a completion, and its outcome."""

    # None: there is no answer, or the extraction failed
    answer: str | None
    outcome: Outcome


def texts_of(tokenizer, samples: Samples) -> tuple[str, ...]:
    """Decoded completions.

    The token that ended a row is not part of its text; the last token of a row that the limit cut
    is.
    """
    return tuple(
        tokenizer.decode(row[: length - stopped])
        for row, length, stopped in zip(
            samples.seqs.tokens_BT, samples.seqs.length_B, samples.stopped_B.astype(int)
        )
    )


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string begins, which is the one that ends first; None without one."""
    found = [(text.find(mark) + len(mark), text.find(mark)) for mark in stop if mark in text]
    return min(found)[1] if found else None


def tokens_to_stop(tokenizer, ids: np.ndarray, stop: Sequence[str]) -> int:
    """How many tokens it takes until the decoded text holds a stop string; all of them do."""
    return 1 + bisect.bisect_left(
        range(1, len(ids)),
        True,
        key=lambda n: first_stop(tokenizer.decode(ids[:n]), stop) is not None,
    )


def read(tokenizer, samples: Samples, stop: Sequence[str]) -> tuple[Samples, tuple[str, ...], int]:
    """Cut samples where their first stop string ends: (samples, texts without it, tokens cut off).

    The last token kept is the first one at which the text so far holds a stop string; behind it
    tokens and log-probabilities are 0. A row that was cut counts as stopped, as if an
    end-of-sequence token had ended it. Other rows do not change. Each row is cut independently.
    """
    texts = texts_of(tokenizer, samples)
    begins = {b: at for b, text in enumerate(texts) if (at := first_stop(text, stop)) is not None}
    if not begins:
        return samples, texts, 0
    length_B, stopped_B = np.array(samples.seqs.length_B), np.array(samples.stopped_B)
    for b in begins:
        ids = samples.seqs.tokens_BT[b, : length_B[b] - stopped_B[b]]
        length_B[b], stopped_B[b] = tokens_to_stop(tokenizer, ids, stop), True
    kept_BT = np.arange(samples.logp_BT.shape[1]) < length_B[:, None]
    kept_BT[[b not in begins for b in range(len(texts))]] = True
    seqs = samples.seqs.replace(
        tokens_BT=np.where(kept_BT, samples.seqs.tokens_BT, 0), length_B=length_B
    )
    cut = Samples(seqs, np.where(kept_BT, samples.logp_BT, 0), stopped_B)
    unread = int(samples.seqs.length_B.sum() - length_B.sum())
    return cut, tuple(text[: begins.get(b)] for b, text in enumerate(texts)), unread


def grade(
    task: Task,
    tokenizer,
    problems: list[Problem],
    samples: Samples,
    pool: Pool | None = None,
    lenient: bool = False,
) -> Graded:
    """Read completions up to task.stop and grade them.

    An exception in the task's grader becomes the row's outcome grader_error; it never ends the run.
    lenient: extract answers with task.lenient. A task whose compare returns deferred comparisons
    (DeferredComparison) needs a pool; ValueError without one.
    """
    samples, texts, unread = read(tokenizer, samples, task.stop)
    M = len(samples.stopped_B) // len(problems)
    extract = task.lenient if lenient else task.extract
    (found,) = readings(
        task, [problem for problem in problems for _ in range(M)], texts, (extract,), pool
    )
    return Graded(samples, texts, tuple(reading.outcome for reading in found), unread)


def readings(
    task: Task,
    problems: Sequence[Problem],
    texts: Sequence[str],
    extracts: Sequence[Callable],
    pool: Pool | None = None,
) -> list[list[Reading]]:
    """For each way of extracting, the Reading of each text; text i answers problem i.

    With several hosts each reads its share, and all gather the results.
    """
    mine = multihost.process_slice(len(texts))
    found = readings_here(task, problems[mine], texts[mine], extracts, pool)
    if multihost.count() == 1:
        return found
    rows = multihost.all_gather_lists(
        "outcomes",
        [[(way[b].answer, way[b].outcome) for way in found] for b in range(len(found[0]))],
    )
    return [[Reading(row[k][0], Outcome(row[k][1])) for row in rows] for k in range(len(extracts))]


def readings_here(
    task: Task,
    problems: Sequence[Problem],
    texts: Sequence[str],
    extracts: Sequence[Callable],
    pool: Pool | None,
) -> list[list[Reading]]:
    """`readings` of this process alone.

    An answer that two ways of extracting find in one text is compared once. All deferred
    comparisons go to the pool in one call.
    """
    failed = Outcome.grader_error

    def attempt(function, *given):
        try:
            return function(*given)
        except Exception:
            # the rate of failures is logged: a broken grader must not look like a bad model
            return failed

    answers = [[attempt(extract, text) for text in texts] for extract in extracts]
    # `is`, not ==: an answer may well spell the name of an outcome
    pairs = [
        (b, answer)
        for row in answers
        for b, answer in enumerate(row)
        if answer is not None and answer is not failed
    ]
    found: dict[tuple[int, str], Any] = {
        pair: attempt(task.compare, problems[pair[0]], pair[1]) for pair in dict.fromkeys(pairs)
    }
    deferred = {
        pair: outcome for pair, outcome in found.items() if isinstance(outcome, DeferredComparison)
    }
    if deferred and pool is None:
        raise ValueError(
            f"task {task.name!r} grades with symbolic algebra; give grade() a grading.pool.Pool"
        )
    if deferred:
        found |= zip(deferred, pool.grade(list(deferred.values())), strict=True)

    def reading(b: int, answer) -> Reading:
        if answer is None or answer is failed:
            return Reading(None, Outcome.no_answer if answer is None else failed)
        return Reading(answer, found[b, answer])

    return [[reading(b, answer) for b, answer in enumerate(row)] for row in answers]


def rates(outcomes) -> dict[str, float]:
    """reward/outcome_KIND -> share of the outcomes, for every kind."""
    counts, total = collections.Counter(outcomes), max(1, len(outcomes))
    return {f"reward/outcome_{kind}": counts[kind] / total for kind in Outcome}
