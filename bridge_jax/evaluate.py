"""Generate and grade: the one path by which completions become outcomes, in training and in evaluation alike."""
from __future__ import annotations

import collections
import math
from typing import Callable, Iterator, NamedTuple

import numpy as np

from bridge_jax import data
from bridge_jax.grading.outcome import Claim, Outcome
from bridge_jax.grading.pool import Pool
from bridge_jax.rollout import Samples
from bridge_jax.types import Problem, Task, Tree


class Graded(NamedTuple):
    """Completions on the host, row b of prompt b // M, with what became of each."""
    samples: Samples             # numpy arrays
    texts: tuple[str, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def reward_B(self) -> np.ndarray:
        """1.0 for a correct row, else 0.0, float32."""
        return np.asarray([outcome is Outcome.correct for outcome in self.outcomes], np.float32)


def grade(task: Task, tokenizer, problems: list[Problem], samples: Samples, pool: Pool | None = None,
          lenient: bool = False) -> Graded:
    """Decode and grade; an exception of the task's grader is the row's grader_error, never the end of the run.

    lenient: read answers with task.lenient. A task whose compare makes Claims needs a pool (ValueError without).
    """
    M = len(samples.stopped_B) // len(problems)
    texts = tuple(tokenizer.decode(row[:length - stopped]) for row, length, stopped
                  in zip(samples.seqs.tokens_BT, samples.seqs.length_B, samples.stopped_B.astype(int)))
    extract = task.lenient if lenient else task.extract

    def judge(problem: Problem, text: str) -> Outcome | Claim:
        try:
            answer = extract(text)
            return Outcome.no_answer if answer is None else task.compare(problem, answer)
        except Exception:  # counted and logged as a rate: a broken grader must not look like a bad model
            return Outcome.grader_error

    outcomes = [judge(problems[b // M], text) for b, text in enumerate(texts)]
    claims = {b: outcome for b, outcome in enumerate(outcomes) if isinstance(outcome, Claim)}
    if claims and pool is None:
        raise ValueError(f"task {task.name!r} grades with symbolic algebra; give evaluate.grade a grading.pool.Pool")
    if claims:
        for b, outcome in zip(claims, pool.grade(list(claims.values()))):
            outcomes[b] = outcome
    return Graded(samples, texts, tuple(outcomes))


def rates(outcomes) -> dict[str, float]:
    """Share of each outcome, all of them named, under reward/outcome_*."""
    counts, total = collections.Counter(outcomes), max(1, len(outcomes))
    return {f"reward/outcome_{kind}": counts[kind] / total for kind in Outcome}


def binomial_error(successes: float, n: int) -> float:
    """Standard error of a share of n independent problems, by Agresti and Coull's shrunken share: never 0 at 0 or n."""
    share = (successes + 2) / (n + 4)
    return math.sqrt(share * (1 - share) / (n + 4))


def evaluate(generate: Callable, phi: Tree, task: Task, tokenizer, split: str, prompts: data.Prompts, rows: int,
             buckets: tuple[int, ...]) -> tuple[dict[str, float], Iterator[dict]]:
    """Greedy pass@1 on the prompts of one split, `rows` at a time: metrics eval/{split}_*, and the transcripts.

    generate(phi, PromptBatch) -> Samples on the host, one completion per prompt. Problems whose prompt was too long
    are not in `prompts`: the caller has reported them.
    """
    transcripts = []
    for start in range(0, len(prompts.problems), rows):
        chosen = range(start, min(start + rows, len(prompts.problems)))
        samples = generate(phi, data.prompt_batch(prompts, chosen, buckets, pad_to=rows))
        problems = [prompts.problems[i] for i in chosen]
        samples = samples._replace(
            seqs=samples.seqs.replace(tokens_BT=samples.seqs.tokens_BT[:len(problems)],
                                      length_B=samples.seqs.length_B[:len(problems)]),
            stopped_B=samples.stopped_B[:len(problems)])
        graded = grade(task, tokenizer, problems, samples)
        for problem, text, outcome, length, stopped in zip(problems, graded.texts, graded.outcomes,
                                                           samples.seqs.length_B, samples.stopped_B):
            transcripts.append({"split": split, "id": problem.id, "level": problem.level, "question": problem.question,
                                "answer": problem.answer, "text": text, "outcome": str(outcome),
                                "tokens": int(length), "stopped": bool(stopped)})
    n, right = len(transcripts), sum(row["outcome"] == Outcome.correct for row in transcripts)
    mean = lambda key: sum(row[key] for row in transcripts) / n
    silent = sum(row["outcome"] == Outcome.no_answer for row in transcripts)
    metrics = {"accuracy": right / n, "stderr": binomial_error(right, n), "n": n, "tokens": mean("tokens"),
               "stopped": mean("stopped"), "no_answer": silent / n}
    return {f"eval/{split}_{key}": value for key, value in metrics.items()}, transcripts
