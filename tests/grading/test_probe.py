"""Equal formulas are never told apart, different ones are, and what could mean two things has no
value.
"""

from __future__ import annotations

import cmath
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_jax.grading import probe

EQUAL = [
    ("x^2-1", "(x-1)(x+1)"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("ab", "ba"),
    (r"\frac{a}{b}", "a/b"),
    (r"\sqrt[3]{8}", "2"),
    ("(1+i)^2", "2i"),
    (r"2\cdot 3x", r"6 x"),
    ("-(-x)", "x"),
    (r"x^{10}", "x^{4}x^{6}"),
    (r"\theta+1", r"1+\theta"),
    (r"\frac{\pi}{4}", r"0.25\pi"),
    ("-2^2", "-4"),
    ("--3", "3"),
    (r"\sin^2 x+\cos^2 x", "1"),
    (r"\log_2 8", r"\frac{\ln 8}{\ln 2}"),
    (r"\tan 45^\circ", "1"),
]
DIFFERENT = [
    ("x", "y"),
    ("x", "x+1"),
    ("5", "x+5"),
    (r"\sqrt{2}", "1.41"),
    ("x^2", "x^3"),
    ("-2^2", "4"),
    (r"\pi", "3.1416"),
    ("a-b", "b-a"),
    (r"\frac{a}{b}", r"\frac{b}{a}"),
    ("X", "x"),
    (r"\theta", r"\phi"),
    ("e", "2.718"),
]
UNCLEAR = [
    "1/2x",
    "2 3",
    "2^3^4",
    "2^{3}^4",
    "",
    "()",
    "(1",
    "1)",
    r"\frac{1}{0}",
    "0^{-1}",
    r"(-8)^{\frac{1}{3}}",
    r"\sqrt[3]{-8}",
    "10^{400}",
    "1..2",
    "x+",
    "*3",
    r"\frac{1}",
    "x,y",
    r"\text{no}",
    "3%",
    "1=1",
    "é",
    "((" * 2000,
    "9" * 400,
    "1/(2)3",
]


@pytest.mark.parametrize("one, other", EQUAL)
def test_equal_formulas_do_not_differ(one, other):
    """Equal formulas have the same value and never differ."""
    assert probe.value(one) == pytest.approx(probe.value(other), rel=1e-12)
    assert not probe.differ(one, other) and not probe.differ(other, one)


CANCELLED = [
    ("x", "10^{15}+x-10^{15}"),
    ("x", "(10^{15}+x)-10^{15}"),
    ("x", "1000000000000000+x-1000000000000000"),
    ("-x^2", "(10^{8}+x)(10^{8}-x)-10^{16}"),
    ("x^2", "(10^{8}+x)^2-10^{16}-2x10^{8}"),
    ("x", r"\frac{(10^{12}+x)^2-10^{24}-x^2}{2\cdot 10^{12}}"),
    ("1", r"\frac{10^{15}+x-10^{15}}{x}"),
    ("x", r"\sqrt{(10^{14}+x)^2}-10^{14}"),
    ("x", r"\ln(e^{30}e^x)-30"),
    (r"\frac{1}{x}", r"\frac{1}{10^{15}+x-10^{15}}"),
    ("x^3", "(10^{15}+x-10^{15})^3"),
    (r"\sin x", r"\sin(10^{14}+x-10^{14})"),
]


@pytest.mark.parametrize("one, other", CANCELLED)
def test_large_values_that_cancel(one, other):
    """Rounding may have taken everything: the probe says nothing where the values are smaller than
    what was lost.
    """
    assert not probe.differ(one, other) and not probe.differ(other, one)
    found = probe.measure(other)
    assert found is None or abs(found.value - probe.value(one)) <= found.error + 1e-12


def test_the_error_is_no_larger_than_needed():
    """Small formulas are told apart by small differences."""
    assert probe.measure("x+1").error < 1e-14
    assert probe.differ("x", "x+10^{-5}") and probe.differ("10^{15}+x", r"2\cdot10^{15}+x")


@pytest.mark.parametrize("one, other", DIFFERENT)
def test_different_formulas_differ(one, other):
    """Different formulas differ, in either order."""
    assert probe.differ(one, other) and probe.differ(other, one)


@pytest.mark.parametrize("text", UNCLEAR)
def test_no_value_and_so_no_verdict(text):
    """A text that is unclear has no value and differs from nothing."""
    assert probe.value(text) is None
    assert not probe.differ(text, "7") and not probe.differ("7", text)


def test_values():
    """By hand; precedence as in print."""
    for text, wanted in (
        ("1+2*3", 7),
        ("2(3+4)", 14),
        ("6/3*2", 4),
        ("2^{3}(2)", 16),
        (r"\frac{1}{2}(3)", 1.5),
        ("-3+5", 2),
        (r"\sqrt{-4}", 2j),
        ("e^2", math.e**2),
        (r"2\pi", 2 * math.pi),
        (r"\sqrt[3]{27}(2)", 6),
        ("2x^2", 2 * probe.letter_value("x") ** 2),
        (r"1\frac12", 1.5),
        (r"1\frac{1}{2}", 1.5),
        ("x^23", probe.letter_value("x") ** 23),
        ("x_1", probe.letter_value("x_1")),
        (r"\log 2", math.log10(2)),
        (r"\log_2 8", 3),
        (r"\ln e^2", 2),
        ("|x|", probe.letter_value("x")),
        ("|2-5|", 3),
        ("5!", 120),
        (r"\binom{5}{2}", 10),
        ("2^-1", 0.5),
        (r"2^\frac{1}{2}", 2**0.5),
        (r"\sin 30^\circ", 0.5),
        (r"\tan(x)\cot(x)", 1),
        (r"\sin^2 2+\cos^2 2", 1),
        (r"\lfloor 2.5\rfloor+\lceil 2.5\rceil", 5),
    ):
        assert probe.value(text) == pytest.approx(wanted, rel=1e-12), text


def test_tolerances():
    """A difference within the tolerance is none."""
    assert probe.differ(r"100\sqrt{1}", "100.5") and not probe.differ(
        r"100\sqrt{1}", "100.5", absolute=0.5
    )
    assert not probe.differ(r"100\sqrt{1}", "100.5", relative=0.005) and probe.differ(
        "100", "101", relative=0.005
    )


def test_letters_stand_at_different_points():
    """Every letter has a value of its own, within the range."""
    names = [*"abcdfghjklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", *probe.GREEK.split("|")]
    values = sorted(probe.letter_value(name) for name in names)
    assert (
        min(b - a for a, b in zip(values, values[1:])) > 1e-6
        and 1.1 <= values[0]
        and values[-1] <= 2.8
    )


FORMULA = st.recursive(
    st.sampled_from(["a", "b", "x", "2", "3", "0.5", r"\pi"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda two: ("sum", *two)),
        st.tuples(inner, inner).map(lambda two: ("product", *two)),
        st.tuples(inner, inner).map(lambda two: ("ratio", *two)),
    ),
    max_leaves=8,
)


def spelled(tree, swap: bool) -> str:
    """A formula of sums, products and fractions in one of two spellings that mean the same."""
    if isinstance(tree, str):
        return f"({tree})" if swap else tree
    kind, *parts = tree
    one, other = (spelled(part, swap) for part in parts)
    if kind == "sum":
        return f"({other}+{one})" if swap else f"({one}+{other})"
    if kind == "product":
        return f"({other})({one})" if swap else rf"{{{one}\cdot {other}}}"
    return f"(({one})/({other}))" if swap else rf"\frac{{{one}}}{{{other}}}"


@given(FORMULA)
def test_spelling_changes_no_value(tree):
    """Two spellings of a random formula have the same value."""
    one, other = (probe.value(spelled(tree, swap)) for swap in (False, True))
    assert one is not None and cmath.isclose(one, other, rel_tol=1e-9)


@given(FORMULA, st.integers(0, 16))
def test_cancellation_never_tells_equal_formulas_apart(tree, power):
    """Equal formulas do not differ, even if large terms cancel."""
    one = spelled(tree, False)
    assert not probe.differ(one, f"10^{{{power}}}+{one}-10^{{{power}}}")
    assert not probe.differ(one, f"(10^{{{power}}}+1)({one})-10^{{{power}}}({one})")


@given(st.text(alphabet="12x+-*/^(){}[]\\ fracsqti", max_size=60))
def test_any_text_is_survived(text):
    """No text raises an error."""
    probe.value(text)


def test_linear_in_the_text():
    """Nested and long texts take little processor time."""
    began = time.process_time()
    for text in (
        "(" * 400,
        "x" * 400,
        "1+" * 200,
        "{" * 200 + "}" * 200,
        r"\sqrt" * 80,
        "2^{" * 130,
    ):
        probe.value(text)
    assert time.process_time() - began < 0.2
