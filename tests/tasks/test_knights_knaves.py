"""Every puzzle has one solution, by a solver that reads the English; splits never meet; answers are
read with care.
"""

from __future__ import annotations

import itertools
import re

import pytest

from bridge_jax import tasks
from bridge_jax.grading.outcome import Outcome
from bridge_jax.tasks import knights_knaves
from bridge_jax.types import Problem
from tests import errors

SMALL = knights_knaves.Config(train_size=60, demo_size=40, eval_size=20)


@pytest.fixture(scope="module")
def task():
    return knights_knaves.make(SMALL)


def solve(question: str) -> list[dict[str, bool]]:
    """All assignments (name -> knight) that fit the text of a puzzle, from its words alone."""
    said = re.findall(r'(\w+) says: "([^"]+)"', question)
    names, fits = [name for name, _ in said], []
    for kinds in itertools.product((True, False), repeat=len(names)):
        knight = dict(zip(names, kinds))

        def holds(clause: str, speaker: str) -> bool:
            if found := re.fullmatch(r"(\w+) and I are of the same kind", clause):
                return knight[found[1]] == knight[speaker]
            name, kind = re.fullmatch(r"(\w+) (?:is|am) a (knight|knave)", clause).groups()
            return knight[speaker if name == "I" else name] == (kind == "knight")

        def true(text: str, speaker: str) -> bool:
            for word, join in ((" or ", any), (" and ", all)):
                parts = re.split(rf"{word}(?!I are)", text)
                if len(parts) == 2:
                    return join(holds(part, speaker) for part in parts)
            return holds(text, speaker)

        if all(true(text.rstrip("."), name) == knight[name] for name, text in said):
            fits.append(knight)
    return fits


def test_one_solution_and_it_is_the_answer(task):
    """Every puzzle has exactly one solution, and it is the answer."""
    for problem in (*task.train, *itertools.chain(*task.splits.values())):
        (fit,) = solve(problem.question)
        wanted = ", ".join(
            f"{name} is a {'knight' if knight else 'knave'}" for name, knight in fit.items()
        )
        assert problem.answer == wanted and len(fit) == problem.level


def test_sizes_levels_and_splits(task):
    """Sizes and levels are as asked; held-out puzzles stay so whatever size and seed."""
    assert (len(task.train), len(task.demos), {k: len(v) for k, v in task.splits.items()}) == (
        60,
        40,
        {"held_out": 20, "hard": 20},
    )
    assert [p.level for p in task.train[:4]] == [3, 4, 3, 4] and {
        p.level for p in task.splits["hard"]
    } == {5, 6}
    train, held = {p.id for p in task.train}, {p.id for p in itertools.chain(*task.splits.values())}
    assert len(train) == 60 and not train & held
    other = knights_knaves.make(
        knights_knaves.Config(train_size=300, demo_size=0, eval_size=20, seed=5)
    )
    assert not {p.id for p in other.train} & held, "held out for ever, whatever size and seed"
    assert other.splits["held_out"] == task.splits["held_out"]
    assert all(p.solution == "" for p in task.train)


def test_demonstrations_grade_correct(task):
    """Every demonstration grades correct and argues by a supposition."""
    for problem in task.demos:
        assert task.compare(problem, task.extract(problem.solution)) is Outcome.correct
        assert problem.solution.count("Suppose") >= 1


PUZZLE = Problem(1, "?", "Ann is a knight, Bob is a knave, Cid is a knave", "", 3)


@pytest.mark.parametrize(
    "answer, outcome",
    [
        ("Ann is a knight, Bob is a knave, Cid is a knave", "correct"),
        ("Cid: knave; Bob: knave; Ann: knight", "correct"),
        (r"\text{Ann is a knight}, \text{Bob is a knave}, \text{Cid is a knave}", "correct"),
        ("Ann is a knight, Bob is a knave", "wrong"),
        ("Ann is a knight, Bob is a knave, Cid is a knight", "wrong"),
        ("Ann is a knight, Bob is a knave, Cid is a knave, Dan is a knave", "wrong"),
        ("Ann is a knight, Ann is a knave, Bob is a knave, Cid is a knave", "parse_error"),
        ("Ann is not a knave, Bob is a knave, Cid is a knave", "parse_error"),
        ("either Ann is a knight, or Bob is a knave, Cid is a knave", "parse_error"),
        ("42", "parse_error"),
        ("", "parse_error"),
        ("knight knave knave", "parse_error"),
    ],
)
def test_answers(answer, outcome):
    """Answers that name each person's kind once get their outcome; all others are none."""
    assert knights_knaves.compare(PUZZLE, answer) == outcome


def test_lenient_reading_takes_the_last_line_that_says_something():
    """Without a box, the last line that names kinds is the answer."""
    text = (
        "Suppose Ann is a knave.\nSo Ann is a knight, Bob is a knave, Cid is a knave\nThat is all."
    )
    assert knights_knaves.lenient(text) == "So Ann is a knight, Bob is a knave, Cid is a knave"
    assert (
        knights_knaves.lenient("No idea.") is None
        and knights_knaves.lenient(text + r" \boxed{7}") == "7"
    )


@pytest.mark.parametrize(
    "given, message",
    [
        (
            dict(levels=(2,)),
            ("task.levels=(2,)", "3 to 7"),
        ),
        (dict(levels=()), "task.levels"),
        (dict(hard_levels=(8,)), "task.hard_levels"),
        (dict(train_size=0), ("task.train_size=0", "at least 1")),
        (dict(prompt="chat"), ("task.prompt='chat'", "boxed, plain")),
        pytest.param(
            dict(levels=(3,), train_size=5000),
            ("5000", "3 people"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_refused(given, message):
    """An invalid setting is an error that names it and what is allowed."""
    with errors.raises(ValueError, message):
        tasks.load("knights_knaves").make(knights_knaves.Config(**given))
