"""Generate and grade the completions of a list of prompts, in training and in evaluations.

`transcribe` makes the rows of transcripts, batch by batch. `evaluate` sums up one split with greedy
completions; the training loop calls it with its own compiled programs. Left out: evaluations by
command, in which prompts wait for a free slot instead of a batch (generate.py), reading and grading
(reading.py), files (transcripts.py), errors (scores.py), tables (tables.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from bridge_jax.data.batches import Prompts, prompt_batch
from bridge_jax.evaluation.lazy_pool import LazyPool
from bridge_jax.evaluation.reading import read, readings
from bridge_jax.evaluation.scores import binomial_error
from bridge_jax.grading.outcome import Outcome
from bridge_jax.grading.pool import Pool
from bridge_jax.sampling.sampler import Samples
from bridge_jax.types import Problem, Task


class Grading(NamedTuple):
    """The arguments of grading: completions become outcomes by them."""

    task: Task
    tokenizer: Any
    # of a task whose compare returns deferred comparisons; others need none
    pool: Pool | LazyPool | None = None


def transcribe(
    generate: Callable,
    grading: Grading,
    prompts: Prompts,
    rows: int,
    buckets: tuple[int, ...],
    M: int = 1,
) -> Iterator[list[dict]]:
    """Transcripts of M completions of every prompt, `rows` prompts at a time, short prompts first.

    generate(PromptBatch) -> Samples, where row b belongs to prompt b // M. It may return before the
    samples are ready: each batch is graded while the next one is generated. The last batch is
    padded with copies of its last prompt, which take no longer than it does; their completions are
    dropped.
    """
    order = sorted(range(len(prompts.problems)), key=lambda i: len(prompts.tokens[i]))
    pending: list[tuple[list[int], Samples]] = []

    def graded():
        part, samples = pending.pop()
        problems = [prompts.problems[i] for i in part for _ in range(M)]
        own = [m for _ in part for m in range(M)]
        return transcripts_of(grading, problems, jax.device_get(samples), own)

    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        padded = part + part[-1:] * (rows - len(part))
        samples = generate(prompt_batch(prompts, padded, buckets))
        if pending:
            yield graded()
        pending.append((part, samples))
    if pending:
        yield graded()


def transcripts_of(
    grading: Grading, problems: Sequence[Problem], samples: Samples, sample_B: Sequence
) -> list[dict]:
    """A JSON object for each of the first len(problems) rows, read strictly and leniently.

    sample_B: which sample of its problem a row is.
    """
    task, B = grading.task, len(problems)
    seqs = samples.seqs.replace(
        tokens_BT=samples.seqs.tokens_BT[:B], length_B=samples.seqs.length_B[:B]
    )
    samples = Samples(seqs, samples.logp_BT[:B], samples.stopped_B[:B])
    samples, texts, _ = read(grading.tokenizer, samples, task.stop)
    strict, lenient = readings(task, problems, texts, (task.extract, task.lenient), grading.pool)
    return [
        {
            "id": problem.id,
            "sample": sample_B[b],
            "level": problem.level,
            "question": problem.question,
            "answer": problem.answer,
            "text": text,
            "given": strict[b].answer,
            "outcome": str(strict[b].outcome),
            "given_lenient": lenient[b].answer,
            "outcome_lenient": str(lenient[b].outcome),
            "tokens": int(samples.seqs.length_B[b]),
            "stopped": bool(samples.stopped_B[b]),
        }
        for b, (problem, text) in enumerate(zip(problems, texts))
    ]


def evaluate(
    generate: Callable,
    grading: Grading,
    split: str,
    prompts: Prompts,
    rows: int,
    buckets: tuple[int, ...],
    too_long: int = 0,
) -> tuple[dict[str, float], list[dict]]:
    """Pass@1 on the prompts of one split, `rows` at a time: (metrics eval/{split}_*, transcripts).

    generate(PromptBatch) -> Samples, one completion of each prompt. too_long: problems of the split
    that are not in `prompts`, since their prompts did not fit; they count as not answered.
    """
    batches = transcribe(generate, grading, prompts, rows, buckets)
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
