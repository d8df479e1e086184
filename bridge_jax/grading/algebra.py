r"""Exact equality of two formulas. Slow, and unsafe for hostile text: for worker processes only.

Both formulas are evaluated at several points, with so many digits that formulas of their length
cannot differ in later ones: 1/2^{99} is not 1/2^{98}. Equal values prove equality for constants and
for formulas that are analytic in their letters. Roots, logarithms and absolute values of letters
have branches; there sympy must also prove that the difference is zero. Text that formula.py cannot
read goes to math-verify. It is equal only if math-verify says so in both directions, and sympy
finds no difference between the two parsed expressions.
"""

from __future__ import annotations

import hashlib
import math
import re
from fractions import Fraction

import math_verify
import mpmath
import sympy
from latex2sympy2_extended import NormalizationConfig

from bridge_jax.grading import formula
from bridge_jax.grading.formula import EXPONENT, FACTORIAL, Node
from bridge_jax.grading.latex import Unreadable
from bridge_jax.grading.outcome import Rule

MOST_DIGITS = 20_000  # to which a value is worked out
POINTS = 6
BRANCHED = frozenset(
    "root abs floor ceil factorial binomial ln log arcsin arccos arctan arccot max min gcd lcm "
    "apply".split()
)
_LARGE = re.compile(r"\^[\s{(-]*[0-9]{3}|\^[^a-zA-Z]*\^|[0-9)}]\s*!|\\(?:int|sum|prod|lim)")


def equal(gold: str, answer: str, rule: Rule = Rule()) -> bool:
    """Whether two expressions are equal; constants up to the rule's tolerance.

    Unreadable if the answer cannot be parsed.
    """
    try:
        other = formula.read(answer)
    except Unreadable:
        return _by_math_verify(gold, answer)
    _check_size(other)
    try:
        one = formula.read(gold)
    except Unreadable:
        return _by_math_verify(gold, answer)
    return _same(one, other, rule)


def same_equation(gold: str, answer: str) -> bool:
    """Whether two equations, left minus right side, differ by a constant factor alone."""
    one, other = formula.read(gold), formula.read(answer)
    _check_size(other)
    points = _points(one, other)
    digits = _digits(points, one, other)
    sides = []
    with mpmath.workdps(2 * digits):
        for point in points:
            x, y = _value(one, point), _value(other, point)
            if x and y:
                sides.append((x, y))
        ratios = [x / y for x, y in sides]
        # 1 = 2 has no solution
        if len(ratios) < 3 or len({x for x, _ in sides}) < 3:
            return False
        close = mpmath.mpf(10) ** -digits * abs(ratios[0])
        if any(abs(ratio - ratios[0]) > close for ratio in ratios):
            return False
    if _branched(one) or _branched(other):
        return sympy.simplify(_to_sympy(one) / _to_sympy(other)).is_number is True
    return True


def _same(one: Node, other: Node, rule: Rule = Rule()) -> bool:
    """Whether two formulas agree at the points and, where they have branches, symbolically too."""
    seen = _agree(one, other, rule)
    if not formula.letters(one) | formula.letters(other):
        return seen == 1
    if seen >= 3 and not _branched(one) and not _branched(other):
        return True
    if seen == 0:
        return False
    branches: list[Node] = []
    plain = [_without_branches(node, branches) for node in (one, other)]
    return _agree(*plain) >= 3 or _is_zero_in_sympy(one, other)


def _agree(one: Node, other: Node, rule: Rule = Rule()) -> int:
    """Number of points at which both have values; 0 if the values differ at one."""
    points = _points(one, other)
    digits = _digits(points, one, other)
    constant = len(points) == 1
    seen = 0
    with mpmath.workdps(2 * digits):
        for point in points:
            x, y = _value(one, point), _value(other, point)
            if x is None or y is None:
                continue
            if not _close(x, y, digits, rule if constant else Rule()):
                return 0
            seen += 1
    return seen


def _without_branches(node: Node, branches: list[Node]) -> Node:
    """The formula with each branched part replaced by a new letter.

    Calls of the same function with equal arguments get the same letter.
    """
    if not formula.letters(node):
        return node
    parts = tuple(_without_branches(part, branches) for part in node.parts)
    node = node._replace(parts=parts)
    power = 1
    # the cube of the square root for the power 3/2
    if node.kind in ("root", "power") and (degree := formula.exact(parts[1])) is not None:
        degree = 1 / degree if node.kind == "root" and degree else degree
        power, degree = degree.numerator, degree.denominator
        if degree == 1:
            return node
        node = Node("root", None, (parts[0], Node("number", Fraction(degree))))
    elif not _branches_itself(node):
        return node
    for place, known in enumerate(branches):
        if _same_call(known, node):
            break
    else:
        place = len(branches)
        branches.append(node)
    letter = Node("symbol", f"branch {place}")
    return letter if power == 1 else Node("power", None, (letter, Node("number", Fraction(power))))


def _same_call(one: Node, other: Node) -> bool:
    """Whether both are the same function of equal arguments."""
    return (one.kind, one.value, len(one.parts)) == (
        other.kind,
        other.value,
        len(other.parts),
    ) and all(_agree(*pair) for pair in zip(one.parts, other.parts))


def _close(x, y, digits: int, rule: Rule) -> bool:
    """Whether two values are equal to so many digits, or up to the rule's tolerance."""
    distance = abs(x - y)
    allowed = mpmath.mpf(10) ** -digits * max(abs(x), abs(y), 1)
    if rule.absolute or rule.relative:
        allowed = max(allowed, mpmath.mpf(rule.absolute), mpmath.mpf(rule.relative) * abs(x))
    return distance <= allowed


def _branched(node: Node) -> bool:
    """Whether a function with branches is applied to letters, so that values prove no equality."""
    return _branches_itself(node) or any(_branched(part) for part in node.parts)


def _branches_itself(node: Node) -> bool:
    if not formula.letters(node):
        return False
    if (node.value if node.kind == "call" else node.kind) in BRANCHED:
        return True
    if node.kind != "power" or not formula.letters(node.parts[0]):
        return False
    exponent = formula.exact(node.parts[1])
    return exponent is None or exponent.denominator != 1


def _digits(points: list[dict], *nodes: Node) -> int:
    """Decimal digits that suffice to see any difference; Unreadable where they are too many."""
    height = max(sum(_height(node, point) for node in nodes) for point in points)
    degree = 1
    # a constant may come as near to another as its conjugates are many
    if len(points) == 1:
        degree = min(8, math.prod(_degree(node) for node in nodes))
    found = 60 + 4 * height * degree
    if found > MOST_DIGITS:
        raise Unreadable("numbers beyond the limits")
    return found


def _height(node: Node, point: dict) -> int:
    """An upper bound of the digits of numerator and denominator of a formula's value."""
    if node.kind == "number":
        return len(str(node.value.numerator)) + len(str(node.value.denominator))
    own = sum(_height(part, point) for part in node.parts) + 1
    if node.kind == "power":
        base, exponent = node.parts
        own = _height(base, point) * max(_size(exponent, point), 1) + _height(exponent, point)
    if node.kind == "call" and node.value in ("exp", "sinh", "cosh", "tanh"):
        own += _size(node.parts[0], point)
    if node.kind in ("factorial", "binomial") and not formula.letters(node):
        own += 40
    return min(own, MOST_DIGITS)


def _size(node: Node, point: dict) -> int:
    """The magnitude of an exponent, rounded up; above the limit where it has no value."""
    found = _value(node, point)
    return MOST_DIGITS if found is None else int(min(abs(found), MOST_DIGITS)) + 1


def _degree(node: Node) -> int:
    """An upper bound of the number of conjugates of a formula with roots."""
    found = 1
    for part in node.parts:
        found *= _degree(part)
    root = formula.exact(node.parts[1]) if node.kind in ("root", "power") else None
    if root is not None:
        found *= int(root) if node.kind == "root" and root >= 1 else root.denominator
    return min(found, 64)


def _check_size(node: Node) -> None:
    """Unreadable for powers and factorials whose value would be too long to compute."""
    for part in node.parts:
        _check_size(part)
    if node.kind == "power":
        exponent = node.parts[1]
        if formula.letters(exponent):
            return
        value = formula.exact(exponent)
        if value is None and not formula.kinds(exponent) & {"power", "factorial", "binomial"}:
            return
        if value is None or abs(value) > EXPONENT:
            raise Unreadable("a power beyond the limits")
    if node.kind == "factorial" and not formula.letters(node):
        value = formula.exact(node.parts[0])
        if value is None or value > FACTORIAL:
            raise Unreadable("a factorial beyond the limits")
    if node.kind == "binomial" and not formula.letters(node) and formula.exact(node) is None:
        raise Unreadable("a binomial coefficient beyond the limits")


def _value(node: Node, point: dict):
    """The value at a point; None where it is not defined or not finite."""
    try:
        found = _evaluate(node, point)
        return found if mpmath.isfinite(found) else None
    except (ZeroDivisionError, ValueError, OverflowError, TypeError, NotImplementedError):
        return None


def _points(*nodes: Node) -> list[dict]:
    """Numbers for all letters, of both signs; one point without any for constants."""
    names = sorted(set().union(*(formula.letters(node) for node in nodes)))
    if not names:
        return [{}]
    return [{name: _letter_value(name, turn) for name in names} for turn in range(POINTS)]


def _letter_value(name: str, turn: int):
    """A letter's value at point `turn`: positive at the first, negative at the second, then either.

    Its magnitude is between 1 and 3, or a seventh of that.
    """
    seed = hashlib.sha256(f"{name}/{turn}".encode()).digest()
    share = Fraction(int.from_bytes(seed[:16], "big"), 2**128)
    sign = (1, -1)[turn] if turn < 2 else (1, -1)[seed[16] % 2]
    return sign * (Fraction(11, 10) + share) / (1 if turn < 2 or turn % 2 else 7)


def _evaluate(node: Node, point: dict):
    if node.kind == "number":
        return _fraction(node.value)
    if node.kind == "symbol":
        return _fraction(point[node.value])
    if node.kind == "constant":
        return {"e": mpmath.e, "i": mpmath.j, "pi": mpmath.pi, "infty": mpmath.inf}[node.value] * 1
    parts = [_evaluate(part, point) for part in node.parts]
    if node.kind == "call":
        return _FUNCTIONS[node.value](*parts)
    # any function will do, the same for all that are called so
    if node.kind == "apply":
        place = _fraction(point[node.value])
        return parts[0] ** 2 + parts[0] * place + place
    if node.kind == "power" and (exponent := formula.exact(node.parts[1])) is not None:
        # real, as odd roots are
        if exponent.denominator % 2 and exponent.denominator > 1:
            return _power(_root(parts[0], exponent.denominator), exponent.numerator)
    return _OPERATIONS[node.kind](*parts)


def _fraction(value: Fraction):
    return mpmath.mpf(value.numerator) / value.denominator


def _power(base, exponent):
    if base == 0 and exponent == 0:
        raise ValueError("0^0")
    return mpmath.power(base, exponent)


def _root(base, degree):
    """Real for odd roots of negative numbers."""
    if mpmath.im(base) == 0 and mpmath.re(base) < 0 and degree % 2 == 1:
        return -mpmath.root(-mpmath.re(base), int(degree))
    return mpmath.power(base, mpmath.mpf(1) / degree)


def _product(*parts):
    return mpmath.fprod(parts)


def _log(value, base=10):
    if value == 0 or base == 0:
        raise ValueError("log 0")
    return mpmath.log(value) / mpmath.log(base)


def _whole(value) -> int:
    if mpmath.im(value) != 0 or value != mpmath.nint(value):
        raise ValueError("no whole number")
    return int(mpmath.nint(value))


def _common(values, function) -> int:
    return function(*(_whole(value) for value in values))


_OPERATIONS = {
    "sum": lambda *parts: mpmath.fsum(parts),
    "negative": lambda value: -value,
    "product": _product,
    "quotient": lambda top, bottom: top / bottom,
    "power": _power,
    "root": _root,
    "factorial": mpmath.factorial,
    "binomial": mpmath.binomial,
    "degrees": lambda value: value * mpmath.pi / 180,
    "abs": abs,
    "floor": mpmath.floor,
    "ceil": mpmath.ceil,
}
# fmt: skip
_FUNCTIONS = {
    "sin": mpmath.sin,
    "cos": mpmath.cos,
    "tan": mpmath.tan,
    "cot": mpmath.cot,
    "sec": mpmath.sec,
    "csc": mpmath.csc,
    "arcsin": mpmath.asin,
    "arccos": mpmath.acos,
    "arctan": mpmath.atan,
    "arccot": mpmath.acot,
    "sinh": mpmath.sinh,
    "cosh": mpmath.cosh,
    "tanh": mpmath.tanh,
    "exp": mpmath.exp,
    "ln": lambda value: _log(value, mpmath.e),
    "log": _log,
    "max": lambda *values: max(values),
    "min": lambda *values: min(values),
    "gcd": lambda *values: _common(values, sympy.igcd),
    "lcm": lambda *values: _common(values, sympy.ilcm),
}


def _is_zero_in_sympy(one: Node, other: Node) -> bool:
    """Whether sympy finds the exact difference to be zero."""
    difference = _to_sympy(one) - _to_sympy(other)
    for step in (lambda found: found, sympy.expand, sympy.simplify):
        if step(difference) == 0:
            return True
    return False


def _to_sympy(node: Node) -> sympy.Expr:
    if node.kind == "number":
        return sympy.Rational(node.value.numerator, node.value.denominator)
    if node.kind == "symbol":
        return sympy.Symbol(node.value)
    if node.kind == "constant":
        return {"e": sympy.E, "i": sympy.I, "pi": sympy.pi, "infty": sympy.oo}[node.value]
    parts = [_to_sympy(part) for part in node.parts]
    if node.kind == "call":
        return _SYMPY_FUNCTIONS[node.value](*parts)
    if node.kind == "apply":
        return sympy.Function(node.value)(*parts)
    return _SYMPY_OPERATIONS[node.kind](*parts)


_SYMPY_OPERATIONS = {
    "sum": sympy.Add,
    "negative": lambda value: -value,
    "product": sympy.Mul,
    "quotient": lambda top, bottom: top / bottom,
    "power": sympy.Pow,
    "root": lambda value, degree: sympy.Pow(value, 1 / degree),
    "factorial": sympy.factorial,
    "binomial": sympy.binomial,
    "degrees": lambda value: value * sympy.pi / 180,
    "abs": sympy.Abs,
    "floor": sympy.floor,
    "ceil": sympy.ceiling,
}
# fmt: skip
_SYMPY_FUNCTIONS = {
    "sin": sympy.sin,
    "cos": sympy.cos,
    "tan": sympy.tan,
    "cot": sympy.cot,
    "sec": sympy.sec,
    "csc": sympy.csc,
    "arcsin": sympy.asin,
    "arccos": sympy.acos,
    "arctan": sympy.atan,
    "arccot": sympy.acot,
    "sinh": sympy.sinh,
    "cosh": sympy.cosh,
    "tanh": sympy.tanh,
    "exp": sympy.exp,
    "ln": sympy.log,
    "log": lambda value, base=10: sympy.log(value, base),
    "max": sympy.Max,
    "min": sympy.Min,
    "gcd": lambda *v: sympy.gcd(list(v)),
    "lcm": lambda *v: sympy.lcm(list(v)),
}


def _by_math_verify(gold: str, answer: str) -> bool:
    """Whether math-verify finds both texts equal in both directions, and sympy no difference."""
    if "\x00" in gold + answer or _LARGE.search(answer):
        raise Unreadable("no expression")
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
        for text in (gold, answer)
    ]
    if not parsed[1] or not _read_whole(answer, parsed[1][0]):
        raise Unreadable("no expression")
    if not parsed[0] or not _read_whole(gold, parsed[0][0]):
        return False
    one, other = parsed[0][0], parsed[1][0]

    def verified(left, right) -> bool:
        return math_verify.verify(left, right, strict=True, timeout_seconds=None)

    return (
        verified(parsed[0], parsed[1])
        and verified(parsed[1], parsed[0])
        and sympy.simplify(one - other) == 0
    )


def _read_whole(text: str, found) -> bool:
    """Whether the parsed expression has all letters of the text; the parser drops unknown parts."""
    if not isinstance(found, sympy.Expr):
        return False
    shown = re.findall("[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", text))
    read = "".join(str(symbol) for symbol in found.free_symbols)
    return all(letter in read or letter in "eid" for letter in shown)
