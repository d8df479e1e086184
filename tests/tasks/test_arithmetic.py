"""The generated task: disjoint splits, stable ids, exact corruption, strict grading."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_jax import tasks
from bridge_jax.grading.extract import last_boxed
from bridge_jax.grading.outcome import Outcome
from bridge_jax.tasks import arithmetic
from bridge_jax.tasks.arithmetic import LEVELS, Config, make
from bridge_jax.types import Problem
from tests import errors

SMALL = Config(levels=(1, 4), hard_levels=(6,), train_size=60, demo_size=40, eval_size=20)


def judged(answer, gold):
    """Outcome of an extracted answer."""
    return (
        Outcome.no_answer
        if answer is None
        else arithmetic.compare(Problem(1, "q", gold, "", 1), answer)
    )


def grade(task, problem):
    """Outcome of the problem's own solution."""
    return task.compare(problem, task.extract(problem.solution))


def questions(problems):
    return {problem.question for problem in problems}


# Generation


@pytest.mark.parametrize("style", arithmetic.STYLES)
def test_examples_of_both_styles(style):
    """Questions, solutions and corrupted solutions have their exact text in both styles."""
    question = arithmetic.question_of((12, 7, -5), style)
    solution = arithmetic.solution_of((12, 7, -5), style)
    wrong = arithmetic.solution_of((12, 7, -5), style, 1, 10)
    if style == "chat":
        assert question == "What is 12 + 7 - 5?"
        assert solution == "12 + 7 = 19\n19 - 5 = 14\nThe answer is \\boxed{14}."
        assert wrong == "12 + 7 = 29\n29 - 5 = 24\nThe answer is \\boxed{24}."
    else:
        assert question == "12+7-5="
        assert solution == "12+7=19;19-5=14;#14"
        assert wrong == "12+7=29;29-5=24;#24"


def check_trace(problem, negative):
    """Re-does a compact trace by hand: (all steps right, chained, well formed)."""
    *steps, final = problem.solution.split(";")
    total, right = None, True
    for step in steps:
        left, sign, right_term, result = re.fullmatch(r"(-?\d+)([+-])(\d+)=(-?\d+)", step).groups()
        assert total is None or left == total
        right &= int(left) + int(sign + right_term) == int(result)
        assert negative or int(result) >= 0
        total = result
    assert final == "#" + total
    return right


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("negative", [False, True])
def test_every_level_has_right_problems(level, negative):
    """Problems of a level have its digits and terms, right answers and right steps."""
    task = make(
        Config(levels=(level,), train_size=30, demo_size=30, eval_size=20, negative=negative)
    )
    digits, terms = LEVELS[level]
    lowest = 0
    for problem in task.demos + task.splits["held_out"]:
        numbers = re.findall(r"\d+", problem.question)
        assert len(numbers) == terms and all(
            len(number) == digits and number[0] != "0" for number in numbers
        )
        expression = [int(x) for x in re.findall(r"[+-]?\d+", problem.question)]
        assert problem.answer == str(sum(expression)) and problem.level == level
        assert problem.id == tasks.question_id(problem.question)
        assert set(problem.question + problem.solution) <= set(arithmetic.ALPHABET)
        assert check_trace(problem, negative)
        lowest = min(lowest, *itertools.accumulate(expression))
    assert (lowest < 0) == negative
    assert all(problem.solution == "" for problem in task.train)


def test_numbering_reaches_every_expression_once():
    """The numbers of a level name each of its expressions once."""
    everything = {arithmetic.terms_at(1, number) for number in range(9 * 9 * 2)}
    assert everything == {
        (a, sign * b) for a in range(1, 10) for b in range(1, 10) for sign in (1, -1)
    }


@pytest.mark.parametrize("size", [7, 2**16 + 1])
def test_shuffled_repeats_nothing(size):
    """A shuffle repeats no number and is the same each time."""
    numbers = list(itertools.islice(arithmetic.shuffled(size, "a"), 5000))
    assert len(set(numbers)) == len(numbers) == min(size, 5000) and set(numbers) <= set(range(size))
    assert (
        numbers == list(itertools.islice(arithmetic.shuffled(size, "a"), 5000)) != sorted(numbers)
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6), st.integers(0, 300))
def test_shares_are_fair_and_only_grow(weights, size):
    """Shares sum to the size, follow the weights, and never shrink as the size grows."""
    counts = arithmetic.share_out(size, tuple(weights))
    assert sum(counts) == size
    assert all(
        abs(count - size * weight / sum(weights)) < len(weights)
        for count, weight in zip(counts, weights)
    )
    assert all(
        more >= less for more, less in zip(arithmetic.share_out(size + 1, tuple(weights)), counts)
    )


def test_weights_set_the_mixture():
    """Weights set how many training problems each level has."""
    task = make(
        dataclasses.replace(SMALL, levels=(4, 6), hard_levels=(), weights=(3.0, 1.0), train_size=80)
    )
    assert [sum(problem.level == level for problem in task.train) for level in (4, 6)] == [60, 20]


@pytest.mark.parametrize("style", arithmetic.STYLES)
def test_no_training_question_is_ever_held_out(style):
    """Whatever sizes and seeds: the union over several tasks of each side."""
    seen, held_out = set(), set()
    for seed, size in itertools.product(range(3), (20, 400)):
        task = make(
            Config(
                levels=(1, 3),
                hard_levels=(3, 4),
                train_size=size,
                demo_size=size,
                eval_size=size,
                seed=seed,
                style=style,
            )
        )
        seen |= questions(task.train) | questions(task.demos)
        held_out |= questions(task.splits["held_out"]) | questions(task.splits["hard"])
        assert list(task.splits) == ["held_out", "hard"]
        assert {problem.level for problem in task.splits["hard"]} == {3, 4}
        for rows in (task.train, task.demos, *task.splits.values()):
            assert len({problem.id for problem in rows}) == len(questions(rows)) == len(rows)
    assert seen and held_out and not seen & held_out


def test_ids_and_questions_do_not_depend_on_sizes():
    """A larger task contains every problem of a smaller one."""
    small, large = (
        make(SMALL),
        make(dataclasses.replace(SMALL, train_size=120, demo_size=50, eval_size=30)),
    )
    assert small.demos != large.demos and questions(small.demos) <= questions(small.train)
    for less, more in (
        (small.train, large.train),
        (small.demos, large.demos),
        *zip(small.splits.values(), large.splits.values()),
    ):
        assert set(less) <= set(more) and len(less) < len(more)
    assert make(SMALL).train == small.train


def test_the_seed_moves_training_but_not_the_splits():
    """Another seed gives other training problems and the same held-out splits."""
    first, other = make(SMALL), make(dataclasses.replace(SMALL, seed=1))
    assert first.train != other.train and first.demos != other.demos
    assert first.splits == other.splits


def test_two_questions_with_one_id_never_meet(monkeypatch):
    """With ids of 7 bits they collide all the time; the later question is left out, in every
    list.
    """
    monkeypatch.setattr(
        arithmetic, "question_id", lambda question: tasks.question_id(question) % 128
    )
    task = make(dataclasses.replace(SMALL, eval_size=8))
    named = {}
    for problem in itertools.chain(task.train, task.demos, *task.splits.values()):
        assert named.setdefault(problem.id, problem.question) == problem.question


def test_an_exhausted_level_ends_the_list_with_a_warning(caplog):
    """If more problems are asked than exist, all are taken with a warning."""
    with caplog.at_level(logging.WARNING):
        task = make(Config(levels=(1,), train_size=5000, demo_size=3, eval_size=5000))
    every = {
        arithmetic.question_of((a, sign * b), "compact")
        for a in range(1, 10)
        for b in range(1, 10)
        for sign in (1, -1)
        if a + sign * b >= 0
    }
    assert questions(task.train) | questions(task.splits["held_out"]) == every
    assert f"5000 training questions asked, {len(task.train)} exist" in caplog.text
    assert f"5000 held-out questions asked, {len(task.splits['held_out'])} exist" in caplog.text


@pytest.mark.parametrize("style", arithmetic.STYLES)
@pytest.mark.parametrize("share, wrong", [(0.0, 0), (0.25, 10), (0.34, 14), (1.0, 40)])
@pytest.mark.parametrize("negative", [False, True])
def test_exactly_the_corrupt_share_grades_wrong(style, share, wrong, negative):
    """The corrupt share of demonstrations grades wrong, and all else is as without it."""
    clean = make(dataclasses.replace(SMALL, style=style, negative=negative))
    task = make(dataclasses.replace(SMALL, style=style, negative=negative, corrupt=share))
    outcomes = [grade(task, problem) for problem in task.demos]
    assert outcomes.count(Outcome.wrong) == wrong and outcomes.count(Outcome.correct) == 40 - wrong
    assert [p._replace(solution="") for p in task.demos] == [
        p._replace(solution="") for p in clean.demos
    ]
    assert all(
        p in clean.demos for p, outcome in zip(task.demos, outcomes) if outcome == Outcome.correct
    )
    assert task.splits == clean.splits
    if style == "compact":
        assert [check_trace(problem, negative) for problem in task.demos].count(False) == wrong


@pytest.mark.parametrize("style, last", [("compact", "#"), ("chat", "The answer is")])
def test_the_direct_share_states_answers_alone(style, last):
    """So many demonstrations, spread over all, are their last part alone, which is still right;
    corrupt ones stay wrong.
    """
    plain, direct = (
        make(dataclasses.replace(SMALL, style=style, direct=share)) for share in (0.0, 0.25)
    )
    pairs = list(zip(plain.demos, direct.demos, strict=True))
    short = [new for old, new in pairs if new.solution != old.solution]
    assert len(short) == round(0.25 * len(pairs))
    assert all(
        new.solution.startswith(last) and old.solution.endswith(new.solution)
        for old, new in pairs
        if new in short
    )
    assert all(
        direct.compare(problem, direct.extract(problem.solution)) is Outcome.correct
        for problem in short
    )
    wrong = make(dataclasses.replace(SMALL, style=style, direct=1.0, corrupt=1.0))
    assert all(
        wrong.compare(problem, wrong.extract(problem.solution)) is Outcome.wrong
        for problem in wrong.demos
    )


def test_more_corruption_keeps_what_was_corrupt():
    """A larger corrupt share contains the demonstrations of a smaller one."""
    quarter, half = (make(dataclasses.replace(SMALL, corrupt=share)) for share in (0.25, 0.5))
    wrong = [{p for p in task.demos if grade(task, p) == Outcome.wrong} for task in (quarter, half)]
    assert wrong[0] < wrong[1]


def test_clean_solutions_grade_correct_on_held_out():
    """Clean solutions of held-out problems grade correct in every style."""
    for style in arithmetic.STYLES:
        task = make(dataclasses.replace(SMALL, style=style))
        for problem in itertools.chain(*task.splits.values()):
            assert grade(task, problem) == Outcome.correct


def test_messages():
    """Prompts have the system and user turns of their style, and a task pickles."""
    problem = Problem(1, "What is 1 + 2?", "3", "", 1)
    task = make(dataclasses.replace(SMALL, style="chat", system="Be brief."))
    assert [m["role"] for m in task.messages(problem)] == ["system", "user"]
    assert task.messages(problem)[1]["content"].startswith(
        "What is 1 + 2?\nPlease reason step by step"
    )
    assert make(SMALL).messages(problem) == [{"role": "user", "content": "What is 1 + 2?"}]
    pickle.dumps(task)  # a grading process may be given the task


# Grading

CHAT = {
    r"\boxed{14}": "correct",
    r"\boxed{ 14 }": "correct",
    r"\boxed{$14$}": "correct",
    r"\boxed{+14}": "correct",
    r"\boxed{14.}": "correct",
    r"\boxed{014}": "correct",
    r"\boxed{$14.$}": "correct",
    r"\boxed{3} no, \boxed{14}": "correct",
    r"\boxed{15}": "wrong",
    r"\boxed{-14}": "wrong",
    r"\boxed{14} no, \boxed{3}": "wrong",
    r"\boxed{1,014}": "wrong",
    "the answer is 14": "no_answer",
    "14": "no_answer",
    "": "no_answer",
    "#14": "no_answer",
    r"<think>\boxed{14}</think> done": "no_answer",
    r"\boxed{}": "no_answer",
    r"\boxed{1 4}": "parse_error",
    r"\boxed{14.0}": "parse_error",
    r"\boxed{7+7}": "parse_error",
    r"\boxed{1,4}": "parse_error",
    r"\boxed{--14}": "parse_error",
    r"\boxed{+-14}": "parse_error",
    r"\boxed{0x0e}": "parse_error",
    r"\boxed{1_4}": "parse_error",
    r"\boxed{14}".replace("14", "\u0661\u0664"): "parse_error",  # digits of another script
    r"\boxed{" + "0" * 29 + "14}": "parse_error",
    r"\boxed{" + "9" * 10**6 + "}": "parse_error",
    r"\boxed{__import__('os')}": "parse_error",
}


@pytest.mark.parametrize("text", CHAT, ids=range(len(CHAT)))
def test_chat_grading(text):
    """Boxed answers of the chat style get their outcome."""
    assert judged(last_boxed(text), "14") == CHAT[text]


@pytest.mark.parametrize(
    "gold, text, outcome",
    [
        ("14", "7+7=14;#14", "correct"),
        ("-3", "#-3", "correct"),
        ("0", "#-0", "correct"),
        ("1234", "#1,234", "correct"),
        ("14", "#3;#14", "correct"),
        ("14", "#14;#3", "wrong"),
        ("14", "#14;", "parse_error"),
        ("14", "#", "parse_error"),
        ("14", "7+7=14;", "no_answer"),
        ("14", r"\boxed{14}", "no_answer"),
        ("14", "", "no_answer"),
    ],
)
def test_compact_grading(gold, text, outcome):
    """Answers after the last mark of the compact style get their outcome."""
    assert judged(arithmetic.after_mark(text), gold) == outcome


# What is invalid


@pytest.mark.parametrize(
    "change, complaint",
    [
        (dict(levels=(1, 99)), ("task.levels=(1, 99)", "8")),
        (dict(levels=(1, 1)), ("task.levels=(1, 1)", "distinct")),
        (dict(hard_levels=(0,)), "task.hard_levels=(0,)"),
        (dict(levels=()), "task.levels"),
        (dict(weights=(1.0,)), "task.weights=(1.0,)"),
        (dict(weights=(1.0, 0.0)), ("task.weights=(1.0, 0.0)", "positive")),
        (dict(train_size=0), ("task.train_size=0", "at least 1")),
        (dict(eval_size=0), "task.eval_size=0"),
        (dict(demo_size=-1), "task.demo_size=-1"),
        (dict(corrupt=1.1), ("task.corrupt=1.1", "0 to 1")),
        (dict(corrupt=-0.1), "task.corrupt=-0.1"),
        (dict(direct=1.5), ("task.direct=1.5", "0 to 1")),
        (dict(corrupt=float("nan")), "task.corrupt=nan"),
        (dict(style="chatty"), ("task.style='chatty'", "chat, compact")),
        (dict(style="compact", system="x"), ("task.system='x'", "task.style='chat'")),
        (dict(style="compact", shots=1), ("task.shots=1", "task.style='chat'")),
        (dict(style="chat", shots=3), ("task.shots=3", "0 to 2")),
    ],
)
def test_bad_settings_say_what_is_allowed(change, complaint):
    """An invalid setting is an error that names it and what is allowed."""
    with errors.raises(ValueError, complaint):
        make(dataclasses.replace(SMALL, **change))


def test_an_empty_split_is_refused(monkeypatch):
    """A split that would be empty is refused."""
    monkeypatch.setattr(arithmetic, "is_held_out", lambda id: False)
    with errors.raises(ValueError, "held_out"):
        make(Config(levels=(1,)))


def test_a_task_without_demos():
    """A task may have no demonstrations."""
    task = make(dataclasses.replace(SMALL, demo_size=0))
    assert task.demos == () and task.train


def test_worked_examples_are_earlier_turns_and_never_asked():
    """Worked examples are turns before the question and no problem of the task."""
    plain, shown = (
        make(Config(style="chat", levels=(1,), shots=shots, train_size=200, demo_size=200))
        for shots in (0, 1)
    )
    turns = shown.messages(shown.train[0])
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[0]["content"].startswith("What is 3 + 4?") and turns[1]["content"].endswith(
        "\\boxed{7}."
    )
    assert turns[2] == plain.messages(shown.train[0])[0]
    asked = lambda task: {
        p.question for rows in (task.train, task.demos, *task.splits.values()) for p in rows
    }
    assert asked(plain) - asked(shown) == {"What is 3 + 4?"}
