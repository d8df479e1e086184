r"""Names of the values that an answer states: x = 5, f(2) = 5, \angle A = 5, \text{Area} = 5.

Two answers are comparable if one has no name, or both have the same. `5 = x` also has the name x. A
relation with no name on either side, such as 2x = 10, is an equation, which has no single value.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from bridge_jax.grading import formula, probe, units
from bridge_jax.grading.latex import GREEK, closing, outside_brackets, split

SIGNS = {
    "=": "=",
    r"\cong": "=",
    r"\approx": r"\approx",
    "<": "<",
    ">": ">",
    r"\le": r"\le",
    r"\ge": r"\ge",
    r"\ne": r"\ne",
    r"\in": r"\in",
    r"\equiv": r"\equiv",
}
_SIGN = outside_brackets(r"\\(?:approx|cong|le|ge|ne|in|equiv)(?![A-Za-z])", "[=<>]")
_ANY_SIGN = re.compile(r"[=<>]|\\(?:approx|cong|le|ge|ne|in|equiv)(?![A-Za-z])")

_LETTER = r"(?:[A-Za-z]|\\(?:" + "|".join([*GREEK, "ell", "hbar", "mho"]) + r")(?![A-Za-z]))"
_ACCENTED = rf"\\(?:{'|'.join(formula.ACCENTS)})(?:\{{(?:{_LETTER}|[A-Z]{{2,4}})\}}|{_LETTER})"
_INDEX = r"(?:_(?:\{[^{}]*\}|\\[A-Za-z]+|[A-Za-z0-9]+|\x00[^\x00]*\x00))"
_SYMBOL = rf"(?:{_ACCENTED}|{_LETTER})'*{_INDEX}?'*"
_POINTS = r"(?:[A-Z]'*(?:_(?:\{[0-9a-z]+\}|[0-9a-z]))?){2,5}"  # AB, BEA_1
_BRACKET = r"\((?:[^()]|\([^()]*\))*\)"
_EXPONENT = r"(?:\^(?:\{-1\}|\{\([a-z0-9]\)\}|\*|\{\*\}|-1))?"
_WORDS = r"(?:\x00[^\x00]+\x00)"
_NAME = re.compile(
    "|".join(
        (
            rf"{_SYMBOL}{_EXPONENT}(?:{_BRACKET})*",
            rf"\\?\|{_SYMBOL}\\?\||\|?{_POINTS}\|?|\[{_POINTS}\]|\({_POINTS}\)",
            rf"m?\\(?:angle|triangle|Delta)\{{?(?:{_POINTS}|{_SYMBOL}|[0-9])\}}?",
            rf"\\(?:sin|cos|tan|cot|sec|csc)(?:[0-9]?{_SYMBOL}|\({_SYMBOL}\)|\\angle(?:{_POINTS}|[A-Z]))",
            rf"\\?(?:gcd|lcm|max|min){_BRACKET}|\\(?:dim|det|Pr)(?:{_SYMBOL}|{_BRACKET})",
            rf"(?:E|\\mathbb\{{E\}})\[{_SYMBOL}\]|\[\\triangle{_POINTS}\]",
            rf"\({_SYMBOL}\\circ{_SYMBOL}\){_BRACKET}",
            rf"\\begin\{{[pb]matrix\}}{_SYMBOL}(?:\\\\{_SYMBOL})+\\end\{{[pb]matrix\}}",
            rf"{_WORDS}(?:\(?(?:{_SYMBOL}|{_POINTS}|\\triangle{_POINTS})\)?{_WORDS}?|{_BRACKET})?",
            "[A-Za-z]{4,}",
            r"\\frac\{d[A-Za-z]\}\{d[A-Za-z]\}",
        )
    )
)
_TUPLE = re.compile(rf"\({_SYMBOL}(?:,{_SYMBOL})+\)")
_GENERIC_NAMES = frozenset(
    "answer theanswer finalanswer thefinalanswer result solution solutions ans".split()
)
_DECIMAL = re.compile(r"-?[0-9,]+(?:\.([0-9]+))?")
_DENIED = re.compile(r"\b(?:not|no|never|wrong|incorrect|false)\b", re.IGNORECASE)
_LABEL = re.compile(r"\x00([^\x00]+)\x00\s*:\s*(.+)", re.DOTALL)


class Relation(NamedTuple):
    """The sides of a relation and the signs between them."""

    sides: tuple[str, ...]
    signs: tuple[str, ...]


class Named(NamedTuple):
    """A value and its name ("": none); equation: `body` is a whole relation."""

    name: str
    body: str
    equation: bool = False


def relation(text: str) -> Relation | None:
    """The text split at relation signs outside brackets; None where it has none."""
    if not _ANY_SIGN.search(text):
        return None
    pieces = split(text, _SIGN)
    if len(pieces) == 1:
        return None
    return Relation(
        tuple(side for side, _ in pieces), tuple(SIGNS[sign] for _, sign in pieces[:-1])
    )


@functools.lru_cache(maxsize=4096)
def canonical(text: str) -> str:
    """The normal form of a name; "" for a text that is not a name."""
    compact = re.sub(r"\s", "", text)
    if (
        not compact
        or len(compact) > 60
        or not (_NAME.fullmatch(compact) or _TUPLE.fullmatch(compact))
    ):
        return ""
    if compact in ("i", r"\pi") or _DENIED.search(text):
        return ""
    compact = compact.replace(r"m\angle", r"\angle")
    if "\x00" in compact or re.fullmatch("[A-Za-z]{4,}", compact) and not compact.isupper():
        compact = compact.casefold()
    return re.sub(r"[{}\x00]", "", compact)


@functools.lru_cache(maxsize=4096)
def named(text: str) -> Named:
    """The text split into name and value; a leading sign alone (= 5, \\approx 5) gives no name."""
    found = relation(text)
    if found is None:
        return _labelled(text)
    if len(found.sides) != 2 or found.signs[0] not in ("=", r"\in", r"\approx"):
        return Named("", text, equation=True)
    left, right = (_without_group(side) for side in found.sides)
    if not left and found.signs[0] != r"\in":
        return Named("", right)
    if (name := canonical(left)) and not occurs(name, right):
        return Named("" if name in _GENERIC_NAMES else name, right)
    is_word = re.fullmatch(r"\s*[A-Za-z]{4,}\s*", right)
    if (
        found.signs[0] == "="
        and not is_word
        and (name := canonical(right))
        and not occurs(name, left)
    ):
        return Named("" if name in _GENERIC_NAMES else name, left)
    return Named("", text, equation=True)


def _without_group(text: str) -> str:
    """The text without braces that enclose all of it, such as those of a colour's argument."""
    inner = text.strip()
    while inner.startswith("{") and closing(inner, 1) == len(inner) - 1:
        inner = inner[1:-1].strip()
    return inner


def without_rounding(text: str) -> str:
    r"""The text without a rounded value after the exact one, as in x = \sqrt{2} \approx 1.41."""
    found = relation(text) if r"\approx" in text else None
    if found is None or r"\approx" not in found.signs or set(found.signs) - {"=", r"\approx"}:
        return text
    first = found.signs.index(r"\approx")
    value = probe.constant(units.split(found.sides[first]).body)
    rounded = [units.split(side).body for side in found.sides[first + 1 :]]
    if value is None or not all(_is_rounded(value, each) for each in rounded):
        return text
    return "=".join(found.sides[: first + 1])


def _is_rounded(value: float, text: str) -> bool:
    """Whether the text is a decimal number, equal to the value up to the places it shows."""
    found = _DECIMAL.fullmatch(text.replace(" ", ""))
    if not found:
        return False
    return abs(value - float(found[0].replace(",", ""))) <= 0.501 * 10.0 ** -len(found[1] or "")


def tuple_names(name: str) -> list[str]:
    """The names in (x,y), one for each part of a tuple; [] for a single name."""
    if not name.startswith("(") or "," not in name:
        return []
    return [canonical(part) for part in name[1:-1].split(",")]


def compatible(one: str, other: str) -> bool:
    """Whether values with these names are comparable: equal names, or one is missing."""
    return not one or not other or one == other


def _labelled(text: str) -> Named:
    """The value after a label, such as words with a colon."""
    found = _LABEL.fullmatch(text)
    if found and re.sub(r"\s", "", found[1]).casefold() in _GENERIC_NAMES:
        return Named("", found[2])
    if found and canonical(f"\x00{found[1]}\x00"):
        return Named(re.sub(r"\s", "", found[1]).casefold(), found[2])
    return Named("", text)


def occurs(name: str, text: str) -> bool:
    """Whether a one-letter name occurs in the text, which then does not give its value."""
    if not re.fullmatch(rf"{_LETTER}|[A-Za-z]_[A-Za-z0-9]+", name):
        return False
    try:
        return name in formula.letters(formula.read(text)) or name == text
    except ValueError:
        return re.search(rf"(?<![A-Za-z\\]){re.escape(name)}(?![A-Za-z])", text) is not None
