r"""The value of a formula at one fixed point: two formulas that differ there are different, and no algebra is needed.

Reads numbers, letters, + - * / ^, brackets, \frac, \sqrt, \pi and Greek letters by recursive descent into complex floats, in
time linear in the text. Whatever can be read in two ways (1/2x, 2 3, 1\frac12, x^23) or not at all gives None, and so does
what overflows or divides by zero: the question is then left to algebra. Never used to call two formulas equal.
"""

from __future__ import annotations

import cmath
import math
import re

GREEK = "alpha|beta|gamma|delta|theta|lambda|mu|nu|phi|psi|rho|sigma|tau|omega"
TOKEN = re.compile(
    rf"\s*(?:(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)|\\(?P<word>frac|sqrt|pi|cdot|times|div|{GREEK})(?![A-Za-z])|"
    r"(?P<letter>[a-zA-Z])|(?P<mark>[-+*/^(){}\[\]]))"
)
BEGINS = {"number", "letter", "frac", "sqrt", "pi", "(", "{", *GREEK.split("|")}  # of a factor
TIMES, OVER = {"*", "cdot", "times"}, {"/", "div"}
CLOSE = 1e-6  # relative difference below which two values say nothing


class _Unclear(ValueError):
    """No value, or more than one reading."""


def differ(one: str, other: str, absolute: float = 0.0, relative: float = 0.0) -> bool:
    """Whether both have values, and these are further apart than rounding and the given tolerances explain."""
    x, y = value(one), value(other)
    if x is None or y is None:
        return False
    return abs(x - y) > 1e-9 + 1.01 * max(CLOSE * max(abs(x), abs(y)), absolute, relative * abs(x))


def value(text: str) -> complex | None:
    """The value with every letter at a number of its own, e and i at theirs; None where it is unclear."""
    try:
        formula = _Formula(text)
        found = formula.sum()
        if formula.kind or not cmath.isfinite(found):
            return None
        return found
    except (_Unclear, ArithmeticError, ValueError, RecursionError):
        return None


def at(name: str) -> complex:
    """Where the probe stands: between 1.1 and 2.8, or the constant."""
    constants = {"e": math.e, "i": 1j, "pi": math.pi}
    key = sum(ord(letter) * 31**place for place, letter in enumerate(name))
    return constants.get(name, 1.1 + 1.7 * (key * 0.6180339887 % 1))


class _Formula:
    """A text and the token that comes next: `kind` is its mark, word or class, "" at the end."""

    def __init__(self, text: str):
        self.text, self.place = text.strip(), 0
        self.next()

    def next(self) -> None:
        """Step to the next token."""
        if self.place == len(self.text):
            self.kind = self.shown = ""
            return
        found = TOKEN.match(self.text, self.place)
        if not found:
            raise _Unclear
        self.place, self.shown = found.end(), found[found.lastgroup]
        self.kind = found.lastgroup if found.lastgroup in ("number", "letter") else self.shown

    def take(self, mark: str) -> None:
        """Step over the mark, which must be there."""
        if self.kind != mark:
            raise _Unclear
        self.next()

    def sum(self) -> complex:
        """Terms with + and - between them."""
        found = self.signed()
        while self.kind in ("+", "-"):
            found += self.signed()
        return found

    def signed(self) -> complex:
        """A term behind its signs."""
        sign = 1
        while self.kind in ("+", "-"):
            sign = -sign if self.kind == "-" else sign
            self.next()
        return sign * self.product()

    def product(self) -> complex:
        """Factors; one that stands beside a number behind / could belong to either side."""
        before, (found, divided) = self.kind, (self.power(), False)
        while self.kind in TIMES | OVER | BEGINS:
            if self.kind in TIMES | OVER:
                divided = self.kind in OVER
                self.next()
                before, factor = self.kind, self.power()
                found = found / factor if divided else found * factor
            else:
                if divided or self.kind == "number" or (before == "number" and self.kind == "frac"):
                    raise _Unclear
                before = self.kind
                found *= self.power()
        return found

    def power(self) -> complex:
        """A factor and its exponent."""
        base = self.factor()
        if self.kind != "^":
            return base
        self.next()
        if self.kind == "number" and len(self.shown) > 1 or self.kind in ("+", "-", "frac", "sqrt"):
            raise _Unclear
        exponent = self.factor()
        if self.kind == "^" or (
            base.real <= 0 and base.imag == 0 and exponent != round(exponent.real)
        ):
            raise _Unclear  # towers, and roots of negative numbers, which have several values
        return base**exponent

    def factor(self) -> complex:
        """A number, a letter, a bracket, a fraction or a root."""
        kind, shown = self.kind, self.shown
        if kind not in BEGINS:
            raise _Unclear
        if kind in ("(", "{"):
            return self.bracket(kind)
        self.next()
        if kind == "number":
            return complex(float(shown))
        if kind == "frac":
            return self.bracket("{") / self.bracket("{")
        if kind == "sqrt":
            root = self.bracket("[") if self.kind == "[" else 2
            inner = self.bracket("{")
            if root != 2 and inner.real <= 0:
                raise _Unclear
            return cmath.sqrt(inner) if root == 2 else inner ** (1 / root)
        return complex(at(shown))

    def bracket(self, opens: str) -> complex:
        """The sum inside a bracket."""
        self.take(opens)
        found = self.sum()
        self.take({"(": ")", "{": "}", "[": "]"}[opens])
        return found
