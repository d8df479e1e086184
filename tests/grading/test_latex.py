r"""One spelling: what only changes how an answer looks is gone, Unicode and plain text are LaTeX,
words are marked.
"""

from __future__ import annotations

import pytest

from bridge_jax.grading.latex import LONGEST, normalise
from tests.grading.judged import both_ways, outcome

SAME = [
    ("13", r"\boldsymbol{13}"),
    ("13", r"\textcolor{red}{13}"),
    ("13", r"\color{red}{13}"),
    ("13", r"{\color{red} 13}"),
    ("13", r"\colorbox{yellow}{13}"),
    ("13", r"\underline{13}"),
    ("13", r"\mathbf{13}"),
    ("13", "**13**"),
    ("13", r"\textnormal{13}"),
    ("13", r"\textbf{13}"),
    ("13", r"\textbf{\textcolor{red}{13}}"),
    ("13", r"\text{\textbf{13}}"),
    (r"\frac{1}{2}", r"\textbf{\frac{1}{2}}"),
    (r"\frac{1}{2}", "\\frac{1}{2}\\\\"),
    ("13", "13~"),
    (r"\frac{1}{2}", "\\frac 1 2"),
    (r"\frac{1}{2}", r"{1 \over 2}"),
    ("10", r"{5 \choose 2}"),
    ("5", r"5^{\text{th}}"),
    (r"x\equiv 3\pmod 7", r"x \equiv 3\ (\mathrm{mod}\ 7)"),
    (r"\sin x", "sin(x)"),
    (r"\text{(C)}", "Option C"),
    (r"\text{(C)}", r"\text{Choice (C)}"),
    ("13", r"\boxed{13}"),
    ("13", r"\displaystyle 13"),
    ("13", r"{\bf 13}"),
    ("13", r"\[13\]"),
    ("13", "$$13$$"),
    ("13", "`13`"),
    ("13", "１３"),
    ("-13", "－13"),
    ("1234", "１，２３４"),
    (r"\frac{1}{2}", "½"),
    (r"1\frac{1}{2}", "1½"),
    ("x^2", "x²"),
    ("x^{10}", "x¹⁰"),
    ("x_1", "x₁"),
    (r"\sqrt{2}", "√2"),
    (r"2\pi", "2π"),
    (r"\alpha+\beta", "α+β"),
    (r"90^\circ", r"\boldsymbol{90^\circ}"),
    (r"2\times 3", "2×3"),
    (r"(-\infty,3)\cup(5,\infty)", "(−∞,3)∪(5,∞)"),
    (r"\frac{x}{2}", r"\textcolor{blue}{\frac{x}{2}}"),
    (r"(1,2)", r"\boldsymbol{(1,2)}"),
    (r"\{1,2\}", r"\mathbf{\{1,2\}}"),
    ("1, 2", r"\mathbf{1}, \mathbf{2}"),
    (r"5\text{ cm}", r"\boldsymbol{5\text{ cm}}"),
    ("5e^2", r"5\mathrm{e}^{2}"),
    (r"\sin x", r"\operatorname{sin} x"),
    ("x^2", "x**2"),
    ("(C)", r"\text{(C) } 5"),
    (r"\text{(C)}", r"\textbf{(C)}\ \frac{1}{2}"),
    (r"\text{(C)}", r"\text{(C)}"),
    (r"\text{(C)}", "C"),
    ("A", r"\textbf{(A)}"),
    (r"\text{two lines}", "Two Lines"),
]
OTHER = [
    (r"\text{(C)}", r"\text{(D) } 5"),
    (r"\text{(C)}", r"\text{(C) or (D)}"),
    (r"\text{(C)}", r"\text{(C)}\text{ million}"),
    (r"\text{(C)}", r"\text{(C)}xy"),
    (r"\text{(C)}", r"\text{(C) is wrong}"),
    ("n", "N"),
    ("e", "E"),
    ("b", "(B)"),
    (r"\text{E}", "e"),
    ("12", r"1\,2"),
    ("(1,2)", r"\boldsymbol{(2,1)}"),
    (r"\text{even}", r"\textbf{odd}"),
    ("x^2", "x2"),
    ("121", "5!=121"),
]


@pytest.mark.parametrize("gold, answer", SAME)
def test_same(gold, answer):
    """Spellings of one answer are correct both ways."""
    assert both_ways(gold, answer) == [True, True]


@pytest.mark.parametrize("gold, answer", OTHER)
def test_other(gold, answer):
    """Answers that differ in more than spelling are not correct."""
    assert outcome(gold, answer) != "correct"
    assert "=" in answer or outcome(answer, gold) != "correct"


def test_choices():
    """What stands beside the letter counts where the gold answer says it too."""
    assert outcome(r"\text{(C) }5", r"\text{(C) }6") == outcome("6", r"\text{(C) }5") == "wrong"
    assert outcome("5", r"\text{(C) }5") == outcome(r"\text{(C) }5", "5") == "correct"
    assert outcome(r"\text{(C)}", "(c)") == outcome(r"\text{(C)}", "C. 5") == "correct"
    assert outcome(r"\text{(C)}", "c") == outcome(r"\text{(C) }5", r"\text{(D) }5") == "wrong"


@pytest.mark.parametrize(
    "text, spelled",
    [
        (r"\dfrac12", r"\frac{1}{2}"),
        (r"12{,}345", "12345"),
        (r"11,\! 111,\! 100", "11111100"),
        (r"69$,$84", "69;84"),
        (r"\text{5 cm}", "5 \x00cm\x00"),
        (r"3\text{ and }4", "3 \x00and\x00 4"),
        (r"\text{A,B}", "\x00A\x00,\x00B\x00"),
        ("62.5%", "62.5\x00percent\x00"),
        (r"\left( 1 \right].", "( 1  ]"),
        (r"90^{\circ}", r"90^\circ"),
        (r"y^{\prime\prime}", "y''"),
        ("n >= 3", r"n \ge  3"),
    ],
)
def test_spelling(text, spelled):
    """A text has its one normal spelling."""
    assert normalise(text) == spelled


@pytest.mark.parametrize("text", ["½" * LONGEST, "²" * LONGEST, "√" * LONGEST, "$" * LONGEST])
def test_what_grows_is_refused_or_small(text):
    """A text that grows when it is normalised is never correct."""
    assert outcome("7", text) in ("parse_error", "wrong")
