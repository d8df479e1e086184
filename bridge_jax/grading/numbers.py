r"""Exact numbers: decimals, fractions, repeating decimals, other bases, times of day.

`52_8` equals `(52)_8` and `52_{\text{eight}}`, but no number in another base, even with the same
value: a problem that asks for a base wants the answer in it. Base ten may be left out.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import NamedTuple

from bridge_jax.grading import formula
from bridge_jax.grading.latex import Unreadable, closing

DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
COUNTED = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
).split()
_PLAIN = re.compile(rf"([+-]?)\s*(?:({DIGITS})(?:\.([0-9]*))?|\.([0-9]+))")
_MIXED = re.compile(r"([+-]?)\s*([0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)")
_REPEATING = re.compile(
    r"([+-]?)\s*([0-9]*)\.([0-9]*?)(?:\\(?:overline|bar|dot)\s*\{?([0-9]+)\}?|\(([0-9]+)\)"
    r"|\\dot\s*\{?([0-9])\}?([0-9]*)\\dot\s*\{?([0-9])\}?)"
)
_BASED = re.compile(
    r"([+-]?)\(?([0-9A-Za-z]+(?:\.[0-9A-Za-z]+)?)\)?"
    r"(?:_\(?(?:base)?([0-9]{1,2}|[a-z]+)\)?|\(?(?:in)?base-?([0-9]{1,2}|[a-z]+)\)?)"
)
_TIME = re.compile(
    r"([0-9]{1,2})(?:\s*:\s*([0-9]{2}))?(?:\s*:\s*([0-9]{2}))?\s*(?:([ap])\.?\s*m\.?)?",
    re.IGNORECASE,
)


class BasedNumber(NamedTuple):
    """A number with its base: sign, digits without superfluous zeros, base."""

    negative: bool
    digits: str
    base: int


class Time(NamedTuple):
    """A time of day: seconds since midnight or noon, and AM or PM; "" where it is not given."""

    seconds: int
    half: str
    shown: int | None = None  # seconds as they are written; None where AM or PM is


@functools.lru_cache(maxsize=4096)
def number(text: str) -> Fraction | None:
    """The exact value of a number, or of a formula of numbers; None for anything else."""
    text = text.strip()
    while text[:1] in ("(", "{") and closing(text, 1) == len(text) - 1:
        text = text[1:-1].strip()
    if found := _PLAIN.fullmatch(text):
        whole, decimals = (found[2] or "0").replace(",", ""), found[3] or found[4] or ""
        return Fraction(found[1] + whole + (f".{decimals}" if decimals else ""))
    if found := _MIXED.fullmatch(text):
        value = int(found[2]) + Fraction(int(found[3]), int(found[4])) if int(found[4]) else None
        return -value if value is not None and found[1] == "-" else value
    if "." in text and (found := _REPEATING.fullmatch(text)):
        return _repeating(found)
    if not text[-1:] or not any(character.isdigit() for character in text):
        return None
    try:
        return formula.exact(formula.read(text))
    except Unreadable:
        return None


def _repeating(found: re.Match) -> Fraction:
    sign, whole, fixed = found[1], found[2] or "0", found[3]
    period = found[4] or found[5] or found[6] + found[7] + found[8]
    value = Fraction(int(whole + fixed), 10 ** len(fixed))
    value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
    return -value if sign == "-" else value


def number_word(text: str) -> Fraction | None:
    """The number of a word from zero to twenty."""
    word = text.replace("\x00", "").strip().casefold()
    return Fraction(COUNTED.index(word)) if word in COUNTED else None


@functools.lru_cache(maxsize=4096)
def parse_based(text: str) -> BasedNumber | None:
    """A number with its base; None for other text, such as a letter with an index."""
    if "_" not in text and "base" not in text:
        return None
    found = _BASED.fullmatch(re.sub(r"[\s\x00{}]", "", text))
    if not found:
        return None
    shown = found[3] or found[4]
    base = int(shown) if shown.isdigit() else COUNTED.index(shown) if shown in COUNTED else 0
    digits = found[2].upper()
    has_digit = any(character.isdigit() for character in digits)
    if not 2 <= base <= 36 or not has_digit and (found[2] != digits or len(digits) < 2):
        return None
    if has_digit and not digits[0].isdigit() and base <= 10:
        # A1_2 is no number
        return None
    whole, _, part = digits.partition(".")
    digits = (whole.lstrip("0") or "0") + (f".{part.rstrip('0')}" if part.rstrip("0") else "")
    return BasedNumber(found[1] == "-", digits, base)


def without_base_ten(text: str) -> str:
    """A number in base ten without its base."""
    found = parse_based(text)
    return text if not found or found.base != 10 else "-" * found.negative + found.digits


def time(text: str) -> Time | None:
    """A time of day, such as 3:30 PM; None for what shows neither minutes nor a half of the day."""
    found = _TIME.fullmatch(text.replace("\x00", "").strip())
    if not found or not (found[2] or found[4]):
        return None
    hour, minute, second = (int(found[place] or 0) for place in (1, 2, 3))
    half, shown = (found[4] or "").lower(), None
    if hour > 24 or minute > 59 or second > 59 or (half and not 1 <= hour <= 12):
        return None
    if not half:
        shown = (hour * 60 + minute) * 60 + second
        half = "" if 0 < hour <= 12 else "a" if hour in (0, 24) else "p"
    return Time((hour % 12 * 60 + minute) * 60 + second, half, shown)


def same_time(one: Time, other: Time) -> bool:
    """Whether two times are equal.

    AM or PM may be left out; 13:20 and 1:20 without it may be ratios and are not equal.
    """
    if one.shown is not None and other.shown is not None:
        return one.shown == other.shown
    return one.seconds == other.seconds and (
        one.half == other.half or not (one.half and other.half)
    )
