r"""Lists, tuples, intervals, inequalities, sets, unions, matrices, determinants, plus-minus."""

from __future__ import annotations

import pytest

from bridge_jax.grading.latex import normalise
from bridge_jax.grading.shapes import parts, shape
from tests.grading.judged import both_ways

SAME = [
    ("(3,4]", r"3 < x \le 4"),
    ("(3,4]", r"4 \geq x > 3"),
    ("(3,4]", r"x \in (3,4]"),
    ("(3,4]", r"\{x \mid 3 < x \le 4\}"),
    ("(3,4]", r"\{x : 3 < x \leq 4\}"),
    ("(0,12.5)", "12.5 > x > 0"),
    ("(a,b)", "a<x<b"),
    ("(b,a)", "b<x<a"),
    (r"(-\sqrt{3},\sqrt{3})", r"-\sqrt3 < x < \sqrt3"),
    (
        r"(-\infty,-2)\cup(-2,3)\cup(3,\infty)",
        r"\mathbb{R}\setminus\{3,-2\}",
    ),
    (r"(3,\infty)", "x > 3"),
    ("x>3", "3<x"),
    (r"x\ge 2", r"[2,\infty)"),
    (r"k \geqslant 2", "k >= 2"),
    (r"x\le 3", "x<=3"),
    (r"x\le 3", "x≤3"),
    (r"(-\infty,3]", r"x \le 3"),
    (r"(-\infty,1)\cup(3,\infty)", r"x<1\text{ or }x>3"),
    (r"(-\infty,1)\cup(3,\infty)", "x < 1 or x > 3"),
    (r"(-\infty,1)\cup(3,\infty)", r"(-\infty,1)\text{ or }(3,\infty)"),
    (r"(-\infty,1)\cup(3,\infty)", r"(3,\infty), (-\infty,1)"),
    (r"(-\infty,2)\cup(2,\infty)", "x != 2"),
    (r"(-\infty,2)\cup(2,\infty)", r"\mathbb{R}\setminus\{2\}"),
    ("(1,3)", r"x>1\text{ and }x<3"),
    ("(1,3)", "x>1, x<3"),
    (r"(-\infty,1)\cup(3,\infty)", "x<1, x>3"),
    (r"(1,2)\cup(3,4)", r"(1,2)\text{ or }(3,4)"),
    ("(1,2), (3,4)", r"(1,2)\text{ or }(3,4)"),
    (r"-80\leq g(x)\leq 82", "[-80,82]"),
    (r"s^2 \le 8r^2", r"8r^2 \ge s^2"),
    ("f(2)<f(1)<f(4)", "f(4)>f(1)>f(2)"),
    ("x<y", "y>x"),
    (r"\emptyset", r"\varnothing"),
    (r"\emptyset", "∅"),
    (r"\emptyset", r"\{\}"),
    (r"\mathbb{R}", r"\mathbb R"),
    (r"\mathbb{R}", "ℝ"),
    (r"\mathbb{R}", r"(-\infty,\infty)"),
    (r"x\in\mathbb{R}", r"\mathbb{R}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\left[\begin{array}{c}1\\2\end{array}\right]"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\[4pt]2\end{bmatrix}"),
    (r"\begin{pmatrix}1/5\\-18/5\end{pmatrix}", r"\frac{1}{5}\begin{pmatrix}1\\-18\end{pmatrix}"),
    (r"\begin{pmatrix}-1\\2\end{pmatrix}", r"-\begin{pmatrix}1\\-2\end{pmatrix}"),
    (r"\begin{pmatrix}6\\9\end{pmatrix}", r"(1+2)\cdot\begin{pmatrix}2\\3\end{pmatrix}"),
    (
        r"\begin{vmatrix}1&2\\3&4\end{vmatrix}",
        r"\left|\begin{array}{cc}1&2\\3&4\end{array}\right|",
    ),
    (r"\{1\pm\sqrt{5},-2\}", r"\{-2,1-\sqrt5,1+\sqrt5\}"),
    (r"x=1\pm\sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"),
    (r"1\pm\sqrt2", "1±√2"),
    (r"\pm 3", "3, -3"),
    (r"(\pm 1,2)", "(1,2),(-1,2)"),
    (r"\text{A,B,C}", "C, A, B"),
    ("B, C", r"\text{B and C}"),
    ("3, 5, 7", r"3, 5, \text{ and } 7"),
    ("(1,2)", r"\langle 1,2\rangle"),
    (r"\{5\}", "5"),
    (r"(-\infty,0)\cup\{1\}", r"\{1\}\cup(-\infty,0)"),
    (r"(45^\circ,60^\circ),(135^\circ,60^\circ)", "(135,60),(45,60)"),
]
OTHER = [
    ("(3,4]", "3<x<4"),
    ("(3,4]", r"3 \le x \le 4"),
    ("(3,4)", "4<x<3"),
    ("(4,3)", "4<x<3"),
    ("x>3", r"x \ge 3"),
    (r"(3,\infty)", "x<3"),
    (r"(-\infty,1)\cup(3,\infty)", r"x<1\text{ or }x>4"),
    (r"(-\infty,1)\cup(3,\infty)", r"x<1\text{ and }x>3"),
    ("(2,5)", "2<x<4"),
    (r"x\ne 3", "x=3"),
    (r"s^2\le 8r^2", r"s^2\ge 8r^2"),
    ("f(2)<f(1)<f(4)", "f(4)<f(1)<f(2)"),
    (r"\mathbb{R}", r"\mathbb{Z}"),
    (r"\mathbb{R}", r"x>3, x\le 4"),
    (r"\emptyset", "0"),
    (r"\emptyset", r"\{0\}"),
    (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"\begin{Vmatrix}1&2\\3&4\end{Vmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (
        r"\left|\begin{array}{cc}1&2\\3&4\end{array}\right|",
        r"\left(\begin{array}{cc}1&2\\3&4\end{array}\right)",
    ),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"2\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\begin{pmatrix}6\\9\end{pmatrix}", r"1+2\begin{pmatrix}2\\3\end{pmatrix}"),
    ("(1,2)", r"\{1,2\}"),
    ("(1,2)", "1,2"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    (r"1\pm\sqrt{2}", r"1+\sqrt{2}"),
    (r"(1,2)\cup(3,4)", "(1,2)"),
    ("(1,2),(3,4)", r"(1,2)\cup(3,4)"),
    (r"x\equiv 3\pmod 7", r"x\equiv 4\pmod 7"),
    ("1, 2, 3", "1, 2, 2"),
    ("(1,2),(3,4)", "(1,4),(3,2)"),
]


@pytest.mark.parametrize("gold, answer", SAME)
def test_same(gold, answer):
    """The same list, set, interval or matrix in other spellings is correct both ways."""
    assert both_ways(gold, answer) == [True, True]


@pytest.mark.parametrize("gold, answer", OTHER)
def test_other(gold, answer):
    """Lists, sets, intervals or matrices that differ are not correct either way."""
    assert both_ways(gold, answer) == [False, False]


@pytest.mark.parametrize(
    "text, kind, found",
    [
        ("(1,2]", "(]", ("1", "2")),
        (r"\{1,2\}", "{", ("1", "2")),
        (r"(1,2)\cup\{3\}", "union", ("(1,2)", r"\{3\}")),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "matrix2,2", ("1", "2", "3", "4")),
        (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", "determinant2,2", ("1", "2", "3", "4")),
        ("(x+1)(x+2)", "one", ("(x+1)(x+2)",)),
        ("(x+1)", "one", ("(x+1)",)),
    ],
)
def test_shape(text, kind, found):
    """A text has its kind of shape and its parts."""
    assert shape(normalise(text)) == (kind, found)


def test_parts():
    """A list is split into its named parts, but not at separators of thousands."""
    listed = parts(normalise(r"x=1, 2\text{ or }y=3"))
    assert [(part.name, part.body) for part in listed] == [("x", "1"), ("", "2"), ("y", "3")]
    assert [part.body for part in parts("1,234")] == ["1,234"]
    assert [part.body for part in parts("1,234", every_comma=True)] == ["1", "234"]
