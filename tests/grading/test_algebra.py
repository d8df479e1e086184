r"""The exact difference decides: nothing that differs is equal, however little; complex numbers,
branches, equal values.
"""

from __future__ import annotations

import pytest

from bridge_jax.grading import algebra, equivalence
from bridge_jax.grading.outcome import Rule
from tests.grading.judged import both_ways, outcome

SAME = [
    ("1+2i", r"\frac{5}{1-2i}"),
    ("16", "(1+i)^8"),
    ("-1", r"e^{i\pi}"),
    ("i", r"e^{i\pi/2}"),
    ("-i", r"\frac{1}{i}"),
    ("-2^{50}", "(1+i)^{100}"),
    ("2i", r"\sqrt{-4}"),
    (r"\frac{1}{2}", r"\sin 30^\circ"),
    (r"\frac{1}{2}", r"\cos 60^{\circ}"),
    (r"\frac{1}{2}", r"\sin\frac{\pi}{6}"),
    (r"2-\sqrt{3}", r"\tan 15^\circ"),
    (r"\sqrt{2+\sqrt3}", r"\frac{\sqrt6+\sqrt2}{2}"),
    (r"\arctan 2+\arctan 3", r"\frac{3\pi}{4}"),
    (r"\log_{10} 250", r"\log 250"),
    (r"\frac{\log 2}{\log 2-\log 3}", r"\frac{\ln 2}{\ln 2-\ln 3}"),
    (r"\sqrt{2} \cos (2 t-\pi / 4)", r"\cos 2t+\sin 2t"),
    (r"2\cos^2 x-1", r"\cos 2x"),
    ("x", "10^{15}+x-10^{15}"),
    (r"(x-1)^3(x+1)^3", "(x^2-1)^3"),
    (r"10x\sqrt{21x}", r"10\sqrt{21}x^{3/2}"),
    (r"\sqrt{12x}", r"2\sqrt{3x}"),
    (r"m n-\lfloor m / 2\rfloor", r"-\lfloor \frac{m}{2}\rfloor+nm"),
    (r"\binom{2n}{n}", r"\frac{(2n)!}{(n!)^2}"),
    ("f(4-x)", "f(-x+4)"),
    (r"\left[P_{0}^{2/5}-\frac{2}{5} g K^{-3/5} z\right]^{5/2}",
     r"(P_0^{2/5}-\frac{2gz}{5K^{3/5}})^{5/2}"),
    (r"P(1+r)^n", r"P(1+r)(1+r)^{n-1}"),
]  # fmt: skip
OTHER = [
    ("1/2^99", "1/2^98"),
    ("1/2^{99}", "1/2^{98}"),
    ("1-1/2^60", "1-1/2^61"),
    ("1-1/2^{60}", "1-1/2^{61}"),
    (r"\sqrt2+10^{-17}", r"\sqrt2"),
    (r"\sqrt{2}+10^{-900}", r"\sqrt{2}"),
    (r"\sqrt{2}", r"\sqrt{2.0000000000000000001}"),
    (r"\pi+10^{-30}", r"\pi"),
    ("e^{-900}", "0"),
    ("1", r"\tanh(500)"),
    (r"\cos(10^{-100})", "1"),
    ("x+10^{-17}", "x"),
    (r"\frac{x}{1+10^{-20}}", "x"),
    ("x", r"x+e^{-1000x^2}"),
    ("(1/2^{99},1)", "(1/2^{98},1)"),
    (r"\{1-1/2^{60},3\}", r"\{1-1/2^{61},3\}"),
    (r"(\sqrt2+10^{-17},1)", r"(\sqrt2,1)"),
    ("[1/2^{99},1]", "[1/2^{98},1]"),
    ("1/2^{99}<x<1", "1/2^{98}<x<1"),
    (r"\begin{pmatrix}1/2^{99}\\1\end{pmatrix}", r"\begin{pmatrix}1/2^{98}\\1\end{pmatrix}"),
    (r"\frac{1}{2}", r"\sin 30"),
    (r"\cos 60^\circ", r"\cos 60"),
    (r"\sqrt{x^2}", "x"),
    (r"\sqrt{(x-10)^2}", "x-10"),
    (r"\sqrt{((x-10)^2-1)^2}", "(x-10)^2-1"),
    ("|x+10|", "x+10"),
    ("|x|", "-x"),
    (r"\lfloor x^2/100\rfloor", "0"),
    (r"\max(x,10)", "10"),
    ("|x|^2", "x^2"),
    ("f(0)", "g(0)"),
    ("I(0)", "0"),
    ("f(x)", "f(y)"),
    ("n", "N"),
    ("e", "E"),
]


@pytest.mark.parametrize("gold, answer", SAME)
def test_same(gold, answer):
    """Formulas that are equal by algebra are correct both ways."""
    assert both_ways(gold, answer) == [True, True]


@pytest.mark.parametrize("gold, answer", OTHER)
def test_other(gold, answer):
    """Formulas that differ, however little, are not correct either way."""
    assert both_ways(gold, answer) == [False, False]


@pytest.mark.parametrize(
    "answer", [r"\sqrt{2}+10^{-17}", r"\sqrt{2}+\left(10^{-1000}\right)^{3}", "x+10^{-400}"]
)
def test_agreement_in_the_probe_is_not_enough(answer, monkeypatch):
    """Without the cheap stage's refusal too."""
    monkeypatch.setattr(equivalence.probe, "differ", lambda *a: False)
    assert outcome(r"\sqrt{2}" if "sqrt" in answer else "x", answer) != "correct"


def test_math_verify_alone_is_not_enough(monkeypatch):
    """Text that only math-verify reads: its yes counts where sympy finds no difference, and all
    letters were read.
    """
    monkeypatch.setattr(algebra.math_verify, "verify", lambda *a, **k: True)
    assert not algebra._by_math_verify("x+1", "x+2")
    assert algebra._by_math_verify("x+1", "1+x")
    with pytest.raises(ValueError):
        algebra._by_math_verify("x", r"x \approx NONSENSE")
    monkeypatch.setattr(algebra.math_verify, "verify", lambda *a, **k: False)
    assert not algebra._by_math_verify("x+1", "1+x")


@pytest.mark.parametrize(
    "gold, answer, rule, expected",
    [
        ("1414", r"1000\sqrt{2}", Rule(relative=1e-3), "correct"),
        ("1414", r"1000\sqrt{2}", Rule(relative=1e-4), "wrong"),
        (r"1000\sqrt{2}", r"1414.2", Rule(relative=1e-4), "correct"),
        (r"\pi", "3.14", Rule(absolute=0.01), "correct"),
        (r"\pi", "3.14", Rule(absolute=0.001), "wrong"),
        (r"\pi x", "3.14x", Rule(absolute=0.01), "wrong"),
        (r"(\pi, 1)", "(3.14, 1)", Rule(absolute=0.01), "correct"),
    ],
)
def test_tolerances(gold, answer, rule, expected):
    """A tolerance applies to values without letters, and to each part."""
    assert outcome(gold, answer, rule) == expected


@pytest.mark.parametrize(
    "text",
    ["9^{9^9}", "(10!)!", "2^{100000}", "100!", "((9^{900})^{900})^{900}", r"\binom{99999999}{4999999}",
     "e^{10^6}", r"\int_0^1 x dx", r"\sum_{k=1}^{3} k"],
)  # fmt: skip
def test_beyond_the_limits(text):
    """A formula too large to compute is a parse error."""
    assert outcome("7", text) == "parse_error"
