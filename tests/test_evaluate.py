"""Grading and greedy evaluation on hand-made completions: text, outcomes, padding, transcripts, standard errors."""
from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from bridge_jax import data, evaluate
from bridge_jax.grading.outcome import Outcome
from bridge_jax.rollout import Samples
from bridge_jax.tasks import arithmetic
from bridge_jax.types import Sequences

TOKENIZER = data.CharTokenizer(arithmetic.ALPHABET)
TASK = arithmetic.make(arithmetic.Config(levels=(1,), train_size=5, demo_size=0, eval_size=5))
T = 8


def samples(texts: list[str], cut: tuple[int, ...] = ()) -> Samples:
    """Completions that end by themselves, except for the rows in `cut`, which the limit ends."""
    tokens, length = np.full((len(texts), T), 7, np.int32), np.zeros(len(texts), np.int32)
    for b, text in enumerate(texts):
        ids = TOKENIZER.encode(text) + ([] if b in cut else [0])
        tokens[b, :len(ids)], length[b] = ids, len(ids)
    stopped = np.asarray([b not in cut for b in range(len(texts))])
    seqs = Sequences(np.zeros((len(texts), 4), np.int32), np.full(len(texts), 4, np.int32), tokens, length)
    return Samples(seqs, np.zeros((len(texts), T), np.float32), stopped)


def test_rows_are_graded_against_their_own_prompt():
    """Two prompts, two samples each; the end token is not part of the text, the last token of a cut row is."""
    first, second = TASK.train[:2]
    right = f"#{first.answer}", f"#{second.answer}"
    texts = [right[0], "1+1", right[1] + "9", right[1]]
    graded = evaluate.grade(TASK, TOKENIZER, [first, second], samples(texts, cut=(2, 3)))
    assert graded.texts == tuple(texts)
    assert graded.outcomes == (Outcome.correct, Outcome.no_answer, Outcome.wrong, Outcome.correct)
    assert graded.reward_B.dtype == np.float32 and graded.reward_B.tolist() == [1, 0, 0, 1]


def test_a_grader_that_raises_is_counted_and_does_not_end_the_run():
    def broken(problem, text):
        raise RuntimeError("out of order")

    graded = evaluate.grade(dataclasses.replace(TASK, compare=broken), TOKENIZER, [TASK.train[0]], samples(["#1", "#2"]))
    assert graded.outcomes == (Outcome.grader_error,) * 2 and not graded.reward_B.any()


def test_rates_name_every_outcome():
    rates = evaluate.rates([Outcome.correct, Outcome.wrong, Outcome.wrong, Outcome.timeout])
    assert set(rates) == {f"reward/outcome_{kind}" for kind in Outcome}
    assert rates["reward/outcome_wrong"] == 0.5 and rates["reward/outcome_parse_error"] == 0
    assert sum(rates.values()) == 1
    assert set(evaluate.rates([]).values()) == {0.0}


def test_standard_error():
    """By hand: 3 of 10 -> share 5/14; at 0 of n it is not 0."""
    assert evaluate.binomial_error(3, 10) == pytest.approx(math.sqrt(5 / 14 * 9 / 14 / 14))
    assert evaluate.binomial_error(0, 100) == pytest.approx(math.sqrt(2 / 104 * 102 / 104 / 104))


@pytest.mark.parametrize("rows", [2, 5, 8])
def test_evaluation_covers_every_problem_once(rows):
    """Whatever is generated at once: padding rows are generated, never counted."""
    prompts, _ = data.encode_prompts(TOKENIZER, TASK.splits["held_out"], TASK.messages, (4,))
    wrong = prompts.problems[3].id

    def generate(phi, batch):
        assert phi == "phi" and batch.prompt_PS.shape == (rows, 4)
        known = {problem.id: problem for problem in prompts.problems}
        texts = ["1" if id == wrong else f"#{known[id].answer}" if id >= 0 else "#" for id in batch.ids_P.tolist()]
        return samples(texts)

    metrics, transcripts = evaluate.evaluate(generate, "phi", TASK, TOKENIZER, "held_out", prompts, rows, (4,))
    assert [row["id"] for row in transcripts] == [problem.id for problem in prompts.problems]
    assert metrics["eval/held_out_accuracy"] == 0.8 and metrics["eval/held_out_n"] == 5
    assert metrics["eval/held_out_no_answer"] == 0.2 and metrics["eval/held_out_stopped"] == 1
    assert metrics["eval/held_out_stderr"] == evaluate.binomial_error(4, 5)
    lengths = [2 if row["id"] == wrong else 2 + len(row["answer"]) for row in transcripts]
    assert metrics["eval/held_out_tokens"] == pytest.approx(np.mean(lengths))
    assert {row["split"] for row in transcripts} == {"held_out"} and all(row["stopped"] for row in transcripts)
    assert [row["outcome"] for row in transcripts].count("no_answer") == 1
