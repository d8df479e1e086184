r"""A parser of normalised LaTeX into a tree of operations.

A text has one meaning, that of printed mathematics: `\sin 2x` is sin(2x), `1\frac12` is one and a
half, `\log` has base 10. Ambiguous text (`1/2x`, `\sin x/2`, `2 3`) is Unreadable. In plain text
`x^10` is x^{10}. Parsing takes time linear in the text. Left out: integrals, sums and limits, which
state a problem rather than an answer.
"""

from __future__ import annotations

import functools
import math
import re
from fractions import Fraction
from typing import NamedTuple

from bridge_jax.grading.latex import FUNCTIONS, GREEK, Unreadable

DEEPEST = 60  # levels of recursion, more than the brackets that latex.check_limits allows
EXPONENT = 2100  # largest exponent that is evaluated
FACTORIAL = 30  # largest factorial that is evaluated
MOST_BITS = 20_000  # of a number that is evaluated exactly

LETTERS = frozenset([*GREEK, "ell", "hbar", "partial", "nabla", "mho", "Im", "Re"]) - {"pi"}
ACCENTS = frozenset(
    "vec hat bar tilde dot ddot widehat overline overrightarrow widetilde acute breve".split()
)
APPLIED = frozenset("fghFGH")  # letters that name functions when a bracket follows
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
    r"(?:[eE][+-]?[0-9]{1,3}(?![0-9]))?)|\\(?P<command>[A-Za-z]+|[^A-Za-z])|(?P<letter>[a-zA-Z])|"
    r"\x00(?P<marked>[a-zA-Z])\x00|(?P<mark>.))",
    re.DOTALL,
)
_BEGINS = frozenset(
    ["number", "letter", "frac", "binom", "sqrt", "pi", "infty", "(", "{", "[", "lfloor", "lceil"]
) | {*FUNCTIONS, *LETTERS, *ACCENTS}
_TIMES, _OVER = frozenset(["*", "cdot", "times"]), frozenset(["/", "div"])
_CLOSES = {"(": ")", "{": "}", "[": "]", "lfloor": "rfloor", "lceil": "rceil"}
# fmt: skip
_KNOWN = (
    _BEGINS
    | _TIMES
    | _OVER
    | {*_CLOSES.values()}
    | {
        "circ",
        "pm",
        "mp",
        "cup",
        "cap",
        "in",
        "ne",
        "le",
        "ge",
        "approx",
        "equiv",
        "emptyset",
        "dots",
        "mathbb",
        "mid",
        "setminus",
        "begin",
        "end",
        "to",
        "Rightarrow",
        "euro",
        "pounds",
        "yen",
        "rupee",
        "angle",
        "triangle",
        "text",
        "int",
        "sum",
        "prod",
        "lim",
        "langle",
        "rangle",
    }
)
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_SEVERAL = frozenset(["max", "min", "gcd", "lcm"])  # functions of several arguments
_DIFFERENTIAL = re.compile(
    r"\s*d\s*(\^\s*\{?[0-9]\}?)?\s*([^\s+\-*/=]+)\s*(?:\^\s*\{?[0-9]\}?)?\s*"
)
_NUMERIC_FRACTION = re.compile(r"\\frac(?:\s*(?:\{\s*[0-9]+\s*\}|[0-9])){2}")
_OF_TIME = re.compile(r"\(\s*[0t]\s*\)")  # x(0) and x(t) are values of a function
_WHOLE = re.compile(r"[0-9]+")


class Unknown(Unreadable):
    """A command that this module does not know, but that math-verify may know."""


class Node(NamedTuple):
    """One operation of a formula: its kind, its name or number, and its operands."""

    kind: str
    value: object = None
    parts: tuple = ()


class Token(NamedTuple):
    """A token: its class or its own sign, its text, and its position."""

    kind: str
    text: str
    start: int


END = Token("", "", -1)


def read(text: str) -> Node:
    """The tree of a formula; Unreadable where the text is invalid or ambiguous."""
    found = _read(text)
    if isinstance(found, Unreadable):
        raise type(found)(*found.args)
    return found


@functools.lru_cache(maxsize=4096)
def _read(text: str) -> Node | Unreadable:
    """The tree, or the error that explains why there is none."""
    try:
        reader = _Reader(text)
        found = reader.sum()
        if reader.now is not END:
            reader.base()
            raise Unreadable(f"{reader.now.text!r} after a formula")
        return found
    except Unreadable as error:
        return error.with_traceback(None)
    except RecursionError:
        return Unreadable("nested too deep")


def letters(node: Node) -> set[str]:
    """Names of the variables and of the unknown functions."""
    own = {node.value} if node.kind in ("symbol", "apply") else set()
    return own.union(*(letters(part) for part in node.parts))


def kinds(node: Node) -> set[str]:
    """Kinds of all operations, functions by their names."""
    own = {node.value if node.kind == "call" else node.kind}
    return own.union(*(kinds(part) for part in node.parts))


def exact(node: Node) -> Fraction | None:
    """The value of a formula of rational numbers; None with letters, roots or too many digits."""
    try:
        return _exact(node)
    except (ZeroDivisionError, OverflowError):
        return None


def _exact(node: Node) -> Fraction | None:
    if node.kind == "number":
        return node.value
    if node.kind not in _ARITHMETIC:
        return None
    values = []
    for part in node.parts:
        value = _exact(part)
        if value is None:
            return None
        values.append(value)
    found = _ARITHMETIC[node.kind](*values)
    too_long = found is not None and _bits(found) > MOST_BITS
    return None if too_long else found


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _sum(*values: Fraction) -> Fraction:
    return sum(values, Fraction(0))


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        root = _root(base, Fraction(exponent.denominator))
        return None if root is None else _power(root, Fraction(exponent.numerator))
    if abs(exponent) > EXPONENT or _bits(base) * abs(exponent) > 4 * MOST_BITS:
        return None
    if base == 0 and exponent <= 0:
        return None
    return base ** int(exponent)


def _root(value: Fraction, degree: Fraction) -> Fraction | None:
    """The root of a perfect power, real for odd degrees; None for all others."""
    if degree.denominator != 1 or not 2 <= degree <= EXPONENT:
        return None
    n = int(degree)
    if value < 0:
        found = _root(-value, degree) if n % 2 else None
        return None if found is None else -found
    roots = [_whole_root(side, n) for side in (value.numerator, value.denominator)]
    return None if None in roots else Fraction(*roots)


def _whole_root(value: int, degree: int) -> int | None:
    """By bisection, so that large numbers are exact."""
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= value else (low, middle - 1)
    return low if low**degree == value else None


def _factorial(value: Fraction) -> Fraction | None:
    if value.denominator != 1 or not 0 <= value <= FACTORIAL:
        return None
    found = 1
    for factor in range(2, int(value) + 1):
        found *= factor
    return Fraction(found)


def _binomial(n: Fraction, k: Fraction) -> Fraction | None:
    if n.denominator != 1 or k.denominator != 1 or not 0 <= k <= n <= EXPONENT:
        return None
    found = Fraction(1)
    for factor in range(int(min(k, n - k))):
        found = found * (n - factor) / (factor + 1)
    return found


_ARITHMETIC = {
    "sum": _sum,
    "negative": lambda value: -value,
    "product": lambda *values: math.prod(values, start=Fraction(1)),
    "quotient": lambda top, bottom: top / bottom,
    "power": _power,
    "root": _root,
    "factorial": _factorial,
    "binomial": _binomial,
    "abs": abs,
    "floor": lambda value: Fraction(value.numerator // value.denominator),
    "ceil": lambda value: Fraction(-(-value.numerator // value.denominator)),
}


class _Reader:
    """Recursive descent over the tokens of a text; `now` is the next token."""

    def __init__(self, text: str):
        self.text = text.strip()
        self.tokens = [_token(found) for found in _TOKEN.finditer(self.text)]
        self.place, self.depth, self.bars = -1, 0, 0
        self.now = END
        self.next()

    def next(self) -> Token:
        """Returns the next token and steps over it."""
        token = self.now
        self.place += 1
        self.now = self.tokens[self.place] if self.place < len(self.tokens) else END
        return token

    def after_next(self) -> str:
        """Kind of the token after the next one."""
        return self.tokens[self.place + 1].kind if self.place + 1 < len(self.tokens) else ""

    def take(self, kind: str) -> None:
        """Steps over a token of this kind; Unreadable for another one."""
        if self.now.kind != kind:
            raise Unreadable(f"{self.now.text!r} instead of {kind!r}")
        self.next()

    def begins(self) -> bool:
        """Whether a factor begins here."""
        return self.now.kind in _BEGINS or (self.now.kind == "|" and not self.bars)

    def sum(self) -> Node:
        """Terms with + and - between them."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable("nested too deep")
        terms = [self.term()]
        while self.now.kind in ("+", "-"):
            terms.append(self.term())
        self.depth -= 1
        return terms[0] if len(terms) == 1 else Node("sum", None, tuple(terms))

    def term(self) -> Node:
        """A product after its signs."""
        negative = False
        while self.now.kind in ("+", "-"):
            negative ^= self.next().kind == "-"
        found = self.product()
        return Node("negative", None, (found,)) if negative else found

    def product(self) -> Node:
        """Factors.

        One directly after a quotient is ambiguous, as it may belong to the denominator.
        """
        start = self.now
        found = self.factor()
        last, divided, quotients = found, False, 0
        while True:
            if self.now.kind in _TIMES | _OVER:
                divided = self.next().kind in _OVER
                start = self.now
                last = self.factor()
                found = Node("quotient", None, (found, last)) if divided else _times(found, last)
                quotients += divided
                if quotients > DEEPEST:
                    raise Unreadable("too many quotients")
            elif self.begins():
                if divided:
                    raise Unreadable("a factor after a quotient")
                mixed = self.is_mixed(start, last)
                start, before = self.now, last
                last = self.factor()
                self.check_beside(before, start, last)
                if mixed:
                    last = Node("sum", None, (before, last))
                    if found is not before:
                        raise Unreadable("a factor before a mixed number")
                    found = last
                else:
                    found = _times(found, last)
            else:
                return found

    def is_mixed(self, start: Token, last: Node) -> bool:
        r"""Whether a whole number stands before a fraction of whole numbers: 1\frac{1}{2}."""
        if last.kind != "number" or self.now.kind != "frac" or not _WHOLE.fullmatch(start.text):
            return False
        return _NUMERIC_FRACTION.match(self.rest()) is not None

    def rest(self) -> str:
        """The text from the next token on."""
        return self.text[self.now.start :]

    def check_beside(self, before: Node, start: Token, last: Node) -> None:
        """Adjacent numbers are a product only with powers: 2^6 3^5, (n-2)2^n. 0x is Unreadable."""
        if start.kind == "number":
            of_numbers = before.kind == "power" and before.parts[0].kind == "number"
            powered = last.kind == "power" and before.kind != "number"
            if not of_numbers and not powered:
                raise Unreadable("two numbers side by side")
        if before.kind == "number" and before.value == 0:
            raise Unreadable("zero as a coefficient")

    def factor(self) -> Node:
        """A base with its exponent, factorial and degree sign."""
        if self.now.kind in FUNCTIONS:
            return self.function()
        base = self.base()
        while self.now.kind == "!":
            self.next()
            base = Node("factorial", None, (base,))
            if self.now.kind == "!":
                raise Unreadable("a double factorial")
        if self.now.kind != "^":
            return base
        self.next()
        if self.now.kind == "circ":
            self.next()
            return Node("degrees", None, (base,))
        found = Node("power", None, (base, self.exponent()))
        if self.now.kind in ("^", "!", "_"):
            raise Unreadable("a tower of powers without brackets")
        return found

    def exponent(self) -> Node:
        """A group, or an exponent without braces: -1, 10, x, a command."""
        if self.now.kind in ("+", "-"):
            negative = self.next().kind == "-"
            found = self.base()
            return Node("negative", None, (found,)) if negative else found
        return self.base()

    def base(self) -> Node:
        """A number, a letter, a bracket, a fraction, a root, an absolute value."""
        kind = self.now.kind
        if kind == "number":
            return Node("number", _value(self.next().text))
        if kind in ("(", "{", "[", "lfloor", "lceil"):
            found = self.bracket(kind)
            return (
                Node({"lfloor": "floor", "lceil": "ceil"}[kind], None, (found,))
                if (kind in ("lfloor", "lceil"))
                else found
            )
        if kind == "|":
            return self.absolute()
        if kind in ("frac", "binom"):
            return self.fraction()
        if kind == "sqrt":
            self.next()
            degree = self.bracket("[") if self.now.kind == "[" else Node("number", Fraction(2))
            return Node("root", None, (self.argument(), degree))
        if kind in ("pi", "infty"):
            self.next()
            return Node("constant", kind)
        if kind == "letter" or kind in LETTERS or kind in ACCENTS:
            return self.symbol()
        unknown = self.now.text.startswith("\\") and kind.isalpha() and kind not in _KNOWN
        raise (Unknown if unknown else Unreadable)(f"{self.now.text!r}")

    def bracket(self, opens: str) -> Node:
        """The sum inside a bracket."""
        self.take(opens)
        bars, self.bars = self.bars, 0
        found = self.sum()
        self.bars = bars
        self.take(_CLOSES[opens])
        return found

    def absolute(self) -> Node:
        """|x|; a bar inside one closes it."""
        self.take("|")
        self.bars += 1
        found = self.sum()
        self.bars -= 1
        self.take("|")
        return Node("abs", None, (found,))

    def argument(self) -> Node:
        r"""A group, or the single digit, letter or command after \frac or \sqrt."""
        if self.now.kind == "{":
            return self.bracket("{")
        if self.now.kind == "number" and _WHOLE.fullmatch(self.now.text):
            digit, rest = self.now.text[0], self.now.text[1:]
            if rest:
                self.now = Token("number", rest, self.now.start + 1)
            else:
                self.next()
            return Node("number", Fraction(int(digit)))
        if self.now.kind in ("letter", "pi", "sqrt") or self.now.kind in LETTERS:
            return self.base()
        raise Unreadable(f"{self.now.text!r} as an argument")

    def fraction(self) -> Node:
        r"""\frac or \binom; \frac{dy}{dx} is a name of its own."""
        kind = self.next().kind
        begin = self.now.start
        top = self.argument()
        middle = self.now.start
        bottom = self.argument()
        end = self.now.start if self.now is not END else len(self.text)
        if kind == "binom":
            return Node("binomial", None, (top, bottom))
        ends = [
            _DIFFERENTIAL.fullmatch(text.strip().removeprefix("{").removesuffix("}"))
            for text in (self.text[begin:middle], self.text[middle:end])
        ]
        if all(ends):
            return Node("symbol", "d".join(re.sub(r"[\s{}]", "", found[0]) for found in ends))
        return Node("quotient", None, (top, bottom))

    def symbol(self) -> Node:
        """A letter with accents, primes and indices.

        Some letters are functions before a bracket.
        """
        name = self.next().text
        if name.removeprefix("\\") in ACCENTS:
            name = f"{name[1:]}({self.raw()})"
        while self.now.kind in ("'", "_"):
            mark = self.next().kind
            name += mark if mark == "'" else f"_{self.raw()}"
        if name in ("e", "i"):
            return Node("constant", name)
        if self.now.kind == "(" and (
            name[0] in APPLIED or _OF_TIME.match(self.rest()) or "'" in name
        ):
            return Node("apply", name, (self.bracket("("),))
        return Node("symbol", name)

    def raw(self) -> str:
        """The text of a group or of one token, without spaces and braces."""
        if self.now.kind != "{":
            if self.now is END or self.now.kind in _CLOSES.values():
                raise Unreadable("nothing after _")
            return self.next().text.strip().strip("\x00")
        depth, texts = 0, []
        while True:
            if self.now is END:
                raise Unreadable("a group that never closes")
            depth += (self.now.kind == "{") - (self.now.kind == "}")
            texts.append(self.next().text)
            if depth == 0:
                return re.sub(r"[\s{}\x00]", "", "".join(texts))

    def function(self) -> Node:
        r"""\sin^2 x, \log_2 8, \ln(x+1).

        The argument is a bracket, or all factors up to a sign or another function.
        """
        name = self.next().kind
        base = power = None
        while self.now.kind in ("^", "_"):
            if self.next().kind == "^":
                power = self.exponent()
            elif name in ("log",):
                base = self.argument()
            else:
                raise Unreadable(f"an index of {name}")
        if power is not None and exact(power) == -1:
            name, power = _INVERSE.get(name), None
            if name is None:
                raise Unreadable("the inverse of a function")
        if name == "lg":
            name = "log"
        parts = self.several() if name in _SEVERAL else (self.operand(),)
        found = Node("call", name, parts if base is None else (*parts, base))
        if self.now.kind == "^" and power is None:
            self.next()
            if self.now.kind == "circ":
                self.next()
                found = Node("call", name, (Node("degrees", None, parts), *found.parts[1:]))
            else:
                power = self.exponent()
        if power is not None:
            found = Node("power", None, (found, power))
        return found

    def several(self) -> tuple[Node, ...]:
        """Arguments in a bracket, with commas between them."""
        self.take("(")
        parts = [self.sum()]
        while self.now.kind == ",":
            self.next()
            parts.append(self.sum())
        self.take(")")
        return tuple(parts)

    def operand(self) -> Node:
        """The argument of a function of one argument."""
        if self.now.kind in ("(", "{", "["):
            return self.bracket(self.now.kind)
        if self.now.kind in FUNCTIONS:
            return self.function()
        negative = self.now.kind == "-"
        if negative:
            self.next()
        if not self.begins() or self.now.kind in FUNCTIONS:
            raise Unreadable("a function without its argument")
        start = self.now
        found = last = self.factor()
        while self.begins() and self.now.kind not in FUNCTIONS:
            if self.now.kind in ("(", "[", "{"):
                raise Unreadable("a bracket after the argument of a function")
            if self.is_mixed(start, last):
                raise Unreadable("a mixed number as an argument")
            start, before = self.now, last
            last = self.factor()
            self.check_beside(before, start, last)
            found = _times(found, last)
        if self.now.kind in _OVER and self.after_next() not in FUNCTIONS:
            raise Unreadable("a quotient after the argument of a function")
        return Node("negative", None, (found,)) if negative else found


def _times(one: Node, other: Node) -> Node:
    """A flat product."""
    parts = one.parts if one.kind == "product" else (one,)
    return Node("product", None, (*parts, other))


def _token(found: re.Match) -> Token:
    group = found.lastgroup
    text = found[group]
    start = found.start(group)
    if group == "number":
        return Token("number", text, start)
    if group in ("letter", "marked"):
        return Token("letter", text, start)
    if group == "command":
        return Token(text if text.isalpha() else f"\\{text}", f"\\{text}", start - 1)
    return Token(text, text, start)


def _value(text: str) -> Fraction:
    """The number of a token."""
    text = text.replace(",", "")
    return Fraction(text + "0" if text.endswith(".") else text.replace(".e", ".0e"))
