r"""Names on the left-hand side: dropped only where the other side has none or the same; named parts
pair by name.
"""

from __future__ import annotations

import pytest

from bridge_jax.grading import names
from bridge_jax.grading.latex import normalise
from tests.grading.judged import both_ways, outcome

SAME = [
    ("x=5", "5"),
    ("x=5", "x = 5"),
    ("5", "5 = x"),
    ("x=5", "5 = x"),
    ("5", r"\theta = 5"),
    ("5", "AB = 5"),
    ("5", r"\angle A = 5"),
    ("50", r"m\angle ABC = 50^\circ"),
    ("5", r"\measuredangle A = 5"),
    ("5", "f(2) = 5"),
    ("5", r"f\left(\frac{1}{2}\right) = 5"),
    ("5", "f'(2) = 5"),
    ("5", "f^{-1}(2) = 5"),
    ("5", "a_{2024} = 5"),
    ("5", "a_{n+1} = 5"),
    ("5", r"x_{\text{max}} = 5"),
    ("5", r"\lambda_1 = 5"),
    ("5", "x' = 5"),
    ("5", r"\text{Area} = 5"),
    ("5", r"\text{Area of }\triangle ABC = 5"),
    ("5", r"\mathrm{Area} = 5"),
    ("5", "[ABC] = 5"),
    ("5", "|AB| = 5"),
    ("5", r"\overline{AB} = 5"),
    ("5", "P(A) = 5"),
    (r"\frac{1}{2}", r"P(X=2) = \frac{1}{2}"),
    (r"\frac{1}{2}", r"\sin\theta = \frac{1}{2}"),
    ("5", r"\mathbf{x} = 5"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\mathbf{v} = \begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\vec{v} = \begin{pmatrix}1\\2\end{pmatrix}"),
    ("5", r"x \approx 5"),
    (r"\approx 5", "5"),
    ("5", r"\text{Answer: }5"),
    ("5", r"\text{The answer} = 5"),
    ("x+1", "f(x) = x+1"),
    ("1, 2", "x = 1, 2"),
    ("1, 2", r"x = 1\text{ or }x = 2"),
    (r"x=1\text{ or }x=2", r"2\text{ or }1"),
    (r"\{1,2\}", "x = 1, 2"),
    ("[0,1]", r"x \in [0,1]"),
    ("[0,1]", "D = [0,1]"),
    ("x=1, y=2", "y=2, x=1"),
    ("x=1, y=2", "x=1; y=2"),
    ("x=1, y=2", r"x=1\text{ and }y=2"),
    ("x=1, y=2", "x = 1 and y = 2"),
    (r"(3,\pi/2)", r"(x,y) = (3,\pi/2)"),
    (r"(3,\pi/2)", r"(r,\theta) = (3,\frac{\pi}{2})"),
    ("x=1, y=2", "(x,y) = (1,2)"),
    ("(x,y)=(1,2)", "(y,x)=(2,1)"),
    ("(2,3)", "P = (2,3)"),
    ("AB=9, CD=4", "CD=4, AB=9"),
    ("y=2x+3", "2x+3 = y"),
    ("2x+3", "2x+3 = y"),
    ("y=2x+3", "2x - y + 3 = 0"),
    ("y=2x+3", "y - 2x = 3"),
    ("x^2+y^2=13", "y^2 + x^2 - 13 = 0"),
    (r"\frac{x^2}{16}-\frac{y^2}{9}=1", "9x^2 - 16y^2 = 144"),
    ("MR=SRMC", "SRMC=MR"),
    ("x=y", "y=x"),
    ("5", r"\left|AB\right| = 5"),
    ("5", r"\mathbb{E}[X] = 5"),
    ("5", r"\gcd(a,b) = 5"),
    ("5", r"\det A = 5"),
    ("5", r"(f\circ g)(2) = 5"),
    ("5", "x := 5"),
    ("5", r"x\text{ is }5"),
    ("5", r"\text{The answer is }5"),
    (
        r"\begin{pmatrix}1\\2\end{pmatrix}",
        r"\begin{pmatrix}x\\y\end{pmatrix}=\begin{pmatrix}1\\2\end{pmatrix}",
    ),
    ("(1,2),(3,4)", r"(x,y)=(1,2)\text{ or }(x,y)=(3,4)"),
]
OTHER = [
    ("y = -1", "x = -1"),
    ("f(x)=x^2", "g(x)=x^2"),
    ("f(2)=5", "f(3)=5"),
    ("a_1=5", "a_2=5"),
    ("x'=5", "x''=5"),
    ("A=5", "a=5"),
    (r"\theta=30^\circ", r"\phi=30^\circ"),
    (r"\angle A=50", r"\angle B=50"),
    (r"\text{Area}=5", r"\text{Perimeter}=5"),
    ("x=2, y=1", "x=1, y=2"),
    ("x=2 and y=1", "x=1 and y=2"),
    ("x=2; y=1", "x=1; y=2"),
    (r"x=2\text{ and }y=1", r"x=1\text{ and }y=2"),
    ("(x=1,y=2)", "(x=2,y=1)"),
    (r"\{x=1\}", r"\{y=1\}"),
    ("AB=9, CD=4", "AB=4, CD=9"),
    ("x=1,y=2,z=3", "x=1,z=2,y=3"),
    ("f(x)=x, g(x)=1", "f(x)=1, g(x)=x"),
    ("(x,y)=(1,2)", "(y,x)=(1,2)"),
    ("x=2,y=1", "(1,2)"),
    (r"x\in[0,1]", r"y\in[0,1]"),
    ("x<3", "y<3"),
    (r"x=1\text{ or }x=2", r"y=1\text{ or }y=2"),
    ("x=1, y=2", "x=1, 2"),
    ("5", "5 = y = x"),
    ("x=5", "2x=10"),
    ("5", "2x=10"),
    ("5", "x+1=5"),
    ("x", "x=5"),
    ("y=x^2", "x=y^2"),
    ("y=y+1", "y=y+2"),
    ("x", r"x \approx NONSENSE"),
    ("5", r"x \approx NONSENSE"),
    (r"x \approx 5", r"x \approx NONSENSE"),
    ("5", r"\text{not } = 5"),
    ("y=10-x", r"y-\sqrt{(x-10)^2}=0"),
    ("5x-7y=4", "5x-7y-4"),
    ("x+y=7", "x-y=7"),
    ("5", r"\text{The answer is not }5"),
    ("5", "x^2 = 5"),
    ("13", "x^2+y^2 = 13"),
    ("7", "x+y = 7"),
    ("5", "2x+y = 5"),
    ("5", "x+y = z+5"),
]


@pytest.mark.parametrize("gold, answer", SAME)
def test_same(gold, answer):
    """Pairs that differ in a name at most are correct both ways."""
    assert both_ways(gold, answer) == [True, True]


@pytest.mark.parametrize("gold, answer", OTHER)
def test_other(gold, answer):
    """Pairs whose names or values differ are not correct either way."""
    assert both_ways(gold, answer) == [False, False]


def test_names_without_their_order():
    """A gold answer that names its parts fixes their order; one that lists values does not."""
    assert outcome("x=1, y=2", "1, 2") == "correct" and outcome("x=1, y=2", "2, 1") == "wrong"
    assert outcome("1, 2", "x=2, y=1") == "correct"


def test_gold_that_says_it_twice():
    r"""0.56 = 56\% is one of MATH's: either will do, but an answer may not hedge so."""
    assert outcome(r"0.56 = 56\%", "0.56") == outcome(r"0.56 = 56\%", r"56\%") == "correct"
    assert outcome("0.56", r"0.56 = 56\%") == outcome("5", "5=6") == outcome("5", "5=5") == "wrong"


@pytest.mark.parametrize(
    "answer, right",
    [
        (r"\sqrt{2} \approx 1.41", True),
        (r"x = \sqrt{2} \approx 1.414", True),
        (r"\sqrt{2}\text{ cm} \approx 1.41\text{ cm}", True),
        (r"\sqrt{2} \approx 1.42", False),
        (r"\sqrt{3} \approx 1.41", False),
        (r"\sqrt{2} \approx NONSENSE", False),
        (r"\sqrt{2} \approx x", False),
        (r"\sqrt{2} \approx 1.41 = 7", False),
        (r"1.41 \approx \sqrt{2}", False),
        (r"\sqrt{2} = NONSENSE", False),
    ],
)
def test_a_rounded_value_behind_the_exact_one(answer, right):
    """A rounded value after ≈ is ignored only if it fits the exact one."""
    assert (outcome(r"\sqrt{2}", answer) == "correct") == right


@pytest.mark.parametrize(
    "text, name, body",
    [
        ("x = 5", "x", "5"),
        ("5 = x", "x", "5"),
        (r"f\left(2\right) = 5", "f(2)", "5"),
        (r"m\angle ABC=5", r"\angleABC", "5"),
        (r"\text{Area}=5", "area", "5"),
        (r"\mathbf{v}=5", "v", "5"),
        ("a_{12}=5", "a_12", "5"),
        ("= 5", "", "5"),
        ("5", "", "5"),
    ],
)
def test_named(text, name, body):
    """A name on either side of an equation is split from its value."""
    found = names.named(normalise(text))
    assert (found.name, found.body, found.equation) == (name, body, False)


@pytest.mark.parametrize("text", ["2x+3 = 7", "x = x+1", "x < 5", "x^2 = 4", "a = b = c", "i = 3"])
def test_equations_have_no_name(text):
    """An equation that defines no name stays an equation."""
    assert names.named(normalise(text)) == ("", normalise(text), True)
