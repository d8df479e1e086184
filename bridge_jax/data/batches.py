"""Conversion of problems into arrays: tokenised prompts and demonstrations, shuffling, batches.

All data is tokenised once, at the start. `prompt_ids` renders the prompts of both SFT and RL, so
that a problem has the same prompt in both. Problems that do not fit (a prompt longer than the
largest bucket, a solution longer than its limit) are left out and logged, never truncated. Padding
is recognised by lengths, never by an id, since the padding id may be the end-of-sequence id. The
rows of a step follow from (seed, stream, position) alone, so that a checkpoint stores only the
position. Left out: streaming of data that does not fit in memory; packing (packing.py).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import logging
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bridge_jax.data import tokenizers, traces
from bridge_jax.types import Problem, Sequences

logger = logging.getLogger(__name__)
# questions that are read to see whether a tokenizer knows such texts, and the share of their
# characters that it must know
READ, LEAST_READABLE = 50, 0.5
# Dropped.part -> the key that limits its length
LIMIT_KEYS = {"prompt": "data.buckets", "trace": "data.max_demo"}
# Dropped.part -> why a problem was left out
REJECTION_REASONS = {
    "prompt": "prompt longer than {limit} tokens",
    "trace": "trace longer than {limit} tokens",
    "reasoning": "the solution ends inside an open <think>",
    "stop": "the solution holds a stop string, at which a sample would end",
}


class Dropped(NamedTuple):
    """A problem that was left out because it does not fit."""

    id: int  # of the problem
    part: str  # a key of REJECTION_REASONS
    length: int  # tokens, the end-of-sequence token counted


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Tokenised prompts; row i of all fields is one problem."""

    problems: tuple[Problem, ...]
    tokens: tuple[np.ndarray, ...]  # int32 prompt ids, unpadded


@dataclasses.dataclass(frozen=True)
class Demos:
    """Tokenised demonstrations; row i of the first three fields is one problem."""

    problems: tuple[Problem, ...]
    tokens: tuple[np.ndarray, ...]  # int32 prompt ids, unpadded
    completions: tuple[np.ndarray, ...]  # int32, the end-of-sequence token is the last
    # correct solutions that do not fit, even where another one of the same problem does
    rejected: tuple[Dropped, ...] = ()


NO_DEMOS = Demos((), (), ())  # for a method that reads none


class PromptBatch(NamedTuple):
    """Prompts of one batch as numpy arrays."""

    prompt_PS: np.ndarray  # int32, right-padded
    prompt_len_P: np.ndarray  # int32, 1 in a padding row
    ids_P: np.ndarray  # int32 ids of the problems, -1 in a padding row


def prompt_ids(tokenizer, problem: Problem, messages: Callable) -> np.ndarray:
    """The prompt of a problem as int32 ids, the same for SFT, RL and evaluation."""
    try:
        ids = np.asarray(tokenizer.render(messages(problem)), np.int32)
    except ValueError as error:
        raise ValueError(f"the prompt {problem.question!r:.200}: {error}") from error
    if not ids.size:
        raise ValueError(
            f"the prompt {problem.question!r:.200} has no token"
            f"{tokenizers.known_characters(tokenizer)}"
        )
    return ids


def check_readable(tokenizer, problems: Sequence[Problem]) -> None:
    """ValueError where the tokenizer drops most of the characters of the first questions."""
    if isinstance(tokenizer, tokenizers.CharTokenizer):
        # it refuses what it does not know
        return
    questions = [problem.question for problem in problems[:READ]]
    total = sum(map(len, questions))
    kept = sum(tokenizers.characters_kept(tokenizer, question) for question in questions)
    if kept < LEAST_READABLE * total:
        raise ValueError(
            f"the tokenizer has tokens for {kept / total:.0%} of the characters of the problems, "
            f"such as {questions[0]!r:.80}{tokenizers.known_characters(tokenizer)}; take a model "
            "whose tokenizer knows such texts"
        )


def template_hash(tokenizer, messages: Callable, question: str = "1+1=") -> str:
    """12 hex digits of a hash over a rendered question, which depends on template and tokenizer.

    Where a character tokenizer lacks characters of the question, its alphabet is rendered instead.
    """
    alphabet = getattr(tokenizer, "alphabet", question)
    own = "" if set(question) <= set(alphabet) else "".join(sorted(alphabet))
    ids = prompt_ids(tokenizer, Problem(0, own or question, "2", "", 0), messages)
    # the ids give the order of the characters, the text gives the characters
    return hashlib.sha256(ids.tobytes() + own.encode()).hexdigest()[:12]


def encode_prompts(
    tokenizer, problems: Sequence[Problem], messages: Callable, buckets: tuple[int, ...]
) -> tuple[Prompts, tuple[Dropped, ...]]:
    """Prompts that fit the largest bucket, and the dropped ones (with a warning).

    ValueError where none fits, and where the tokenizer cannot read them.
    """
    check_buckets(buckets)
    encoded = [(problem, prompt_ids(tokenizer, problem, messages)) for problem in problems]
    check_readable(tokenizer, problems)
    dropped = [
        Dropped(problem.id, "prompt", len(ids))
        for problem, ids in encoded
        if len(ids) > buckets[-1]
    ]
    kept = [(problem, ids) for problem, ids in encoded if len(ids) <= buckets[-1]]
    report(dropped, len(problems), {"prompt": buckets[-1]})
    return Prompts(*zip(*kept)), tuple(dropped)


def encode_demos(
    tokenizer,
    demos: Sequence[Problem],
    messages: Callable,
    buckets: tuple[int, ...],
    max_new: int,
    others: Mapping[int, Sequence[str]] | None = None,
    stop: Sequence[str] = (),
) -> tuple[Demos, tuple[Dropped, ...]]:
    """Demonstrations that fit, and the dropped problems (with a warning).

    A prompt must fit the largest bucket; a solution with its end-of-sequence token must fit
    max_new. others: further solutions by the id of their problem; the first solution that fits is
    used. stop: strings that end a sample, which no solution may contain. `problem.solution` of the
    result is the text that is trained on.
    """
    check_buckets(buckets)
    kept, dropped, all_rejected = [], [], []
    for problem in demos:
        ids = prompt_ids(tokenizer, problem, messages)
        if len(ids) > buckets[-1]:
            dropped.append(Dropped(problem.id, "prompt", len(ids)))
            continue
        end_of_prompt = tokenizer.decode(ids[-32:])
        rejected: list[Dropped] = []
        for solution in (problem.solution, *(others or {}).get(problem.id, ())):
            solution = join_reasoning(end_of_prompt, solution, problem.id)
            completion = completion_ids(tokenizer, solution, problem.id)
            part = rejection_reason(end_of_prompt, solution, len(completion), max_new, stop)
            if not part:
                kept.append((problem._replace(solution=solution), ids, completion))
                break
            rejected.append(Dropped(problem.id, part, len(completion)))
        else:
            dropped.append(rejected[0])
        all_rejected += rejected
    report(dropped, len(demos), {"prompt": buckets[-1], "trace": max_new})
    return Demos(*zip(*kept), rejected=tuple(all_rejected)), tuple(dropped)


def completion_ids(tokenizer, solution: str, id: int) -> np.ndarray:
    """A solution and an end-of-sequence token as int32 ids.

    ValueError for an empty solution and for one that contains an end-of-sequence token.
    """
    trace = tokenizer.encode(solution)
    if not trace or set(trace) & set(tokenizer.eos_ids):
        raise ValueError(
            f"demonstration {id}: the solution must be a text without end-of-sequence tokens, "
            f"one is appended; it is {solution!r}"
        )
    return np.asarray([*trace, tokenizer.eos_ids[0]], np.int32)


def join_reasoning(prompt: str, solution: str, id: int) -> str:
    """The solution as a continuation of the prompt, with exactly one <think> before its reasoning.

    The prompt's template may end in <think>, and a solution may lack the opening tag. ValueError
    where the template closes the reasoning, but the solution contains one.
    """
    ended = prompt.rstrip()
    if ended.endswith(traces.THINK):
        given = solution.lstrip()
        if not given.startswith(traces.THINK):
            return solution
        rest, space = given.removeprefix(traces.THINK), prompt[len(ended) :]
        return rest[len(os.path.commonprefix([rest, space])) :]
    reasons = traces.THINK in solution or traces.THINK_END in solution
    if reasons and ended.endswith(traces.THINK_END):
        raise ValueError(
            f"demonstration {id}: the chat template closes the reasoning ({traces.THINK_END}) "
            f"before the model speaks, but the solution holds a reasoning: {solution[:80]!r}. Take "
            "a template that leaves it to the model, or solutions without one"
        )
    if reasons and traces.THINK not in solution.partition(traces.THINK_END)[0]:
        return f"{traces.THINK}\n{solution.lstrip()}"
    return solution


def rejection_reason(
    prompt: str, solution: str, length: int, max_new: int, stop: Sequence[str]
) -> str:
    """The key of REJECTION_REASONS that applies to a solution; "" for a valid demonstration."""
    opened = traces.THINK if prompt.rstrip().endswith(traces.THINK) else ""
    reasoning = (opened + solution).partition(traces.THINK_END)[0]
    if traces.unfinished(opened + solution) or reasoning.count(traces.THINK) > 1:
        return "reasoning"
    if any(text in solution for text in stop):
        return "stop"
    return "trace" if length > max_new else ""


def report(dropped: list[Dropped], total: int, limits: dict[str, int]) -> None:
    """Warns of dropped problems and names the ten longest; ValueError where all were dropped."""
    for part, why in REJECTION_REASONS.items():
        rows = sorted((row for row in dropped if row.part == part), key=lambda row: -row.length)
        if rows:
            named = ", ".join(f"{row.id} ({row.length})" for row in rows[:10]) + ", ..." * (
                len(rows) > 10
            )
            logging.getLogger(__name__).warning(
                "left out %d of %d problems: %s; id (tokens): %s",
                len(rows),
                total,
                why.format(limit=limits.get(part)),
                named,
            )
    if len(dropped) == total:
        lengths = ", ".join(f"{part} at most {limit} tokens" for part, limit in limits.items())
        shortest = min((row.length for row in dropped), default=0)
        parts = collections.Counter(row.part for row in dropped)
        others = [
            f"of {n} {REJECTION_REASONS[part]}; " for part, n in parts.items() if part not in limits
        ]
        keys = " or ".join(LIMIT_KEYS[part] for part in limits if part in parts)
        raise ValueError(
            f"none of {total} problems remains; {''.join(others)}allowed: {lengths}; shortest left "
            f"out: {shortest}. {f'Raise {keys}, or take' if keys else 'Take'} other data"
        )


def check_buckets(buckets: tuple[int, ...]) -> None:
    """ValueError unless the buckets are distinct positive lengths in rising order."""
    if not buckets or buckets[0] < 1 or any(b <= a for a, b in zip(buckets, buckets[1:])):
        raise ValueError(
            f"prompt buckets {tuple(buckets)}; allowed: positive, in rising order, such as (64, "
            "128)"
        )


@functools.lru_cache(maxsize=8)
def permutation(seed: int, stream: str, size: int, epoch: int) -> np.ndarray:
    """The order of the rows in one epoch.

    Sorts raw Philox words: numpy guarantees these across versions, but not its `permutation`.
    """
    words = np.random.Philox(
        np.random.SeedSequence((seed, zlib.crc32(stream.encode()), epoch))
    ).random_raw(size)
    indices = np.argsort(words, kind="stable")
    # the cached array is shared by all callers
    indices.setflags(write=False)
    return indices


def order(seed: int, stream: str, size: int, start: int, count: int) -> np.ndarray:
    """Positions [start, start + count) of an endless stream of shuffled epochs, int64."""
    if size < 1 or start < 0 or count < 0 or not 0 <= seed < 2**32:
        raise ValueError(
            f"order(seed={seed}, size={size}, start={start}, count={count}); allowed: seed in "
            "[0, 2^32), size from 1, start and count from 0"
        )
    epochs = range(start // size, -(-(start + count) // size))
    stream_of_epochs = [permutation(seed, stream, size, epoch) for epoch in epochs]
    return np.concatenate([np.zeros(0, np.int64), *stream_of_epochs])[start % size :][:count]


def padded(rows: Sequence[np.ndarray], width: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows as an array [count, width], right-padded with 0, and their lengths [count].

    Both int32.
    """
    table, lengths = np.zeros((count, width), np.int32), np.zeros(count, np.int32)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
        lengths[i] = len(row)
    return table, lengths


def prompt_batch(
    prompts: Prompts | Demos,
    indices: Sequence[int],
    buckets: tuple[int, ...],
    pad_to: int | None = None,
) -> PromptBatch:
    """Prompts of these rows, padded to the smallest bucket that fits the longest.

    pad_to: number of rows of the result, filled up with padding rows.
    """
    count = len(indices) if pad_to is None else pad_to
    if not len(indices) <= count or count < 1:
        raise ValueError(
            f"a batch of {len(indices)} rows cannot be padded to {count}; allowed: at least that, "
            "and 1"
        )
    rows = [prompts.tokens[i] for i in indices]
    longest = max(map(len, rows), default=1)
    fitting = [width for width in buckets if width >= longest]
    if not fitting:
        raise ValueError(
            f"a prompt of {longest} tokens does not fit the buckets {tuple(buckets)}; use those "
            "that the prompts were encoded with"
        )
    prompt_PS, prompt_len_P = padded(rows, min(fitting), count)
    ids_P = np.full(count, -1, np.int32)
    ids_P[: len(rows)] = [prompts.problems[i].id for i in indices]
    return PromptBatch(prompt_PS, np.maximum(prompt_len_P, 1), ids_P)


def demo_batch(
    demos: Demos,
    indices: Sequence[int],
    buckets: tuple[int, ...],
    max_new: int,
    pad_to: int | None = None,
) -> Sequences:
    """Demonstrations of these rows as numpy arrays, completions padded to max_new.

    pad_to: number of rows of the result, filled up with rows of length 0.
    """
    prompts = prompt_batch(demos, indices, buckets, pad_to)
    rows = [demos.completions[i] for i in indices]
    longest = max(map(len, rows), default=0)
    if longest > max_new:
        raise ValueError(
            f"a trace of {longest} tokens does not fit max_new={max_new}; use the max_new that the "
            "demonstrations were encoded with"
        )
    tokens_BT, length_B = padded(rows, max_new, len(prompts.ids_P))
    return Sequences(prompts.prompt_PS, prompts.prompt_len_P, tokens_BT, length_B)


def repeat_demos(demos: Demos, weights: Mapping[int, int]) -> Demos:
    """The demonstrations, each as often as the weight of its id says (1 where it has none)."""
    if not weights:
        return demos
    places = [i for i, p in enumerate(demos.problems) for _ in range(weights.get(p.id, 1))]
    pick = lambda rows: tuple(rows[i] for i in places)
    return Demos(pick(demos.problems), pick(demos.tokens), pick(demos.completions), demos.rejected)


def pair_with_demos(s, prompts: Prompts, demos: Demos) -> tuple[Prompts, Demos]:
    """The prompts that have a demonstration, and these demonstrations in the same order.

    s: training.settings.Settings. ValueError where a step cannot pair prompts and demonstrations.
    """
    if s.batch.demos_per_step != s.batch.prompts_per_step:
        raise ValueError(
            f"method {s.method_name!r} pairs every prompt's samples with a demonstration, but "
            f"batch.demos_per_step={s.batch.demos_per_step} is not batch.prompts_per_step="
            f"{s.batch.prompts_per_step}; set one to the other"
        )
    place = {problem.id: i for i, problem in enumerate(demos.problems)}
    kept = [i for i, problem in enumerate(prompts.problems) if problem.id in place]
    if not kept:
        raise ValueError(
            f"method {s.method_name!r} needs demonstrations of the prompts themselves, and task "
            f"{s.task_name!r} has none of them; raise task.demo_size or give task.traces for its "
            "problems"
        )
    if len(kept) < len(prompts.problems):
        logger.warning(
            "%s: %d of %d prompts have a demonstration; the others are left out",
            s.method_name,
            len(kept),
            len(prompts.problems),
        )
    order = [place[prompts.problems[i].id] for i in kept]
    pick = lambda rows, places: tuple(rows[i] for i in places)
    return (
        Prompts(pick(prompts.problems, kept), pick(prompts.tokens, kept)),
        Demos(
            pick(demos.problems, order), pick(demos.tokens, order), pick(demos.completions, order)
        ),
    )
