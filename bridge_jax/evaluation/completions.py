"""Completions of a few prompts, to be looked at: sampled, read and, where an answer is given,
graded.

Left out: benchmarks with scores and transcripts (session.py); how completions are shown
(experiments/sample.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bridge_jax import tasks
from bridge_jax.data import batches
from bridge_jax.data.batches import Prompts
from bridge_jax.evaluation.generate import Generator
from bridge_jax.evaluation.lazy_pool import LazyPool
from bridge_jax.evaluation.reading import read, readings
from bridge_jax.grading.outcome import Outcome
from bridge_jax.sampling import refill
from bridge_jax.sampling.refill import Request
from bridge_jax.sampling.sampler import Samples
from bridge_jax.types import Problem, Task

# how a prompt becomes the model's input
TEMPLATES: dict[str, Callable[[Problem], list[dict[str, str]]]] = {
    "raw": lambda problem: [{"role": "text", "content": problem.question}],
    "chat": lambda problem: [{"role": "user", "content": problem.question}],
    **tasks.PROMPTS,
}


class Completion(NamedTuple):
    """One completion of a prompt, as it is read."""

    text: str
    tokens: int  # sampled, end-of-sequence token included
    ended: bool  # by an end-of-sequence token or a stop string; False: cut at the limit
    answer: str | None  # the one that the task's reading finds
    outcome: str  # of comparing it with the given answer; "" where none is given


def free_task(template: str) -> Task:
    """A task without problems, in which a boxed answer is compared mathematically."""
    stop = tasks.STOPS.get(template, ())
    return Task("prompt", (), (), {}, TEMPLATES[template], *tasks.MATHEMATICS, stop=stop)


def problem_of(prompt: str, answer: str) -> Problem:
    """A prompt as the problem of a task; answer "": none is known."""
    return Problem(tasks.question_id(prompt), prompt, answer, "", 0)


def encode(tokenizer, problems: Sequence[Problem], task: Task, positions: int) -> Prompts:
    """The prompts as the task asks them; ValueError for one that fills the model's positions."""
    rows = []
    for problem in problems:
        ids = batches.prompt_ids(tokenizer, problem, task.messages)
        if len(ids) >= positions:
            raise ValueError(
                f"the prompt {problem.question[:40]!r}... has {len(ids)} tokens, the model has "
                f"room for {positions} with the completion; give a shorter one"
            )
        rows.append(ids)
    return Prompts(tuple(problems), tuple(rows))


def bucket_of(prompts: Prompts, positions: int) -> int:
    """The padded length of the prompts: a power of two, or all but one of the positions."""
    longest = max(len(ids) for ids in prompts.tokens)
    return min(max(16, 1 << (longest - 1).bit_length()), positions - 1)


def complete(
    generator: Generator, task: Task, prompts: Prompts, M: int, temperature: float, pool: LazyPool
) -> list[list[Completion]]:
    """M completions of every prompt, in the order of the prompts; temperature 0 is greedy."""
    count = len(prompts.tokens)
    requests = [Request(i, sample, temperature) for i in range(count) for sample in range(M)]
    sampled = generator.refill()(prompts, requests, generator.rows())
    ended = sorted((row for rows in sampled for row in rows), key=lambda row: row.request)
    problems = [prompts.problems[row.request.prompt] for row in ended]
    tokenizer = generator.model.tokenizer
    rows = completions_of(tokenizer, task, problems, refill.as_samples(ended), pool)
    return [rows[first : first + M] for first in range(0, len(rows), M)]


def completions_of(
    tokenizer, task: Task, problems: Sequence[Problem], samples: Samples, pool: LazyPool
) -> list[Completion]:
    """The samples, one of each of the problems, read and graded."""
    cut, texts, _ = read(tokenizer, samples, task.stop)
    graded = dataclasses.replace(task, compare=functools.partial(compare_if_given, task))
    (found,) = readings(graded, list(problems), texts, (task.extract,), pool)
    return [
        Completion(
            text,
            int(cut.seqs.length_B[b]),
            bool(cut.stopped_B[b]),
            found[b].answer,
            str(found[b].outcome) if problem.answer else "",
        )
        for b, (problem, text) in enumerate(zip(problems, texts))
    ]


def compare_if_given(task: Task, problem: Problem, answer: str):
    """task.compare, which is not called for a problem without an answer."""
    return task.compare(problem, answer) if problem.answer else Outcome.no_answer
