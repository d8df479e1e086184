"""Reading and grading of hand-made completions: stop strings, outcomes, deferred comparisons."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from bridge_jax import tasks
from bridge_jax.evaluation import evaluate, reading
from bridge_jax.grading.extract import last_boxed
from bridge_jax.grading.outcome import DeferredComparison, Outcome
from bridge_jax.sampling.sampler import Samples
from bridge_jax.types import Problem, Sequences
from tests import errors
from tests.data.chars import real
from tests.evaluation.completions import TASK, TOKENIZER, samples


def test_rows_are_graded_against_their_own_prompt():
    """Two samples of two prompts; the end token is no part of a text, the last of a cut row is."""
    first, second = TASK.train[:2]
    right = f"#{first.answer}", f"#{second.answer}"
    texts = [right[0], "1+1", right[1] + "9", right[1]]
    graded = reading.grade(TASK, TOKENIZER, [first, second], samples(texts, cut=(2, 3)))
    assert graded.texts == tuple(texts)
    assert graded.outcomes == (Outcome.correct, Outcome.no_answer, Outcome.wrong, Outcome.correct)
    assert graded.reward_B.dtype == np.float32 and graded.reward_B.tolist() == [1, 0, 0, 1]


def test_a_grader_that_raises_is_counted_and_does_not_end_the_run():
    """A comparison that raises is a grader error without reward."""

    def broken(problem, text):
        raise RuntimeError("out of order")

    graded = reading.grade(
        dataclasses.replace(TASK, compare=broken), TOKENIZER, [TASK.train[0]], samples(["#1", "#2"])
    )
    assert graded.outcomes == (Outcome.grader_error,) * 2 and not graded.reward_B.any()


# Stop strings


def stopping(*stop: str):
    return dataclasses.replace(TASK, stop=stop)


def test_a_row_ends_where_its_first_stop_string_does():
    """Tokens, log-probabilities, length and text; rows without a stop string do not change."""
    answer = TASK.train[0].answer
    texts = [f"#{answer};1+#9", f"#{answer}", "1+1=2+3", ";1", f"#{answer}+;"]
    made = samples(texts, cut=(0, 2))
    logp_BT = -np.arange(made.logp_BT.size, dtype=np.float32).reshape(made.logp_BT.shape) - 1
    made = made._replace(logp_BT=logp_BT)
    before = [np.array(leaf) for leaf in jax.tree.leaves(made)]
    graded = reading.grade(stopping(";1", ";"), TOKENIZER, [TASK.train[0]], made)
    assert graded.texts == (f"#{answer}", f"#{answer}", "1+1=2+3", "", f"#{answer}+")
    assert graded.outcomes == ("correct", "correct", "no_answer", "no_answer", "parse_error")
    n = len(answer)
    length = [n + 2, n + 2, 7, 1, n + 3]
    seqs, found = graded.samples.seqs, graded.samples
    assert seqs.length_B.tolist() == length and found.stopped_B.tolist() == [1, 1, 0, 1, 1]
    for b, row in enumerate(length):
        assert (seqs.tokens_BT[b, :row] == made.seqs.tokens_BT[b, :row]).all()
        assert (found.logp_BT[b, :row] == logp_BT[b, :row]).all()
        if b in (0, 3, 4):
            assert not seqs.tokens_BT[b, row:].any() and not found.logp_BT[b, row:].any()
    assert graded.unread == int(made.seqs.length_B.sum()) - sum(length) > 0
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [leaf.dtype for leaf in before]
    for leaf, kept in zip(jax.tree.leaves(made), before, strict=True):
        np.testing.assert_array_equal(leaf, kept)  # of the sampler: not written to


def test_without_stop_strings_nothing_is_touched():
    """Without a stop string in them, samples are returned unchanged."""
    made = samples(["#1;2", "1"])
    for task in (TASK, stopping("##", ";#")):
        assert reading.grade(task, TOKENIZER, [TASK.train[0]], made).samples is made


@pytest.mark.parametrize(
    "stop, end",
    [
        (("#9", "#"), "1+2"),  # "#" ends first
        (("+2#", "2"), "1+"),
        (("2#", "+2#"), "1"),  # both end there: the longer one is the mark
        ((";", "=", "+"), "1"),
        (("1",), ""),
    ],
)
def test_of_several_stop_strings_the_one_that_ends_first_counts(stop, end):
    """A text is cut before the stop string that is completed first."""
    (text,) = reading.grade(stopping(*stop), TOKENIZER, [TASK.train[0]], samples(["1+2#9"])).texts
    assert text == end


def test_a_row_is_cut_the_same_whatever_the_other_rows():
    """So that batches, processes and resumed runs read it alike."""
    texts = ["#1;2", "1", ";#", "1+1;"]
    together = reading.grade(stopping(";"), TOKENIZER, [TASK.train[0]], samples(texts))
    for b, text in enumerate(texts):
        alone = reading.grade(stopping(";"), TOKENIZER, [TASK.train[0]], samples([text]))
        pick = lambda graded, b: [leaf[b] for leaf in jax.tree.leaves(graded.samples)]
        for mine, theirs in zip(pick(alone, 0), pick(together, b), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert alone.texts[0] == together.texts[b]


@pytest.mark.parametrize("name", ["qwen3", "llama3_1"])
def test_the_last_token_is_the_first_whose_text_holds_the_stop_string(name):
    """Real tokens begin and end anywhere in a stop string; some are parts of characters."""
    tokenizer, stop = real(name), ("\nQuestion:", "问题：", "<|user|>", " 🤔")
    rng = np.random.default_rng(0)
    pieces = [
        "So x² = 4.",
        " The answer",
        "\n",
        "\n\n",
        "Question",
        ": 3",
        "问题",
        "：",
        " 🤔",
        "é",
        "<|user|>",
        " 12",
        "\\boxed{4}",
    ]
    cut = 0
    for _ in range(60):
        ids = tokenizer.encode("".join(rng.choice(pieces, 12)))
        holds = [
            any(mark in tokenizer.decode(ids[:n]) for mark in stop) for n in range(len(ids) + 1)
        ]
        if holds[-1]:
            cut += 1
            assert reading.tokens_to_stop(tokenizer, np.asarray(ids), stop) == holds.index(True)
    assert cut > 20


def test_what_runs_on_after_its_answer_keeps_it():
    """The box of the next question is not read, neither in training nor in an evaluation."""
    tokenizer = real("qwen3")
    problem = Problem(1, "2+2?", "4", "", 0)
    task = dataclasses.replace(
        TASK, extract=last_boxed, compare=tasks.compare_by_rule, stop=("\nQuestion:",)
    )
    ran_on = " It is \\boxed{4}.\n\nQuestion: 3+3?\nPlease reason.\nAnswer: \\boxed{6}"
    ids = np.asarray([tokenizer.encode(ran_on)], np.int32)
    B, n = ids.shape
    seqs = Sequences(
        np.zeros((1, 4), np.int32), np.full(1, 4, np.int32), ids, np.full(1, n, np.int32)
    )
    made = Samples(seqs, np.zeros((B, n), np.float32), np.zeros(1, bool))
    graded = reading.grade(task, tokenizer, [problem], made)
    assert graded.outcomes == ("correct",) and graded.texts == (" It is \\boxed{4}.\n",)
    free = reading.grade(dataclasses.replace(task, stop=()), tokenizer, [problem], made)
    assert free.outcomes == ("wrong",)
    (row,) = evaluate.transcripts_of(evaluate.Grading(task, tokenizer), [problem], made, [0])
    assert (row["outcome"], row["given"], row["text"]) == ("correct", "4", graded.texts[0])
    assert row["stopped"] and row["tokens"] == graded.samples.seqs.length_B[0] < n


def test_rates_name_every_outcome():
    """Rates name every outcome and sum to one."""
    rates = reading.rates([Outcome.correct, Outcome.wrong, Outcome.wrong, Outcome.timeout])
    assert set(rates) == {f"reward/outcome_{kind}" for kind in Outcome}
    assert rates["reward/outcome_wrong"] == 0.5 and rates["reward/outcome_parse_error"] == 0
    assert sum(rates.values()) == 1
    assert set(reading.rates([]).values()) == {0.0}


class FakePool:
    """Finds every claim to be a timeout, and remembers them."""

    def __init__(self):
        self.calls = []

    def grade(self, claims):
        self.calls.append(claims)
        return [Outcome.timeout] * len(claims)


def test_claims_go_to_the_pool_in_one_call_each_once():
    """The pool gets all deferred comparisons in one call, each once."""
    compare = lambda problem, answer: (
        DeferredComparison(problem.answer, answer) if len(answer) > 1 else Outcome.wrong
    )
    task, pool = dataclasses.replace(TASK, compare=compare), FakePool()
    problems, texts = [TASK.train[0]] * 3, ["#12", "#3", "#45;6"]
    strict, lenient = reading.readings(task, problems, texts, (task.extract, task.lenient), pool)
    assert [r.outcome for r in strict] == ["timeout", "wrong", "timeout"]
    assert [r.outcome for r in lenient] == ["timeout", "wrong", "wrong"]
    assert [[claim.answer for claim in call] for call in pool.calls] == [["12", "45;6"]]
    graded = reading.grade(task, TOKENIZER, problems[:1], samples(["#12", "#3"]), pool)
    assert graded.outcomes == (Outcome.timeout, Outcome.wrong)
    with errors.raises(ValueError, "'arithmetic'", "algebra"):
        reading.grade(task, TOKENIZER, problems[:1], samples(["#12", "#3"]))


def test_an_answer_may_spell_the_name_of_an_outcome():
    """An answer that spells an outcome is still compared."""
    compare = lambda problem, answer: Outcome.correct
    task = dataclasses.replace(TASK, extract=lambda text: "grader_error", compare=compare)
    (strict,) = reading.readings(task, [TASK.train[0]], ["x"], (task.extract,))
    assert strict == [reading.Reading("grader_error", Outcome.correct)]


def test_a_reader_that_raises_is_a_grader_error_of_its_own_reading():
    """A reader that raises is a grader error in its own reading alone."""

    def broken(text):
        raise KeyError(text)

    task = dataclasses.replace(TASK, lenient=broken)
    strict, lenient = reading.readings(
        task, [TASK.train[0]], [f"#{TASK.train[0].answer}"], (task.extract, task.lenient)
    )
    assert strict[0].outcome is Outcome.correct and lenient[0] == (None, Outcome.grader_error)
