"""Generate and grade: the one path by which completions become outcomes, in training and in evaluation alike.

`grade` serves training's rewards; `transcribe` makes and grades completions of a list of prompts, for `evaluate` (greedy,
between training steps, with the loop's own compiled programs) and for experiments.evaluate (`sampler`) alike. Both read
what was sampled up to the first stop string of the task (`read`): text, length, log-probabilities and so the gradient end
there. Left out: files (transcripts.py), standard errors and tables (results.py).
"""

from __future__ import annotations

import bisect
import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bridge_jax.data.batches import PromptBatch, Prompts, prompt_batch
from bridge_jax.distributed import multihost, sharding
from bridge_jax.evaluation.results import binomial_error
from bridge_jax.grading.outcome import DeferredComparison, Outcome
from bridge_jax.grading.pool import Pool
from bridge_jax.sampling import decode_plan
from bridge_jax.sampling import sampler as sampling_sampler
from bridge_jax.sampling.draw import Sampling, row_keys
from bridge_jax.sampling.sampler import Samples
from bridge_jax.types import Problem, Task, Tree


class Graded(NamedTuple):
    """Completions on the host, row b of prompt b // M, with what became of each."""

    samples: Samples  # numpy arrays, each row cut where a stop string ends
    texts: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    unread: int = 0  # tokens that were sampled behind stop strings

    @property
    def reward_B(self) -> np.ndarray:
        """1.0 for a correct row, else 0.0, float32."""
        return np.asarray([outcome is Outcome.correct for outcome in self.outcomes], np.float32)


class Reading(NamedTuple):
    """What one way of reading finds in a completion."""

    answer: str | None  # None: no answer, or a reader that failed
    outcome: Outcome


def texts_of(tokenizer, samples: Samples) -> tuple[str, ...]:
    """Decoded completions; the token that ended a row is not part of its text, the last token of a cut row is."""
    return tuple(
        tokenizer.decode(row[: length - stopped])
        for row, length, stopped in zip(
            samples.seqs.tokens_BT, samples.seqs.length_B, samples.stopped_B.astype(int)
        )
    )


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the stop string begins that ends first in the text; None without one."""
    found = [(text.find(mark) + len(mark), text.find(mark)) for mark in stop if mark in text]
    return min(found)[1] if found else None


def tokens_to_stop(tokenizer, ids: np.ndarray, stop: Sequence[str]) -> int:
    """The fewest first tokens whose text holds a stop string, which the text of all of them does."""
    return 1 + bisect.bisect_left(
        range(1, len(ids)),
        True,
        key=lambda n: first_stop(tokenizer.decode(ids[:n]), stop) is not None,
    )


def read(tokenizer, samples: Samples, stop: Sequence[str]) -> tuple[Samples, tuple[str, ...], int]:
    """The samples cut where their first stop string ends, their texts without it, and the number of tokens cut off.

    The last token kept is the first one at which the text so far holds a stop string; behind it tokens and
    log-probabilities are 0. Other rows stay as they are. A row that was cut has stopped by itself, as one that an end-of-sequence token ends. What
    comes of it depends on nothing but the row.
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
    """Read, up to task.stop, and grade; an exception of the task's grader is the row's grader_error, never the run's end.

    lenient: read answers with task.lenient. A task whose compare makes DeferredComparisons needs a pool (ValueError without).
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
    """For each way to extract an answer, its Reading of each text, which answers the problem at the same place.

    Of several hosts each reads its share, and gets to know what the others found.
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
    """readings, by this process alone.

    An answer that two ways find in one text is compared once; the claims of all go to the pool in one call.
    """
    failed = Outcome.grader_error

    def attempt(function, *given):
        try:
            return function(*given)
        except (
            Exception
        ):  # counted and logged as a rate: a broken grader must not look like a bad model
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
    claims = {
        pair: outcome for pair, outcome in found.items() if isinstance(outcome, DeferredComparison)
    }
    if claims and pool is None:
        raise ValueError(
            f"task {task.name!r} grades with symbolic algebra; give evaluate.grade a grading.pool.Pool"
        )
    if claims:
        found |= zip(claims, pool.grade(list(claims.values())), strict=True)

    def reading(b: int, answer) -> Reading:
        if answer is None or answer is failed:
            return Reading(None, Outcome.no_answer if answer is None else failed)
        return Reading(answer, found[b, answer])

    return [[reading(b, answer) for b, answer in enumerate(row)] for row in answers]


def rates(outcomes) -> dict[str, float]:
    """Share of each outcome, all of them named, under reward/outcome_*."""
    counts, total = collections.Counter(outcomes), max(1, len(outcomes))
    return {f"reward/outcome_{kind}": counts[kind] / total for kind in Outcome}


def transcribe(
    generate: Callable,
    task: Task,
    tokenizer,
    prompts: Prompts,
    rows: int,
    buckets: tuple[int, ...],
    M: int = 1,
    pool: Pool | None = None,
) -> Iterator[list[dict]]:
    """Transcripts of M completions of every prompt, `rows` prompts at a time, short prompts first, read both ways.

    generate(PromptBatch) -> Samples, row b of prompt b // M; it may return before they are ready: each batch is graded
    while the next is generated. The last batch is filled up with copies of its last prompt, which take no longer than
    it does and are thrown away.
    """
    order = sorted(range(len(prompts.problems)), key=lambda i: len(prompts.tokens[i]))
    parts = [order[start : start + rows] for start in range(0, len(order), rows)]
    waiting = None  # (rows of prompts, Samples under way)
    for part in [*parts, None]:
        following = None
        if part is not None:
            full = part + part[-1:] * (rows - len(part))
            following = part, generate(prompt_batch(prompts, full, buckets))
        if waiting is not None:
            problems = [prompts.problems[i] for i in waiting[0] for _ in range(M)]
            yield transcripts_of(task, tokenizer, problems, jax.device_get(waiting[1]), M, pool)
        waiting = following


def transcripts_of(
    task: Task, tokenizer, problems: list[Problem], samples: Samples, M: int, pool: Pool | None
) -> list[dict]:
    """One JSON object for each of the first len(problems) rows, the readings of task.extract and task.lenient in it."""
    B = len(problems)
    seqs = samples.seqs.replace(
        tokens_BT=samples.seqs.tokens_BT[:B], length_B=samples.seqs.length_B[:B]
    )
    samples = Samples(seqs, samples.logp_BT[:B], samples.stopped_B[:B])
    samples, texts, _ = read(tokenizer, samples, task.stop)
    seqs = samples.seqs
    strict, lenient = readings(task, problems, texts, (task.extract, task.lenient), pool)
    return [
        {
            "id": problem.id,
            "sample": b % M,
            "level": problem.level,
            "question": problem.question,
            "answer": problem.answer,
            "text": text,
            "given": strict[b].answer,
            "outcome": str(strict[b].outcome),
            "given_lenient": lenient[b].answer,
            "outcome_lenient": str(lenient[b].outcome),
            "tokens": int(seqs.length_B[b]),
            "stopped": bool(samples.stopped_B[b]),
        }
        for b, (problem, text) in enumerate(zip(problems, texts))
    ]


def sampler(
    cfg,
    phi: Tree,
    mesh: jax.sharding.Mesh,
    eos_ids: tuple[int, ...],
    M: int,
    max_new: int,
    cache_dtype,
    seed: int = 0,
    temperature: float = 0.0,
    compiler_options: dict | None = None,
) -> Callable:
    """generate(PromptBatch) -> Samples on the mesh, M of each prompt, dispatched and not waited for.

    Compiles once for each bucket. The key of a row is fold_in(seed, 0, problem id, sample id), so that what is sampled
    does not depend on the batches. temperature 0 is greedy.
    """
    sample = _jitted(cfg, mesh, max_new, cache_dtype, tuple((compiler_options or {}).items()))
    seed_key = jax.random.key(seed)
    traced = Sampling(jnp.float32(temperature), jnp.asarray(eos_ids, jnp.int32), jnp.int32(max_new))
    place = lambda tree: jax.device_put(tree, sharding.of_rows(mesh, tree))

    def generate(batch: PromptBatch) -> Samples:
        return sample(
            phi,
            *place((batch.prompt_PS, batch.prompt_len_P)),
            place(_row_keys(seed_key, 0, batch.ids_P, M)),
            traced,
        )

    return generate


_row_keys = jax.jit(row_keys, static_argnums=3)


@functools.lru_cache(maxsize=8)
def _jitted(cfg, mesh: jax.sharding.Mesh, max_new: int, cache_dtype, options: tuple):
    """sampler.sample of one model, the same for all benchmarks, so that they share its programs."""
    plan = decode_plan.choose(mesh, max_new, cache_dtype)
    sample = functools.partial(sampling_sampler.sample, cfg, plan=plan)
    return jax.jit(sample, compiler_options=dict(options))


def evaluate(
    generate: Callable,
    phi: Tree,
    task: Task,
    tokenizer,
    split: str,
    prompts: Prompts,
    rows: int,
    buckets: tuple[int, ...],
    pool: Pool | None = None,
    too_long: int = 0,
) -> tuple[dict[str, float], list[dict]]:
    """Greedy pass@1 on the prompts of one split, `rows` at a time: metrics eval/{split}_*, and the transcripts.

    generate(phi, PromptBatch) -> Samples, one completion per prompt. too_long: problems of the split that are not in
    `prompts` because theirs did not fit; they count as not answered.
    """
    batches = transcribe(
        lambda batch: generate(phi, batch), task, tokenizer, prompts, rows, buckets, pool=pool
    )
    place = {problem.id: i for i, problem in enumerate(prompts.problems)}
    transcripts = sorted(
        ({"split": split} | row for batch in batches for row in batch),
        key=lambda row: place[row["id"]],
    )
    made, n = len(transcripts), len(transcripts) + too_long
    count = lambda key, outcome: sum(row[key] == outcome for row in transcripts)
    mean = lambda key: sum(row[key] for row in transcripts) / made
    right = count("outcome", Outcome.correct)
    metrics = {
        "accuracy": right / n,
        "stderr": binomial_error(right, n),
        "n": n,
        "tokens": mean("tokens"),
        "stopped": mean("stopped"),
        "no_answer": (count("outcome", Outcome.no_answer) + too_long) / n,
        "lenient": count("outcome_lenient", Outcome.correct) / n,
    }
    return {f"eval/{split}_{key}": value for key, value in metrics.items()}, transcripts
