r"""Self-test of the grader: about seventy known pairs, graded before a run begins.

They take the path of real completions: box, cheap stage, worker processes. Without the test a
broken grader, such as one with another version of a library, would look like a bad model.
"""

from __future__ import annotations

from bridge_jax.grading.equivalence import compare
from bridge_jax.grading.extract import last_boxed
from bridge_jax.grading.outcome import DeferredComparison, Outcome, Rule

# gold, answer
EQUAL = (
    ("42", "42"),
    ("42", " 42. "),
    ("1234", "1,234"),
    ("0.5", r"\frac{1}{2}"),
    (r"\frac{3}{4}", r"\dfrac34"),
    ("-7", "-7"),
    ("3/4", "0.75"),
    (r"1\frac12", "1.5"),
    ("5", r"5\text{ cm}"),
    (r"10\%", "10"),
    ("90", r"90^\circ"),
    ("11", "x=11"),
    ("(1,2)", r"\left( 1, 2 \right)"),
    (r"[0,\infty)", r"[0, \infty)"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("1,2,3", "3, 1, 2"),
    (r"\text{Evelyn}", "evelyn"),
    (r"\text{(C)}", "C"),
    (r"\sqrt{2}", r"\sqrt2"),
    (r"4.5e33", r"4.5\times10^{33}"),
    (r"x^2+2x+1", "(x+1)^2"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"\frac{\pi}{4}", r"0.25\pi"),
    (r"a+b", "b + a"),
    (r"(2,\frac{\pi}{2})", r"(2, \pi/2)"),
    (r"1\pm\sqrt5", r"1+\sqrt5, 1-\sqrt5"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"(-\infty,1)\cup(2,3]", r"(2,3] \cup (-\infty,1)"),
    (r"(3,4]", r"3 < x \le 4"),
    ("52_8", "(52)_8"),
    (r"5\text{ cm}^2", "5 square centimeters"),
    ("5000000", r"5\text{ million}"),
    ("x=2, y=1", "y = 1, x = 2"),
    ("(2,1)", "(x,y) = (2,1)"),
    (r"\text{(C)}", r"\text{(C) } 5"),
    ("-1", r"e^{i\pi}"),
    (r"\frac{1}{2}", r"\sin 30^\circ"),
    ("1/3", r"0.\overline{3}"),
    (r"x^2", "x²"),
)
DIFFERENT = (
    ("11", "11_2"),
    ("42", "43"),
    (r"\frac13", "0.333"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2)"),
    ("1,2", "1,2,3"),
    ("3", "3, 4"),
    ("5", "x+5"),
    (r"5\text{ km}", r"5\text{ m}"),
    ("x^2", "x^3"),
    (r"\sqrt{2}", "1.41"),
    ("6", "2,3"),
    ("-3", "3"),
    (r"\text{Evelyn}", r"\text{Angela}"),
    ("100", "4 or 100"),
    ("2", "1+2"),
    (r"[1,2]", r"\{1,2\}"),
    ("y=-1", "x=-1"),
    ("x=2, y=1", "x=1, y=2"),
    ("52_8", "52_9"),
    ("5", r"5\text{ million}"),
    ("5", "5xy"),
    ("5", r"5\text{ wrong}"),
    (r"12\pi\text{ cm}^2", r"12\pi\text{ cm}^3"),
    ("1/2^{99}", "1/2^{98}"),
    (r"\sqrt{2}", r"\sqrt2+10^{-17}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{vmatrix}1&2\\3&4\end{vmatrix}"),
    ("n", "N"),
)
OTHERS = (
    ("7", "", Outcome.no_answer),
    ("7", "9" * 1000, Outcome.parse_error),
    ("7", r"9^{9^{9^{9}}}", Outcome.parse_error),
    ("7", None, Outcome.no_answer),
)


class GraderBroken(RuntimeError):
    """The grader gives wrong outcomes for known pairs."""


def check(pool) -> None:
    """GraderBroken names all known pairs with a wrong outcome."""
    wanted = (
        [(gold, answer, Outcome.correct) for gold, answer in EQUAL]
        + [(gold, answer, Outcome.wrong) for gold, answer in DIFFERENT]
        + list(OTHERS)
    )
    found = grade(
        [
            (gold, "So it is 42." if answer is None else f"So it is \\boxed{{{answer}}}.", Rule())
            for gold, answer, _ in wanted
        ],
        pool,
    )
    broken = [
        f"gold {gold!r}, answer {answer!r}: {outcome}, not {expected}"
        for (gold, answer, expected), outcome in zip(wanted, found)
        if outcome != expected
    ]
    if broken:
        raise GraderBroken(
            f"{len(broken)} of {len(wanted)} known pairs are graded wrongly, so no reward could be "
            "trusted:\n"
            + "\n".join(broken)
            + "\nIs math-verify installed as requirements.txt says?"
        )


def grade(rows: list[tuple[str, str, Rule]], pool, extract=last_boxed) -> list[Outcome]:
    """Outcomes of (gold, completion text, rule), graded as in training."""
    answers = [extract(text) for _, text, _ in rows]
    found = [
        Outcome.no_answer if answer is None else compare(gold, answer, rule)
        for (gold, _, rule), answer in zip(rows, answers)
    ]
    deferred = [outcome for outcome in found if isinstance(outcome, DeferredComparison)]
    judged = dict(zip(deferred, pool.grade(deferred))) if deferred else {}
    return [
        judged[outcome] if isinstance(outcome, DeferredComparison) else outcome for outcome in found
    ]
