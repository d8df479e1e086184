"""Overlap between training problems and benchmarks is found in every script."""

from __future__ import annotations

import pytest

from bridge_jax.data import contamination
from tests import errors
from tests.data.problems import of

LONG = "A train leaves town at noon and goes at sixty miles an hour for three whole hours before it stops."


def test_overlap_finds_shared_runs_of_words():
    """Thirteen words in a row, whatever case and marks; twelve are not enough."""
    start = " ".join(LONG.split()[:13])
    train = [
        of(1, start.upper() + " and then?"),
        of(2, " ".join(LONG.split()[:12]) + " end of it, and of all that was before"),
    ]
    assert contamination.overlap(train, [of(9, LONG)]) == [(1, 9)]
    assert "held: 1 of 2 training problems share 13 words in a row with one of its 1 (ids 1~9)" in (
        contamination.overlap_report(train, {"held": [of(9, LONG)]})
    )


def test_overlap_of_short_texts_is_the_whole_text():
    """Marks are all that tells 2 + 3 from 2 - 3."""
    assert contamination.overlap([of(1, "2 + 3?")], [of(9, "2 - 3?")]) == []
    assert contamination.overlap([of(1, "What IS 2 +  3?")], [of(9, "What is 2 + 3?")]) == [(1, 9)]


CHINESE = "一列火车从甲站出发以每小时六十公里的速度行驶三小时后到达乙站求两站距离"


@pytest.mark.parametrize(
    "train, held, shared",
    [
        (CHINESE + "是多少公里？", "问题：" + CHINESE + "。", True),
        (CHINESE, "某班有学生四十人其中男生占五分之三后来又转来若干名男生问现在共有多少人", False),
        (
            "В каждой клетке таблицы " * 5 + "3 на 3",
            "В КАЖДОЙ клетке таблицы " * 5 + "4 на 4",
            True,
        ),
        ("В каждой клетке таблицы " * 5 + "3 на 3", "Найдите число всех пар, где " * 5, False),
        ("+".join(map(str, range(20))) + " = ?", "-".join(map(str, range(20))) + " = ?", False),
        ("Now " + "+".join(map(str, range(20))), " + ".join(map(str, range(1, 20))), True),
        ("∀ε>0 ∃δ>0", "∀ε>0 ∃δ<0", False),
        ("∀ε>0  ∃δ>0", "∀ε>0 ∃δ>0", True),
        ("求 x² 的值", "求 x2 的值", True),
    ],
)
def test_overlap_reads_every_script_and_the_marks_of_formulas(train, held, shared):
    """Overlap is told by characters in Chinese, by words in Cyrillic, by marks in formulas."""
    assert contamination.overlap([of(1, train)], [of(9, held)]) == [(1, 9)] * shared


def test_phrasing_is_no_overlap():
    """What most training problems begin with says nothing of one of them."""
    train = [
        of(
            i,
            LONG
            + f" Question {i} about the number {i} of trains in such and such a town and all the towns {i}?",
        )
        for i in range(30)
    ]
    held = [of(100, LONG + " Something else is asked.")]
    assert contamination.overlap(train, held) == []
    assert contamination.overlap(train[:5], held) == [(i, 100) for i in range(5)]


def test_training_on_a_held_out_problem_is_refused():
    """The error names the split and the ids that are also in the training set."""
    with errors.raises(ValueError, "held", "[9]"):
        contamination.overlap_report(
            [of(1, LONG.upper())],
            {"fine": [of(8, "Other?")], "held": [of(9, LONG.replace(" ", "  "))]},
        )
