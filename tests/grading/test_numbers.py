r"""Exact values, bases, times of day, ratios."""

from __future__ import annotations

from fractions import Fraction

import pytest

from bridge_jax.grading import numbers
from bridge_jax.grading.latex import normalise
from bridge_jax.grading.outcome import Rule
from tests.grading.judged import both_ways, outcome

SAME = [
    ("52_8", "(52)_8"),
    ("52_8", "52_{8}"),
    ("52_8", "{52}_8"),
    ("52_8", r"\left(52\right)_{8}"),
    ("52_8", r"52_{\text{eight}}"),
    ("52_8", r"52_{\text{base }8}"),
    ("52_8", r"52\text{ base }8"),
    ("52_8", r"52\text{ (base 8)}"),
    ("52_8", "52₈"),
    ("52_8", "052_8"),
    ("52_8", "x = 52_8"),
    (r"\text{A5}_{11}", "A5_{11}"),
    ("24_{10}", "24"),
    ("(52_8,1)", "((52)_8,1)"),
    ("52_8, 11_2", "11_2, 52_8"),
    ("1:4", r"\frac{1}{4}"),
    ("3:5", "3 : 5"),
    ("3:5", r"3\colon 5"),
    (r"1:\sqrt{2}", r"1 : 2^{1/2}"),
    ("1/3", r"0.\overline{3}"),
    ("1/6", r"0.1\overline{6}"),
    ("1/3", r"0.\dot{3}"),
    ("1/7", r"0.\overline{142857}"),
    ("1", r"0.\overline{9}"),
    ("-7/3", r"-2.\overline{3}"),
    ("4", r"\text{four}"),
    ("1234", "1,234"),
    ("2220", r"2,\! 220"),
    (r"11,\! 111,\! 100", "11111100"),
    ("15552", "2^6 3^5"),
    ("15552", r"2^{6}3^{5}"),
    (r"2^6\cdot 3^5", "2^6 3^5"),
]
OTHER = [
    ("52_8", "52_9"),
    ("52_8", "52"),
    ("42", "52_8"),
    ("52_8", "42"),
    ("101_2", "5"),
    ("-37_8", "37_8"),
    (r"\text{A5}_{11}", r"\text{A5}_{12}"),
    ("(52_8,1)", "(52_9,1)"),
    (r"\{52_8,1\}", r"\{52_9,1\}"),
    ("52_8, 11_2", "52_8, 11_3"),
    ("x=52_8", "x=52_9"),
    ("52_8", r"52_8\text{ million}"),
    ("52_8", "52_8+1"),
    ("0.0011_{2}", "0.0011_{3}"),
    ("3:5", "5:3"),
    ("3:5:7", "3:5"),
    ("1:4", "4"),
    ("1/3", "0.333"),
    (r"0.\overline{3}", "0.3"),
    (r"0.\overline{3}", "0.333333"),
    ("1", "0.9999999999"),
    ("2^{63}", "2^6 3"),
    ("12", "1 2"),
]


@pytest.mark.parametrize("gold, answer", SAME)
def test_same(gold, answer):
    """Equal numbers in other spellings are correct both ways."""
    assert both_ways(gold, answer) == [True, True]


@pytest.mark.parametrize("gold, answer", OTHER)
def test_other(gold, answer):
    """Numbers that differ are not correct either way."""
    assert both_ways(gold, answer) == [False, False]


@pytest.mark.parametrize(
    "gold, answer, expected",
    [
        ("100$,$200", "100200", "wrong"),
        ("100$,$200", "100,200", "correct"),
        ("100$,$200", "200, 100", "correct"),
        ("100$,$200", r"100\text{ and }200", "correct"),
        ("100,200", "100200", "wrong"),
        ("100$,$200$,$300", "100200300", "wrong"),
        ("100$,$200$,$300", "100200, 300", "wrong"),
        ("221,$8", "2218", "wrong"),
        ("6764$,$10945", "676410945", "wrong"),
        ("6764$,$10945", "10,945, 6,764", "correct"),
        ("2400, 1350, 864", "864, 2,400, 1,350", "correct"),
        ("100,200", "100,200", "correct"),
    ],
)
def test_lists_that_look_like_thousands(gold, answer, expected):
    """A list is never read as one number, nor one number as a list."""
    assert outcome(gold, answer, Rule(parts=True)) == expected


def test_thousands_in_lists():
    """Numbers of a list may have separators of thousands."""
    assert outcome("1234, 5678", "1,234, 5,678") == outcome("1,234, 5", "1234, 5") == "correct"
    assert outcome("1,234", "1234") == "correct" and outcome("1,234", "1, 2, 3, 4") == "wrong"


@pytest.mark.parametrize(
    "text, value",
    [
        ("1 1/2", Fraction(3, 2)),
        (r"1\frac{1}{2}", Fraction(3, 2)),
        (r"-1\frac12", Fraction(-3, 2)),
        ("-1./3", Fraction(-1, 3)),
        ("4.5e3", 4500),
        (r"4.5\times 10^{3}", 4500),
        ("1/2^{99}", Fraction(1, 2**99)),
        (r"\sqrt{9}", 3),
        (r"\sqrt[3]{-8}", -2),
        (r"\binom{5}{2}", 10),
        ("5!", 120),
        ("(1/2)", Fraction(1, 2)),
        ("1 2", None),
        ("1/0", None),
        ("12x", None),
        (r"\sqrt{2}", None),
        ("2^{100000}", None),
        ("", None),
    ],
)
def test_number(text, value):
    """A text has its exact rational value, or none."""
    assert numbers.number(normalise(text)) == value


@pytest.mark.parametrize(
    "text", ["x_8", "a_{2024}", "A_{11}", "52", "1_{60}", "59_1", r"\lambda_1"]
)
def test_no_base(text):
    """An index that can be no base gives no number in a base."""
    assert numbers.parse_based(normalise(text)) is None
