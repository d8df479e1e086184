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
    report = contamination.overlap_report(train, {"held": [of(9, LONG)]})
    assert report.startswith("held: 1 of 2 ") and report.endswith("one of its 1 (ids 1~9)")


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


# Pairs of public problems that share 13 words in a row.
PLANE = (
    "Enter your answer in the form $Ax + By + Cz + D = 0,$ where $A,$ $B,$ $C,$ $D$ are integers "
    "such that $A > 0$ and their greatest common divisor is 1."
)
DRAWN = (
    "[asy] unitsize(5mm); defaultpen(linewidth(.7pt)+fontsize(8pt)); pair a=(0,0), b=(3,0), "
    'c=(6,0); draw(a--b--c--cycle); label("$A$",a,S); label("$B$",b,S); [/asy]'
)
TRUE_PAIRS = {
    "reformatted": (
        "Let $a$ and $b$ be real numbers such that \\[a^3 - 15a^2 + 20a - 50 = 0\\] holds for $a.$",
        "$\\quad$ let $a$ and $b$ be real numbers such that $$ a^{3}-15 a^{2}+20 a-50=0 $$ holds",
    ),
    "split symbols": (
        "The four zeros of $x^4 + jx^2 + kx + 225$ are distinct real numbers in arithmetic "
        "progression in which no two are equal to one another.  Compute $j.$",
        "The four zeros of $x^{4}+j x^{2}+k x+225$ are distinct real numbers in arithmetic "
        "progression in which no two are equal to one another. Compute $j$.",
    ),
    "another number": (
        "What is the remainder when $1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10$ is divided by 8?",
        "What is the remainder when $1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10$ is divided by 9?",
    ),
    "inside a longer text": (f"Read this with care, then answer in a word. {LONG} Why?", LONG),
    "another drawing": (f"{LONG} {DRAWN}", LONG),
}
PHRASES = {
    "form of the answer": (
        f"A sphere touches the three axes at one point each and has radius 2. {PLANE}",
        "Consider the plane that contains $(0,-1,-1)$ and bisects the angle between two given "
        "planes, of which one is orthogonal to the line through the origin with direction "
        "$(3,-6,2)$ and the other one passes through $(-4,4,4)$ and $(4,5,1)$ without meeting "
        f"it anywhere. {PLANE}",
    ),
    "a drawing": (
        f"How many units is the side of the square, as a mixed number? {DRAWN}",
        f"On the number line, the points divide it into equal parts. What is $CD$? {DRAWN}",
    ),
    "a definition": (
        "Let $\\lfloor x \\rfloor$ denote the greatest integer that is less than or equal to the "
        "real number $x$. For how many primes below 70 is it even?",
        "Let $\\lfloor x \\rfloor$ denote the greatest integer that is less than or equal to the "
        "real number $x$. Suppose $f(n)=2n-\\lfloor (1+\\sqrt{8n-7})/2 \\rfloor$ and "
        "$g(n)=2n+\\lfloor (1+\\sqrt{8n-7})/2 \\rfloor$ for each positive integer $n$; find the "
        "value of $g(2011)$ and that of the sum of $f(k)$ over all $k$ from 1 to 2011 inclusive.",
    ),
}


@pytest.mark.parametrize("name", [*TRUE_PAIRS, *PHRASES])
def test_copies_are_told_from_phrases(name):
    """Both share an n-gram; a copy has most of the held-out problem's words."""
    mine, held = (TRUE_PAIRS | PHRASES)[name]
    assert contamination.ngrams(mine) & contamination.ngrams(held)
    copied = name in TRUE_PAIRS
    assert contamination.overlap([of(1, mine)], [of(9, held)]) == [(1, 9)] * copied
    found = contamination.HeldOut({"held": [of(9, held)]})
    assert found.find(mine) == "held" * copied and found.find(held) == "held"


def test_the_copied_share_counts_words_in_their_order():
    """The longest common subsequence over the held-out words."""
    share = lambda *texts: contamination.copied_share(*map(str.split, texts))
    assert share("a b c d", "x a y c d z a") == 3 / 4
    assert share("a b c d", "d c b a") == 1 / 4
    assert share("", "a") == 1 and share("a", "") == 0


def test_phrasing_is_no_overlap():
    """What most training problems begin with says nothing of one of them."""
    train = [
        of(
            i,
            f"{LONG} Question {i} about the number {i} of trains in such and such a town {i}?",
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
