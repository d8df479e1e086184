r"""One reading of a formula, none of what has two."""

from __future__ import annotations

from fractions import Fraction

import pytest

from bridge_jax.grading import formula
from bridge_jax.grading.latex import Unreadable, normalise


@pytest.mark.parametrize(
    "text, same",
    [
        (r"\sin 2x \cos x", r"(\sin(2x))(\cos(x))"),
        (r"\log 2/\log 3", r"\frac{\log 2}{\log 3}"),
        (r"\frac12x", r"\frac{1}{2}x"),
        (r"\frac{270}7", r"\frac{270}{7}"),
        (r"x^10", "x^{10}"),
        ("x^-1", "x^{-1}"),
        ("sqrt(2)+2pi", r"\sqrt{2}+2\pi"),
        ("n(n+1)", r"n\cdot(n+1)"),
        (r"\left[x+1\right]^2", "(x+1)^2"),
    ],
)
def test_readings(text, same):
    """Two spellings of a formula have the same reading."""
    assert formula.read(normalise(text)) == formula.read(normalise(same))


@pytest.mark.parametrize(
    "text",
    [
        "1/2x",
        r"\sin x/2",
        "2 3",
        "x2",
        "2^3^4",
        "2^{3}^4",
        "0xy",
        "5!!",
        r"\sin",
        r"\frac{1}",
        "(1",
        "1)",
        "",
        "x,y",
        "1=1",
        r"\text{no}",
        "10!!",
        "(" * 400,
        r"\sqrt" * 80,
        "1/" * 199 + "1",
    ],
)
def test_no_reading(text):
    """Text that is ambiguous, incomplete or too deep has no reading."""
    with pytest.raises(Unreadable):
        formula.read(normalise(text))


def test_unknown_commands_are_told_apart():
    """Another reader may know them; what has two readings goes to nobody."""
    with pytest.raises(formula.Unknown):
        formula.read(r"\mathop x")
    for text in ("1/2x", r"x\pm 1", "2 3"):
        with pytest.raises(Unreadable) as error:
            formula.read(text)
        assert not isinstance(error.value, formula.Unknown)


@pytest.mark.parametrize(
    "text, names",
    [
        ("x_1+x_{12}", {"x_1", "x_12"}),
        (r"\dot{x}+\ddot{x}", {"dot(x)", "ddot(x)"}),
        (r"f(x)+f'(0)", {"f", "x", "f'"}),
        (r"\theta+e+i+\pi", {r"\theta"}),
        (r"\frac{dM}{dt}", {"dMddt"}),
        ("x(t)+x(0)", {"x", "t"}),
    ],
)
def test_letters(text, names):
    """The letters of a formula are its variables and functions, without constants."""
    assert formula.letters(formula.read(normalise(text))) == names


@pytest.mark.parametrize(
    "text, value",
    [
        ("2+3*4", 14),
        ("-2^2", -4),
        (r"\frac{1}{2^{99}}", Fraction(1, 2**99)),
        ("2^6 3^5", 15552),
        ("(n-n)5", None),
        ("8^{2/3}", 4),
        (r"\lfloor 3.7\rfloor+\lceil 3.2\rceil", 7),
        ("|2-5|", 3),
        ("31!", None),
        ("2^{2101}", None),
        ("0^0", None),
        (r"\sqrt{2}", None),
        ("1/0", None),
    ],
)
def test_exact(text, value):
    """A formula has its exact rational value, or none where it is irrational or too large."""
    try:
        found = formula.exact(formula.read(normalise(text)))
    except Unreadable:
        found = None
    assert found == value
