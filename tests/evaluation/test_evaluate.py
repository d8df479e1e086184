"""Transcripts and metrics of a split from hand-made completions: padding, order, both readings."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bridge_jax.data.batches import Prompts, encode_prompts
from bridge_jax.evaluation import evaluate, scores
from bridge_jax.grading.outcome import Outcome
from tests.evaluation.completions import TASK, TOKENIZER, samples

GRADING = evaluate.Grading(TASK, TOKENIZER)


@pytest.mark.parametrize("rows", [2, 5, 8])
def test_evaluation_covers_every_problem_once(rows):
    """Whatever is generated at once: padding rows are generated, never counted."""
    prompts, _ = encode_prompts(TOKENIZER, TASK.splits["held_out"], TASK.messages, (4,))
    wrong = prompts.problems[3].id

    def generate(batch):
        assert batch.prompt_PS.shape == (rows, 4)
        known = {problem.id: problem for problem in prompts.problems}
        # rows that fill up the batch are copies of its last prompt, which end when it does
        assert -1 not in batch.ids_P
        return samples(
            ["1" if id == wrong else f"#{known[id].answer}" for id in batch.ids_P.tolist()]
        )

    metrics, transcripts = evaluate.evaluate(generate, GRADING, "held_out", prompts, rows, (4,))
    assert [row["id"] for row in transcripts] == [problem.id for problem in prompts.problems]
    assert metrics["eval/held_out_accuracy"] == 0.8 and metrics["eval/held_out_n"] == 5
    assert metrics["eval/held_out_no_answer"] == 0.2 and metrics["eval/held_out_stopped"] == 1
    assert metrics["eval/held_out_stderr"] == scores.binomial_error(4, 5)
    assert metrics["eval/held_out_lenient"] == 0.8
    lengths = [2 if row["id"] == wrong else 2 + len(row["answer"]) for row in transcripts]
    assert metrics["eval/held_out_tokens"] == pytest.approx(np.mean(lengths))
    assert {row["split"] for row in transcripts} == {"held_out"} and all(
        row["stopped"] for row in transcripts
    )
    assert [row["outcome"] for row in transcripts].count("no_answer") == 1


def test_prompts_that_were_too_long_count_as_not_answered():
    """Prompts that were too long count in the denominator as unanswered."""
    prompts, _ = encode_prompts(TOKENIZER, TASK.splits["held_out"], TASK.messages, (4,))
    known = {problem.id: problem for problem in prompts.problems}
    generate = lambda batch: samples([f"#{known[id].answer}" for id in batch.ids_P.tolist()])
    metrics, transcripts = evaluate.evaluate(
        generate, GRADING, "held_out", prompts, 5, (4,), too_long=3
    )
    assert len(transcripts) == 5 and metrics["eval/held_out_n"] == 8
    assert (
        metrics["eval/held_out_accuracy"] == 5 / 8 and metrics["eval/held_out_no_answer"] == 3 / 8
    )
    assert metrics["eval/held_out_stopped"] == 1  # of the prompts that fit


def test_both_readings_and_their_answers():
    """Without a mark, strict reads no answer and lenient reads the last number."""
    problem = TASK.train[0]
    prompts = Prompts((problem,), (np.asarray(TOKENIZER.encode(problem.question), np.int32),))
    texts = [problem.answer, f"#{problem.answer}", f"#{problem.answer};99"]
    (row,) = evaluate.transcribe(
        lambda batch: samples(texts, cut=(2,)), GRADING, prompts, 1, (4,), M=3
    )
    assert [(r["given"], r["outcome"]) for r in row] == [
        (None, "no_answer"),
        (problem.answer, "correct"),
        (f"{problem.answer};99", "parse_error"),
    ]
    assert [(r["given_lenient"], r["outcome_lenient"]) for r in row] == [
        (problem.answer, "correct"),
        (problem.answer, "correct"),
        ("99", "wrong"),
    ]
    assert [r["sample"] for r in row] == [0, 1, 2] and {r["id"] for r in row} == {problem.id}
    assert [r["stopped"] for r in row] == [True, True, False]
    assert [r["tokens"] for r in row] == [
        len(problem.answer) + 1,
        len(problem.answer) + 2,
        len(problem.answer) + 4,
    ]


def test_short_prompts_come_first_and_grading_overlaps_generation():
    """A batch is generated before the last one is graded, in the smallest bucket that fits."""
    questions = ["1+1=", "10+20+30=", "2+2=", "100+200+300+400=", "20+30+40="]
    problems = tuple(
        TASK.train[0]._replace(id=i, question=question) for i, question in enumerate(questions)
    )
    prompts, _ = encode_prompts(TOKENIZER, problems, TASK.messages, (4, 9, 16))
    events = []

    def generate(batch):
        events.append(("generate", batch.ids_P.tolist(), batch.prompt_PS.shape[1]))
        return samples(["#1", "#2"])

    def compare(problem, answer):
        events.append(("grade", problem.id))
        return Outcome.wrong

    task = dataclasses.replace(TASK, compare=compare, lenient=lambda text: None)
    batches = list(
        evaluate.transcribe(generate, evaluate.Grading(task, TOKENIZER), prompts, 2, (4, 9, 16))
    )
    assert events == [
        ("generate", [0, 2], 4),
        ("generate", [1, 4], 9),
        ("grade", 0),
        ("grade", 2),
        ("generate", [3, 3], 16),
        ("grade", 1),
        ("grade", 4),
        ("grade", 3),
    ]
    assert [[row["id"] for row in batch] for batch in batches] == [[0, 2], [1, 4], [3]]
