r"""Gold answers and what they are: the ground on which rewrites.py spells them otherwise.

Three sources: a list written by hand that has every shape, the benchmarks with their own rules, and
samples of the training sets. The reading here is small, strict and shares no code with the grader:
an answer that it does not understand has the shape "other" and is left alone. Also here: what
same.py and different.py write with.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
import pathlib
import random
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from bridge_jax import tasks
from bridge_jax.data import datasets
from bridge_jax.grading.outcome import Rule

DATA = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
TRAINING = ("math", "limr", "gsm8k")

COMMANDS = (
    "frac|sqrt|pi|cdot|times|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|binom|"
    "lfloor|rfloor|lceil|rceil|alpha|beta|gamma|delta|theta|lambda|mu|omega|phi|rho|sigma|tau|zeta"
)
FORMULA = re.compile(rf"(?:\\(?:{COMMANDS})(?![A-Za-z])|[0-9A-Za-z+\-*/^_{{}}()\[\] .!'])+")
WORDS = re.compile(r"\\text\{\s*([A-Za-z][A-Za-z' -]{1,30}?)\s*\}")
CHOICE = re.compile(r"\\text\{\s*\(?([A-Z])\)?\s*\}|\(\\text\{([A-Z])\}\)")
UNIT = re.compile(r"(.*[0-9})i])\s*\\text\{\s*([A-Za-z][A-Za-z./ ]*?)\.?\s*\}(?:\^\{?([23])\}?)?")
TIME = re.compile(r"(\d{1,2}):(\d\d)\s*(?:\\text\{)?\s*([AaPp])\.?[Mm]\.?\s*\}?")
MATRIX = re.compile(r"\\begin\{([pb])matrix\}(.*)\\end\{\1matrix\}", re.DOTALL)
RELATION = re.compile(r"\\(?:le|ge|ne)(?![A-Za-z])|<|>")
TURNED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}
NAME = r"[a-zA-Z](?:_\{?[a-zA-Z0-9]\}?)?(?:\([a-zA-Z0-9]\))?|[A-Z]{2}|\\[a-z]+"
OPENS, CLOSES = ("(", "[", "{", r"\lfloor", r"\lceil"), (")", "]", "}", r"\rfloor", r"\rceil")


@dataclasses.dataclass(frozen=True)
class Gold:
    """A gold answer with its benchmark's rule, and its question where the meaning hangs on it."""

    text: str
    rule: Rule = Rule()
    question: str = ""

    @functools.cached_property
    def plain(self) -> str:
        r"""One LaTeX spelling: \frac with braces, no \left, no dollars, no spacing commands."""
        return plain(self.text)

    @functools.cached_property
    def shape(self) -> str:
        """What the answer is, "other" where that is not certain."""
        return shape(self)

    @functools.cached_property
    def value(self) -> Fraction | None:
        """The value of an integer, decimal, fraction or mixed number."""
        if self.shape == "mixed":
            return mixed_value(self.plain)
        return exact(self.plain) if self.shape in ("integer", "decimal", "fraction") else None

    @functools.cached_property
    def parts(self) -> tuple[str, ...]:
        """Elements of a list, set, tuple, interval, named list; cells of a matrix; arms of a
        union.
        """
        text = self.plain
        if self.shape == "set":
            return split(text[2:-2])
        if self.shape in ("tuple", "interval"):
            return split(text[1:-1])
        if self.shape == "matrix":
            return tuple(cell for row in rows(text) for cell in row)
        if self.shape == "union":
            return tuple(part.strip() for part in text.split(r"\cup"))
        return split(listed(text))

    @property
    def trimmed(self) -> str:
        """Its text without white space around."""
        return self.text.strip()

    @property
    def exactly(self) -> bool:
        """Whether its rule has no tolerance."""
        return not (self.rule.absolute or self.rule.relative)

    @property
    def letters(self) -> set[str]:
        """Letters that stand alone in it, outside commands and words."""
        return set(re.sub(r"\\text\{[^}]*\}|\\[a-zA-Z]+", " ", self.plain)) & set(LETTERS)

    @property
    def zero(self) -> bool:
        """Whether it is zero, or ends in a zero that would swallow a factor behind it."""
        cells = self.parts if self.shape == "matrix" else (self.plain,)
        ends = re.search(r"(?<![0-9.,])0+(?:\.0+)?\s*$", self.plain)
        return bool(ends) or all(exact(cell) == 0 for cell in cells)


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def plain(text: str) -> str:
    """One spelling for reading."""
    text = re.sub(r"(?<!\\)\$", "", text.strip())
    text = re.sub(r"\\(?:left|right|displaystyle|quad)(?![A-Za-z])", "", text)
    text = re.sub(r"\\!\s*", "", text).replace("{,}", ",")
    text = re.sub(r"(?<!\\)\\[,;:> ]", " ", text)
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\(?:mbox|textrm|textnormal|textbf|mathrm)\s*\{", r"\\text{", text)
    for old, new in ((r"\\geq?(?:slant)?", r"\\ge"), (r"\\leq?(?:slant)?", r"\\le")):
        text = re.sub(rf"{old}(?![A-Za-z])", new, text)
    text = re.sub(r"\\neq(?![A-Za-z])", r"\\ne", text).replace(r"^{\circ}", r"^\circ")
    text = re.sub(r"(?<!\\)%", r"\\%", text)
    return braced(text).strip().removesuffix(".").strip()


def braced(text: str) -> str:
    r"""\frac12, \frac 1 2 and \sqrt2 with their braces."""
    found = re.search(r"\\(frac|sqrt)(?![A-Za-z])", text)
    if not found:
        return text
    place, made = found.end(), found[0]
    if found[1] == "sqrt" and (root := re.match(r"\s*(\[[^]]*\])", text[place:])):
        place, made = place + root.end(), made + root[1]
    for _ in range(2 if found[1] == "frac" else 1):
        argument, place = one_argument(text, place)
        made += "{" + braced(argument) + "}"
    return text[: found.start()] + made + braced(text[place:])


def one_argument(text: str, place: int) -> tuple[str, int]:
    """What TeX takes as the next argument, and where it ends."""
    while place < len(text) and text[place] == " ":
        place += 1
    if text[place : place + 1] == "{":
        end = closing(text, place)
        return text[place + 1 : end].strip(), end + 1
    if command := re.match(r"\\[a-zA-Z]+", text[place:]):
        return command[0], place + command.end()
    return text[place : place + 1], place + 1


def closing(text: str, start: int) -> int:
    """Where the bracket closes that opens at `start`, of whatever kind."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] in "([{") - (text[place] in ")]}")
        if depth == 0:
            return place
    return len(text)


def depths(text: str) -> list[int]:
    """How many brackets are open before each character."""
    depth, found, place = 0, [], 0
    while place < len(text):
        token = next((mark for mark in OPENS + CLOSES if text.startswith(mark, place)), text[place])
        found += [depth] * len(token)
        depth += (token in OPENS) - (token in CLOSES)
        place += len(token)
    return found


def split(text: str, at: str = ",") -> tuple[str, ...]:
    """The pieces between commas that no bracket encloses."""
    begin, pieces = 0, []
    for place, depth in enumerate(depths(text)):
        if depth == 0 and text[place] == at:
            pieces.append(text[begin:place].strip())
            begin = place + 1
    return (*pieces, text[begin:].strip())


def listed(text: str) -> str:
    """Commas where "and" or "or" stands."""
    return re.sub(r",?\s*\\text\{,?\s*(?:and|or)\s*\}", ",", text)


def terms(text: str) -> list[str]:
    """The terms of a sum, each with its sign."""
    begin, found, depth = 0, [], depths(text)
    for place, mark in enumerate(text):
        before = text[:place].rstrip()
        if mark in "+-" and depth[place] == 0 and before and before[-1] not in "^_*/+-(=":
            if not re.search(r"\\(?:cdot|times|sin|cos|tan|log|ln)$", before):
                found.append(text[begin:place].strip())
                begin = place
    return [*found, text[begin:].strip()]


def exact(text: str) -> Fraction | None:
    r"""The value of an integer, decimal, 4.5e33, \frac{a}{b} or a/b."""
    text = text.strip()
    if re.fullmatch(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        text = text.replace(",", "")
    if re.fullmatch(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,2})?", text):
        return Fraction(text)
    if found := re.fullmatch(r"([+-]?)\s*\\frac\{([+-]?\d+)\}\{(\d+)\}", text):
        sign, over, under = found.groups()
    elif found := re.fullmatch(r"([+-]?)(\d+)/(\d+)", text):
        sign, over, under = found.groups()
    else:
        return None
    return Fraction(int(over), int(under)) * (-1 if sign == "-" else 1) if int(under) else None


def mixed_value(text: str) -> Fraction | None:
    """The value of a mixed number."""
    if found := re.fullmatch(r"(-?)(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}", text):
        sign, whole, over, under = found.groups()
        if int(over) < int(under):
            return (int(whole) + Fraction(int(over), int(under))) * (-1 if sign else 1)
    return None


def rows(text: str) -> list[list[str]]:
    """Rows and cells of a matrix."""
    inside = MATRIX.fullmatch(text)[2]
    return [
        [cell.strip() for cell in row.split("&")]
        for row in re.split(r"\\\\", inside)
        if row.strip()
    ]


def shape(gold: Gold) -> str:
    """What an answer is."""
    text = gold.plain
    if re.search(r"phantom|approx|mho|np\.|where|triangle|ldots|dots", text):
        return "other"
    several = gold.rule.parts and "," in text
    whole = (
        ("" if several else single_shape(text))
        or word_shape(text)
        or compound_shape(gold)
        or relation_shape(text)
        or formula_shape(text)
    )
    return whole or "other"


def single_shape(text: str) -> str:
    """Numbers, with or without something behind them."""
    number = r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)"
    patterns = {
        "integer": number,
        "decimal": rf"(?:{number})?\.\d+|[+-]?\d+(?:\.\d+)?e[+-]?\d+|-\.\d+",
        "money": rf"\\\$\s*{number}(?:\.\d\d)?",
        "percent": rf"{number}(?:\.\d+)?\s*\\%",
        "degrees": rf"{number}(?:\.\d+)?\^\\circ",
        "base": r"\d{2,}_\{?\d{1,2}\}?",
        "ratio": r"\d+\s*:\s*\d+",
    }
    for name, pattern in patterns.items():
        if re.fullmatch(pattern, text):
            return name
    if exact(text) is not None:
        return "fraction"
    return "mixed" if mixed_value(text) else ""


def word_shape(text: str) -> str:
    """Choices, words, times, numbers with units, named sets."""
    if CHOICE.fullmatch(text):
        return "choice"
    if TIME.fullmatch(text):
        return "time"
    if text in (r"\varnothing", r"\emptyset"):
        return "empty"
    if re.fullmatch(r"\\mathbb\s*\{?R\}?", text):
        return "reals"
    if found := UNIT.fullmatch(text):
        measured = single_shape(found[1].strip()) or formula_shape(found[1].strip())
        return "unit" if measured and not re.search(r"\b(?:and|or)\b", found[2]) else ""
    found = WORDS.fullmatch(text)
    return "word" if found and not re.search(r"\b(?:and|or)\b", found[1]) else ""


def compound_shape(gold: Gold) -> str:
    """Matrices, unions, intervals, tuples, sets and lists."""
    text = gold.plain
    if MATRIX.fullmatch(text):
        return "matrix"
    if text.count(r"\pm") == 1 and "," not in text and FORMULA.fullmatch(text.replace(r"\pm", "+")):
        return "plus-minus"
    if r"\cup" in text:
        arms = [part.strip() for part in text.split(r"\cup")]
        whole = all(bracketed(arm) and len(split(arm[1:-1])) == 2 for arm in arms)
        return "union" if whole else ""
    if text.startswith(r"\{") and text.endswith(r"\}") and closing(text, 1) == len(text) - 1:
        return "set" if all(element(part) for part in split(text[2:-2])) else ""
    if found := bracketed(text):
        return found if all(element(part) for part in split(text[1:-1])) else ""
    found = split(listed(text))
    if len(found) < 2:
        return ""
    if all(re.fullmatch(rf"(?:{NAME})\s*=[^=]+", part) for part in found):
        names = {part.partition("=")[0].strip() for part in found}
        return "named" if len(names) == len(found) else "same name"
    return "list" if all(element(part) for part in found) else ""


def element(text: str) -> bool:
    """Whether a part can be understood: a number, a formula, infinity or a tuple of these."""
    text = text.strip()
    if re.fullmatch(r"[+-]?\\infty", text) or re.fullmatch(r"[\d.]+\^\\circ", text):
        return True
    if bracketed(text):
        return all(element(part) for part in split(text[1:-1]))
    return bool(single_shape(text) or formula_shape(text))


def bracketed(text: str) -> str:
    """Interval or tuple, for one pair of brackets around two or more parts; a tuple may be an open
    interval.
    """
    if text[:1] not in ("(", "[") or text[-1:] not in (")", "]"):
        return ""
    if closing(text, 0) != len(text) - 1 or len(split(text[1:-1])) < 2:
        return ""
    if text[0] + text[-1] != "()" or r"\infty" in text:
        return "interval" if len(split(text[1:-1])) == 2 else ""
    return "tuple"


def relation_shape(text: str) -> str:
    """Equations, inequalities, memberships."""
    if r"\in " in text and (found := re.fullmatch(r"[a-z]\s*\\in\s*(.+)", text)):
        return "member" if bracketed(found[1]) == "interval" else ""
    if r"\text" in text or r"\pm" in text:
        return ""
    if RELATION.search(text) and "=" not in text:
        sides = RELATION.split(text)
        return "inequality" if all(formula_shape(side.strip()) for side in sides) else ""
    sides = text.split("=")
    if len(sides) != 2 or not all(formula_shape(side.strip()) for side in sides):
        return ""
    return "equation" if re.fullmatch(NAME, sides[0].strip()) else "implicit equation"


def formula_shape(text: str) -> str:
    """A formula of known commands; a complex number, or an angle's sine, where it is one."""
    if re.fullmatch(r"\\(?:sin|cos|tan)\s*\d+\^\\circ", text):
        return "trigonometry"
    if not FORMULA.fullmatch(text) or not re.search(r"[0-9A-Za-z]", text):
        return ""
    if re.search(r"(?<![\\A-Za-z])[A-Za-z]{4,}|\d\s+\d|\.\.|[0-9]\s*_|^[*/^]", text):
        return ""
    if re.fullmatch(r"-?\d+\s*[+-]\s*\d*\s*i|-?\d*i", text):
        return "complex"
    return "formula"


def is_interval(gold: Gold) -> bool:
    """Whether the answer is certainly an interval: by its brackets, or by what the question asks
    for.
    """
    if gold.shape == "interval":
        return True
    return gold.shape == "tuple" and len(gold.parts) == 2 and "interval" in gold.question.lower()


def is_point(gold: Gold) -> bool:
    """Whether the answer is certainly a tuple: three parts, two that fall, or by what the question
    asks for.
    """
    if gold.shape != "tuple" or "interval" in gold.question.lower():
        return False
    if len(gold.parts) > 2 or re.search(
        r"ordered|coordinates|triple|\(x, ?y\)", gold.question.lower()
    ):
        return True
    ends = [exact(part) for part in gold.parts]
    return None not in ends and ends[0] >= ends[1]


# What the rewrites are written with

NUMBERS = ("integer", "decimal", "fraction", "mixed")
FORMULAS = ("formula", "complex", "trigonometry")
UNITS = {
    "cm": ("cm", "centimeters", "centimetres", "centimeter"),
    "m": ("m", "meters", "metres", "meter"),
    "km": ("km", "kilometers", "kilometres", "kilometer"),
    "in": ("inches", "inch", "in"),
    "ft": ("feet", "ft", "foot"),
    "mi": ("miles", "mile", "mi"),
    "yd": ("yards", "yd", "yard"),
    "lb": ("pounds", "lb", "lbs", "pound"),
    "oz": ("ounces", "oz", "ounce"),
    "kg": ("kg", "kilograms", "kilogram"),
    "hour": ("hours", "hour", "hr", "hrs", "h"),
    "minute": ("minutes", "min", "minute", "mins"),
    "second": ("seconds", "sec", "second", "s"),
    "day": ("days", "day"),
    "year": ("years", "year", "yr"),
    "mph": ("mph", "miles per hour", "mi/h", "miles/hour"),
    "m/s": ("m/s", "meters per second", "metres per second"),
    "km/h": ("km/h", "kilometers per hour", "km/hr"),
    "cent": ("cents", "cent"),
    "dollar": ("dollars", "dollar", "USD"),
    "gallon": ("gallons", "gallon", "gal"),
    "unit": ("units", "unit"),
}
LENGTHS = ("cm", "m", "km", "in", "ft", "mi", "yd")
COUNTED = tuple(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen".split()
)
FULL_WIDTH = {ord(mark): ord(mark) + 0xFEE0 for mark in "0123456789"}
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
GLYPHS = {(1, 2): "½", (1, 3): "⅓", (2, 3): "⅔", (1, 4): "¼", (3, 4): "¾", (1, 5): "⅕"}
GLYPHS |= {(2, 5): "⅖", (3, 5): "⅗", (4, 5): "⅘", (1, 6): "⅙", (5, 6): "⅚", (1, 8): "⅛"}


def filled(
    templates: str, first: object = "", second: object = "", ending: str = ""
) -> Iterator[str]:
    """Templates, three spaces apart, with the first value for @, the second for #, and the ending
    behind.
    """
    for template in filter(None, templates.split("   ")):
        yield template.replace("@", str(first)).replace("#", str(second)) + ending


def bare(gold: Gold) -> bool:
    """Whether the gold's text can be put between braces or dollars as it stands."""
    return not re.search(r"(?<!\\)\$", gold.text) and "where" not in gold.text


def mark_of(bracket: str) -> str:
    """The mark of an inequality at an end of an interval."""
    return r"\le" if bracket in "[]" else "<"


def chosen(gold: Gold) -> str:
    """The letter of a choice."""
    found = CHOICE.fullmatch(gold.plain)
    return found[1] or found[2]


def based(gold: Gold) -> tuple[str, str]:
    """Digits and base."""
    return re.fullmatch(r"(\d+)_\{?(\d+)\}?", gold.plain).groups()


def sine(gold: Gold) -> tuple[str, int]:
    """The function and the angle of a sine of degrees."""
    name, angle = re.fullmatch(r"\\(\w+)\s*(\d+)\^\\circ", gold.plain).groups()
    return name, int(angle)


def names_and_values(gold: Gold) -> tuple[list[str], list[str]]:
    """Left and right sides of named parts."""
    sides = [part.split("=") for part in gold.parts]
    return [name.strip() for name, _ in sides], [value.strip() for _, value in sides]


class Measure(NamedTuple):
    """A value, the entry of its unit in UNITS ("" for another word), and the power of the unit."""

    value: str
    unit: str
    power: int


def measure(gold: Gold) -> Measure | None:
    """What a gold with a unit says."""
    if gold.shape != "unit":
        return None
    value, word, power = UNIT.fullmatch(gold.plain).groups()
    powers = {"sq": 2, "sq.": 2, "square": 2, "cubic": 3}
    first, _, rest = word.strip().partition(" ")
    if first in powers:
        word, power = rest, powers[first]
    known = [unit for unit, names in UNITS.items() if word.strip().rstrip(".") in names]
    return Measure(value.strip(), known[0] if known else "", int(power or 1))


def finite_decimal(value: Fraction) -> str:
    """Its decimal digits, "" where they never end."""
    for places in range(30):
        if (value * 10**places).denominator == 1:
            digits = str(abs(int(value * 10**places))).rjust(places + 1, "0")
            sign = "-" if value < 0 else ""
            return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)
    return ""


def decimal_of(gold: Gold) -> float:
    r"""The value of a fraction that never ends, of 3\sqrt{13} or of 12\pi; 0 for others."""
    if gold.shape == "fraction" and not finite_decimal(gold.value):
        return float(gold.value)
    if found := re.fullmatch(r"(\d*)\s*\\sqrt\{(\d+)\}", gold.plain):
        return int(found[1] or 1) * math.sqrt(int(found[2]))
    if found := re.fullmatch(r"(\d*)\s*\\pi", gold.plain):
        return int(found[1] or 1) * math.pi
    return 0.0


def repeating(value: Fraction) -> tuple[str, str] | None:
    """Digits before and in the period, of at most 6; None where it ends or is longer."""
    whole, rest = divmod(abs(value).numerator, value.denominator)
    digits, seen = "", {}
    while rest and rest not in seen and len(digits) < 10:
        seen[rest] = len(digits)
        digit, rest = divmod(rest * 10, value.denominator)
        digits += str(digit)
    if not rest or rest not in seen or len(digits) - seen[rest] > 6:
        return None
    start = seen[rest]
    return f"{'-' if value < 0 else ''}{whole}.{digits[:start]}", digits[start:]


def doubled(text: str) -> str:
    """A number as a fraction that is not reduced, another part as it is."""
    value = exact(text)
    if value is None or value < 0:
        return text
    return rf"\frac{{{2 * value.numerator}}}{{{2 * value.denominator}}}"


def factored(gold: Gold) -> dict[int, int]:
    """Primes and powers of an integer that has two primes and a power; {} for others."""
    rest, found = int(gold.value) if gold.shape == "integer" else 0, collections.Counter()
    if not 12 <= rest <= 10**9:
        return {}
    for prime in range(2, 1000):
        while rest % prime == 0:
            rest //= prime
            found[prime] += 1
    return dict(found) if rest == 1 and len(found) > 1 and max(found.values()) > 1 else {}


def power_of(prime: int, power: int) -> str:
    """2^{3}, or the prime itself."""
    return f"{prime}^{{{power}}}" if power > 1 else str(prime)


def complex_parts(text: str) -> tuple[int, int]:
    """a and b of a+bi."""
    found = re.fullmatch(r"(?:(-?\d+)\s*(?=[+-]))?\s*([+-]?)\s*(\d*)\s*i", text)
    size = int(found[3] or 1)
    return int(found[1] or 0), -size if found[2] == "-" else size


def written(real: int, imaginary: int) -> str:
    """a+bi as people write it."""
    size = "" if abs(imaginary) == 1 else str(abs(imaginary))
    if not imaginary:
        return str(real)
    if not real:
        return f"{'-' if imaginary < 0 else ''}{size}i"
    return f"{real}{'-' if imaginary < 0 else '+'}{size}i"


def in_matrix(table: list[list[str]]) -> str:
    """A matrix of these rows."""
    inside = r" \\ ".join(" & ".join(row) for row in table)
    return rf"\begin{{pmatrix}} {inside} \end{{pmatrix}}"


def plain_algebra(text: str) -> bool:
    """Whether every letter is a variable and every bracket a product: no f(x), no floor, no
    factorial.
    """
    functions = r"[A-Za-z]\s*\([A-Za-z0-9]*\)|floor|ceil|binom|!|'|_|\\exp|[A-Z]"
    return not re.search(functions, text)


# The golds

BUILT_IN = tuple(
    Gold(text)
    for text in (
        # integers
        "5",
        "12",
        "-7",
        "16",
        "100",
        "204",
        "2016",
        "15552",
        "1234567",
        "5000000",
        "1",
        "0",
        # fractions, decimals, mixed numbers
        r"\frac{1}{3}",
        r"-\frac{7}{12}",
        r"\frac{5}{6}",
        r"\frac12",
        "3/4",
        r"\frac{22}{7}",
        r"\dfrac{9}{4}",
        "0.15",
        ".0000672",
        "3.21",
        "-2.5",
        "4.5e33",
        "1.5",
        r"1\frac{4}{5}",
        r"137 \frac{1}{2}",
        # numbers with something behind them
        r"50\%",
        r"62.5\%",
        r"\$36",
        r"\$18.90",
        r"\$32,\!348",
        r"90^\circ",
        r"15\text{ cm}^2",
        r"6\text{ feet}",
        r"5\text{ m/s}",
        r"10\text{ hours}",
        r"60\text{ mph}",
        r"20\text{ square units}",
        r"12\pi\text{ cm}^2",
        r"12\pi\text{ cm}^3",
        r"5\sqrt{3}\text{ inches}",
        r"\frac{27}{2}\text{ km}",
        "52_8",
        "1101_2",
        "4210_{5}",
        r"3:30\text{ PM}",
        r"11:05\text{ a.m.}",
        "3:5",
        # words, choices
        r"\text{even}",
        r"\text{Evelyn}",
        r"\text{ellipse}",
        r"\text{(C)}",
        r"(\text{B})",
        # tuples, intervals, sets, lists
        "(2,-1)",
        "(1,2,3)",
        r"\left( 7, \frac{3}{4}, -2 \right)",
        "(3,4]",
        r"[0,\infty)",
        r"(-\infty,2)",
        r"(-\infty,2)\cup(3,\infty)",
        r"[-1,0)\cup(0,\frac{5}{2}]",
        r"x \in [-2,7]",
        r"3<x\le4",
        "x>2",
        r"k\le -\frac{1}{2}",
        "12.5 > x > 0",
        r"x\ne 3",
        r"\{1,2,3\}",
        r"\{-\frac{1}{2}, 4\}",
        r"\varnothing",
        r"\mathbb{R}",
        "1,-2",
        "3, 5, 7",
        r"\frac{1}{3},1,\frac{1}{9}",
        r"1 \pm \sqrt{19}",
        r"\pm\sqrt{7}",
        r"\begin{pmatrix} -1 & 0 \\ 2 & -1/3 \end{pmatrix}",
        r"\begin{pmatrix} -18 \\ -49 \\ 96 \end{pmatrix}",
        # equations and named parts
        "x=5",
        "y=-1",
        "y=2x+3",
        "f(x)=x^2",
        "x=2, y=1",
        r"a=3\text{ and }b=-4",
        "AB=9, CD=4",
        "2x+3y=7",
        "x+2y-2z-9=0",
        # complex numbers and formulas
        "6-5i",
        "1+2i",
        "-8+2i",
        "x^2+2x+1",
        "3xy",
        "n",
        "e",
        "p - q",
        r"3\sqrt{13}",
        r"\sqrt{2}",
        r"\frac{\sqrt{3}}{3}",
        r"12\pi",
        r"\frac{1}{2^{99}}",
        r"1-\frac{1}{2^{60}}",
        r"\tan 15^\circ",
        r"\cos 40^\circ",
        r"(a+5)(b+2)",
        "3R^2",
        r"\frac{11+9a}{20}",
        r"2^{k}-k-1",
    )
) + (
    Gold("(0,12.5)", question="Answer in interval notation."),
    Gold(r"(3,\frac{\pi}{2})", question="Give the coordinates."),
    Gold("(2,4)", question="Find the ordered pair."),
    Gold("100$,$200", Rule(parts=True)),
    Gold("2500,7500", Rule(parts=True)),
    Gold("69$,$84", Rule(parts=True)),
    Gold(r"f(x)=x$,$f(x)=2-x", Rule(parts=True)),
    Gold("41", Rule(unit="km")),
    Gold("1.414", Rule(relative=1e-4)),
    Gold("4.2", Rule(absolute=0.1)),
)


def ground() -> list[Gold]:
    """All golds: those written by hand, and real ones where the data stand beside the project."""
    real = benchmarks() + training() if DATA.is_dir() else []
    return [*BUILT_IN, *real]


def benchmarks() -> list[Gold]:
    """Every gold answer of the benchmarks beside the project, with its task's rule."""
    found = []
    for path in sorted((DATA / "benchmarks").glob("*.jsonl")):
        if path.stem in tasks.names():
            module = tasks.load(path.stem)
            made = module.make(module.Config(data_dir=str(DATA)))
            found += [Gold(row.answer, row.rule, row.question) for row in made.splits[path.stem]]
        else:
            lines = path.read_text(encoding="utf-8").split("\n")
            found += [json_gold(line) for line in lines if line]
    return found


def json_gold(line: str) -> Gold:
    """A row of a file that no task reads."""
    row = json.loads(line)
    return Gold(row["answer"], question=row["problem"])


def training(each: int = 400, seed: int = 0) -> list[Gold]:
    """A sample of different golds of each training set; 0: all."""
    found = []
    for name in TRAINING:
        module = tasks.load(name)
        source = getattr(module, "SOURCE", None) or module.TRAIN
        golds = {
            row["answer"]: Gold(row["answer"], question=row["problem"])
            for row in datasets.read(source, str(DATA))
        }
        different = [golds[answer] for answer in sorted(golds)]
        random.Random(seed).shuffle(different)
        found += different[: each or None]
    return found
