r"""Whether an answer equals the gold answer: a cheap stage that decides almost all, and symbolic algebra for the rest.

`compare` runs in the trainer's process: limits first, then text after normalisation, exact numbers (fractions, decimals,
percent, mixed and scientific), and the parts of lists, tuples, intervals, sets and matrices one by one; formulas whose
values differ at one point (probe.py) are different. It takes linear time. What it cannot decide becomes a Claim; `symbolic`
judges that with math-verify and sympy, part by part on the short strings, and runs in the processes of grading.pool alone,
because nothing but SIGKILL ends some expressions.
Strict: 0.333 is not 1/3, 11_2 is not 11, (1,2) is not [1,2), 5 km is not 5 m; a unit may be stated or left out. Digits that are
not ASCII are unreadable. Left out: several answers chained by "=", proofs, answers in words beyond equal words.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from bridge_jax.grading import probe
from bridge_jax.grading.outcome import Claim, Outcome, Rule

LONGEST, DEEPEST, MOST_DIGITS = (
    400,
    20,
    60,
)  # characters of an answer, open brackets at once, digits of one number
EXPONENT, FACTORIAL = 1000, 30  # largest written-out exponent and factorial that sympy may see

SPACING = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|quad|qquad|limits)(?![A-Za-z])|(?<!\\)\\[!,;:> \n]|~"
)
RENAMED = [
    (re.compile(old), new)
    for old, new in (
        (
            r"(?<=[0-9])(?:,?\\[!,:; ]|\{,\})(?=[0-9]{3}(?![0-9]))",
            ",",
        ),  # 12{,}345, 12,\\!345, 12\\,345
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:geq|ge)(?![A-Za-z])|≥", r"\\ge"),
        (r"\\(?:leq|le)(?![A-Za-z])|≤", r"\\le"),
        (r"−|–", "-"),
        ("π", r"\\pi "),
        ("∞", r"\\infty "),
        ("×", r"\\times "),
        ("·", r"\\cdot "),
        ("∪", r"\\cup "),
        ("√", r"\\sqrt"),
        (r"\^\{?\\circ\}?|°|\\degree(?![A-Za-z])", r"\\text{degrees}"),
        (r"\\\$\s*([0-9][0-9.,]*(?<![.,]))", r"\1\\text{dollars}"),
        (r"\\\$", ""),
        (r"\\?%", r"\\text{percent}"),
        (r"\\lbrace", r"\\{"),
        (r"\\rbrace", r"\\}"),
    )
]
BARE_ARGUMENT = re.compile(
    r"\\(frac)([0-9a-zA-Z])([0-9a-zA-Z])|\\(sqrt)([0-9a-zA-Z])|\\frac([0-9])\{"
)
TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname|emph)\s*\{([^{}]*)\}"
)
PREFIX = re.compile(
    r"^(?:[a-zA-Z](?:_\{?\w{1,3}\}?)?(?:\([a-zA-Z]\))?)\s*(?:=|\\in(?![a-z]))\s*(?=[^=]*$)"
)
DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
NUMBER = re.compile(rf"([+-]?)(?:({DIGITS})(?:\.([0-9]*))?|\.([0-9]+))")
RATIO = re.compile(
    r"([+-]?)(?:([0-9]+)\s*)?(?:\\frac\{\s*([+-]?[0-9.]+)\s*\}\{\s*([+-]?[0-9.]+)\s*\}|"
    r"(?<![0-9])([0-9]+)/([0-9]+))"
)
SLASHED = re.compile(r"([+-]?)\(?([+-]?[0-9.]+)\)?/\(?([0-9.]+)\)?")
SCIENTIFIC = re.compile(
    r"(.+?)(?:\\times|\\cdot|\*)\s*10\^(?:\{([+-]?[0-9]{1,3})\}|([0-9]))|(.+?)[eE]([+-]?[0-9]{1,3})"
)
UNIT = re.compile(r"(.*?[0-9}.)a-z])\s*\x00([^\x00]*)\x00(?:\^\{?([23])\}?)?$", re.DOTALL)
NO_UNIT = {
    "a",
    "an",
    "and",
    "answer",
    "are",
    "but",
    "else",
    "if",
    "is",
    "maybe",
    "no",
    "not",
    "or",
    "so",
    "than",
    "the",
    "think",
}
PROSE = re.compile(
    r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|cot|sec|csc|log|exp|max|min|gcd|lcm|mod|arcsin|arccos|arctan)"
    r"(?![A-Za-z]))[A-Za-z]{4,}"
)
UNIT_WORDS = re.compile(
    r"^([+-]?[0-9.,/]+|[+-]?\\frac\{[0-9]+\}\{[0-9]+\})\s*([A-Za-z][A-Za-z .]*?)(?:\^\{?([23])\}?)?$"
)
WORD = re.compile(r"[A-Za-z][A-Za-z' -]*")
CLOSES = {"(": ")", "[": "]", "{": "}"}
SEPARATOR = re.compile(r"\x00\s*(?:and|or)\s*\x00|\s+(?:and|or)\s+|;")


class Unreadable(ValueError):
    """The answer is beyond the limits, or cannot be parsed."""


class Shape(NamedTuple):
    """An answer taken apart: one expression, or a list ("," for any order), tuple, interval "(1,2]", matrix."""

    kind: str
    parts: tuple[str, ...]


def compare(gold: str, answer: str, rule: Rule = Rule()) -> Outcome | Claim:
    """Outcome where it can be told cheaply, else a Claim for grading.pool; parse_error for what is beyond the limits."""
    try:
        verdict = judge(gold, answer, rule, lambda g, a: cheap(g, a, rule))
    except Unreadable:
        return Outcome.parse_error
    if verdict is None:
        return Claim(gold, answer, rule)
    return Outcome.correct if verdict else Outcome.wrong


def symbolic(claim: Claim) -> Outcome:
    """What sympy says. Slow, and not safe against hostile text: for worker processes only."""

    def element(g: str, a: str) -> bool:
        found = cheap(g, a, claim.rule)
        return by_algebra(g, a, claim.rule) if found is None else found

    try:
        return (
            Outcome.correct
            if judge(claim.gold, claim.answer, claim.rule, element)
            else Outcome.wrong
        )
    except Unreadable:
        return Outcome.parse_error


def judge(
    gold: str, answer: str, rule: Rule, element: Callable[[str, str], bool | None]
) -> bool | None:
    """Compare part by part; None where an element that matters is undecided. Unreadable if the answer is."""
    check_limits(answer)
    g_text, a_text = normalise(gold), normalise(answer)
    if not a_text.strip("{}() "):
        raise Unreadable("empty")
    if flat(g_text) == flat(a_text):
        return True
    g, a = shape(g_text, rule.parts), shape(a_text, rule.parts)
    if g.kind != a.kind and {g.kind, a.kind} <= {",", "{"}:  # the set {1, 2} and the list 1, 2
        g, a = g._replace(kind=","), a._replace(kind=",")
    if len(g.parts) != len(a.parts):
        return False
    if g.kind != a.kind:
        return (
            False if "one" not in (g.kind, a.kind) or len(g.parts) > 1 else element(g_text, a_text)
        )
    if g.kind in (",", "{"):
        return in_any_order(g.parts, a.parts, lambda x, y: nested(x, y, rule, element))
    if g.kind == "one":
        return element(g.parts[0], a.parts[0])
    return everyone([element(x, y) for x, y in zip(g.parts, a.parts)])


def nested(gold: str, answer: str, rule: Rule, element) -> bool | None:
    """A part of a list, which may be a tuple or an interval itself."""
    if shape(gold).kind == shape(answer).kind == "one":
        return True if flat(gold) == flat(answer) else element(gold, answer)
    return judge(gold, answer, Rule(rule.absolute, rule.relative, False, rule.unit), element)


def everyone(verdicts: list[bool | None]) -> bool | None:
    """True if all are, False if one is, else undecided."""
    return False if False in verdicts else None if None in verdicts else True


def in_any_order(gold: tuple[str, ...], answer: tuple[str, ...], element) -> bool | None:
    """Each gold part paired with an answer part of its own; undecided where an undecided pair could still make the match."""
    left, undecided = list(answer), False
    for part in gold:
        verdicts = [element(part, other) for other in left]
        if True in verdicts:
            left.pop(verdicts.index(True))
        elif None in verdicts:
            undecided = True
        else:
            return False
    return None if undecided else True


def check_limits(text: str) -> None:
    """Unreadable for what is too long, too deep, too many digits, or not written in ASCII digits."""
    if len(text) > LONGEST or re.search(rf"[0-9]{{{MOST_DIGITS + 1}}}", text) or "\x00" in text:
        raise Unreadable("too long, or not text")
    if any(character.isdigit() and not character.isascii() for character in text):
        raise Unreadable("digits that are not ASCII")
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth > DEEPEST:
            raise Unreadable("nested too deep")


def normalise(text: str) -> str:
    r"""One spelling of LaTeX: no spacing commands, \frac{a}{b}, text between NUL characters, no dollars, no final point."""
    text = text.strip().removesuffix("\\").strip("$")
    text = text.removeprefix("\\(").removesuffix("\\)").removeprefix("\\[").removesuffix("\\]")
    for pattern, new in RENAMED:
        text = pattern.sub(new, text)
    text = TEXT.sub(lambda found: f"\x00{found[1]}\x00", SPACING.sub(" ", text).replace("$", ""))

    def braced(found: re.Match) -> str:
        if found[1]:
            return f"\\frac{{{found[2]}}}{{{found[3]}}}"
        return f"\\sqrt{{{found[5]}}}" if found[4] else f"\\frac{{{found[6]}}}{{"

    return PREFIX.sub("", BARE_ARGUMENT.sub(braced, text).strip().rstrip(".").strip())


def flat(text: str) -> str:
    """Without white space and the marks of text."""
    return re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", text.replace("\x00", ""))  # "1 2" is not 12


def shape(text: str, parts: bool = True) -> Shape:
    """Take an answer apart at its outermost commas, brackets, unions, plus-minus or matrix rows."""
    text = text.strip()
    if found := re.fullmatch(
        r"\\begin\{([pbv]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", text, re.DOTALL
    ):
        rows = [row.split("&") for row in re.split(r"\\\\(?:\[[^]]*\])?", found[2]) if row.strip()]
        return Shape(
            "matrix" + "x".join(str(len(row)) for row in rows),
            tuple(cell.strip() for row in rows for cell in row),
        )
    if text.count(r"\pm") == 1 and "," not in text:
        return Shape(",", (text.replace(r"\pm", "+").removeprefix("+"), text.replace(r"\pm", "-")))
    if len(union := split(text, r"\cup")) > 1:
        return Shape(",", union)
    opens = "{" if text.startswith(r"\{") else text[:1]
    if (
        opens in ("(", "[", "{")
        and text[-1:] in ")]}"
        and closing(text, 1 if opens != "{" else 2) == len(text) - 1
    ):
        inner = text[2:-2] if opens == "{" and text.startswith(r"\{") else text[1:-1]
        found = split(inner, ",")
        if opens == "{":
            return Shape("{", found) if text.startswith(r"\{") else shape(inner, parts)
        if len(found) > 1:
            return Shape(opens + text[-1], found)
    if re.fullmatch(
        rf"[+-]?{DIGITS}(?:\.[0-9]+)?(?:\s*\x00[^\x00]*\x00(?:\^\{{?[23]\}}?)?)?", text
    ):
        return Shape("one", (text,))  # the comma of 1,234
    found = split(SEPARATOR.sub(",", text), ",")
    found = tuple(part for part in found if part)
    return (
        Shape(",", tuple(PREFIX.sub("", part) for part in found))
        if len(found) > 1
        else Shape("one", (text,))
    )


def closing(text: str, start: int) -> int:
    """Where the bracket closes that opened before `start`; intervals may close with the other kind. -1: nowhere."""
    depth = 1
    for place in range(start, len(text)):
        depth += (text[place] in "([{") - (text[place] in ")]}")
        if depth == 0:
            return place
    return -1


def split(text: str, at: str) -> tuple[str, ...]:
    """Pieces between the separators that no bracket encloses."""
    pieces, depth, begin, place = [], 0, 0, 0
    while place < len(text):
        depth += (text[place] in "([{") - (text[place] in ")]}")
        if depth == 0 and text.startswith(at, place):
            pieces.append(text[begin:place].strip())
            begin = place = place + len(at)
        else:
            place += 1
    return (*pieces, text[begin:].strip())


def cheap(gold: str, answer: str, rule: Rule) -> bool | None:
    """Two expressions of one part each: equal text, equal numbers, equal words, or None."""
    (g, g_unit), (a, a_unit) = without_unit(gold), without_unit(answer)
    g_unit = g_unit or unit_name(rule.unit)
    if g_unit and a_unit and g_unit != a_unit:
        return False if number(g) is not None and number(a) is not None else None
    if flat(g) == flat(a):
        return True
    x, y = number(g), number(a)
    if x is not None and y is not None:
        return abs(x - y) <= max(Fraction(rule.absolute), abs(x) * Fraction(rule.relative))
    words = [WORD.fullmatch(part.replace("\x00", "").strip(" ()")) for part in (g, a)]
    if all(words) and (
        "\x00" in gold + answer
        or min(len(word[0]) for word in words) > 3
        or max(len(w[0]) for w in words) == 1
    ):
        return words[0][0].strip().casefold() == words[1][0].strip().casefold()
    if (x is not None and words[1] and len(words[1][0]) > 3) or (
        y is not None and words[0] and len(words[0][0]) > 3
    ):
        return False
    if any(re.search(r"[0-9]\s*_", g) for g in (g, a)) and (
        x is not None or y is not None
    ):  # 11_2 is not 11
        return False
    if bool(PROSE.search(g)) != bool(PROSE.search(a)):  # an expression and a sentence around it
        return False
    if ("=" in g) != ("=" in a) or probe.differ(g, a, rule.absolute, rule.relative):
        return False
    return None


def without_unit(text: str) -> tuple[str, str]:
    """The expression and its unit, "" for none: words behind a number, such as \\text{ cm}^2 or 5 dollars."""
    text = text.strip()
    found = UNIT.fullmatch(text) or UNIT_WORDS.fullmatch(text)
    words = re.findall("[a-z]+", found[2].casefold()) if found else []
    if (
        not words
        or len(words) > 3
        or NO_UNIT & set(words)
        or (found.re is UNIT_WORDS and len(words[0]) < 2)
    ):
        return text, ""
    return found[1].strip(), unit_name(found[2] + (found[3] or ""))


def unit_name(text: str) -> str:
    """One spelling of a unit: lower case, singular, without spaces and points."""
    name = re.sub(r"[\s.]", "", text.casefold()).replace("square", "2").replace("squared", "2")
    digits = "".join(sorted(re.findall("[23]", name)))
    return re.sub("[23]", "", name).removesuffix("s") + digits


def number(text: str) -> Fraction | None:
    """The exact value of a plain number; None for anything else."""
    text = re.sub(
        r"\s+",
        "" if "\\frac" in text or not re.search(r"[0-9]\s+[0-9]", text) else " ",
        text.strip(),
    )
    while text[:1] in ("(", "{") and closing(text, 1) == len(text) - 1:
        text = text[1:-1]
    try:
        if found := NUMBER.fullmatch(text):
            whole, decimals = (found[2] or "0").replace(",", ""), found[3] or found[4] or ""
            return Fraction(found[1] + whole + (f".{decimals}" if decimals else ""))
        if found := RATIO.fullmatch(text):
            value = Fraction(found[3] or found[5]) / Fraction(found[4] or found[6]) + int(
                found[2] or 0
            )
            return -value if found[1] == "-" else value
        if found := SLASHED.fullmatch(text):
            value = Fraction(found[2]) / Fraction(found[3])
            return -value if found[1] == "-" else value
        if found := SCIENTIFIC.fullmatch(text):
            value = number(found[1] or found[4])
            return (
                None
                if value is None
                else value * Fraction(10) ** int(found[2] or found[3] or found[5])
            )
        if found := re.fullmatch(r"10\^(?:\{([+-]?[0-9]{1,3})\}|([0-9]))", text):
            return Fraction(10) ** int(found[1] or found[2])
    except (ValueError, ZeroDivisionError):
        pass
    return None


def by_algebra(gold: str, answer: str, rule: Rule = Rule()) -> bool:
    """What math-verify says of two expressions, asked both ways. Unreadable if it finds no expression in the answer.

    A plain number against a formula is compared exactly, or by the rule's tolerance: math-verify rounds to six digits, by
    which 2.718282 would be e.
    """
    import math_verify  # workers alone pay for it
    import sympy
    from latex2sympy2_extended import NormalizationConfig

    g, a = (re.sub(r"\x00", "", without_unit(text)[0]) for text in (gold, answer))
    check_size(a)
    based = [bool(re.search(r"[0-9]\s*_", text)) for text in (g, a)]
    if (
        ("=" in g) != ("=" in a)
        or based[0] != based[1]
        or re.search(r"(?<![0-9_])[0-9]+\s+[0-9]", g + ";" + a)
    ):
        return False
    # units and equations are ours to judge; "boxed" would search the string for another answer
    reading = NormalizationConfig(
        basic_latex=True,
        units=False,
        malformed_operators=True,
        nits=False,
        boxed="none",
        equations=False,
    )
    how = dict(
        extraction_config=[math_verify.LatexExtractionConfig(normalization_config=reading)],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    parsed = [
        [item for item in math_verify.parse(f"${text}$", **how) if not isinstance(item, str)]
        for text in (g, a)
    ]
    if not parsed[1]:
        raise Unreadable("no expression")
    if not parsed[0]:
        return False
    one, other = parsed[0][0], parsed[1][0]
    numbers = [number(text) for text in (g, a)]
    if (
        (numbers[0] is None) != (numbers[1] is None)
        and isinstance(one, sympy.Expr)
        and isinstance(other, sympy.Expr)
    ):
        exact, formula = (numbers[0], other) if numbers[1] is None else (numbers[1], one)
        distance = sympy.simplify(sympy.nsimplify(formula, rational=True) - sympy.Rational(exact))
        if distance == 0 or not distance.is_number or not (rule.absolute or rule.relative):
            return distance == 0
        wanted = complex(formula.evalf() if numbers[0] is None else exact)
        return abs(complex(distance.evalf())) <= max(rule.absolute, rule.relative * abs(wanted))
    same = lambda one, other: math_verify.verify(one, other, strict=True, timeout_seconds=None)
    if same(parsed[0], parsed[1]) and same(parsed[1], parsed[0]):
        return True
    if not all(isinstance(side, sympy.Expr) for side in (one, other)):
        return False
    # it compares a lone symbol, b against 2b/2, by its name alone, and 2^{0.5} by a float
    return (
        sympy.simplify(sympy.nsimplify(one, rational=True) - sympy.nsimplify(other, rational=True))
        == 0
    )


def check_size(text: str) -> None:
    """Unreadable for powers and factorials whose value sympy would write out for ever."""
    plain = re.sub(r"\\[a-zA-Z]+", "", text)  # without commands a letter is a variable
    tower = re.search(r"\^[\s{(]*[0-9]+[\s)}]*\^|\^\s*[{(][^a-zA-Z]*\^", plain)
    large = any(int(digits) > EXPONENT for digits in re.findall(r"\^\s*\{?\s*-?([0-9]+)", text))
    factorial = [int(digits) > FACTORIAL for digits in re.findall(r"([0-9]+)\s*!", text)]
    if tower or large or any(factorial) or re.search(r"[)}!]\s*!", text) and len(factorial) > 0:
        raise Unreadable("a power or factorial beyond the limits")
