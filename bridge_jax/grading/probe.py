r"""Numeric values of formulas at one fixed point: formulas with different values are different.

The tree of formula.py is evaluated in complex floats, with a bound of each rounding error, in time
linear in the text. The value is None where the text is unreadable, overflows, divides by zero, or
lies on a branch cut; algebra then decides. Equal values prove nothing, and equal formulas never
count as different: where large values cancel (10^{15}+x-10^{15}), the error bound is as large as
the loss.
"""

from __future__ import annotations

import cmath
import math
from typing import NamedTuple

from bridge_jax.grading import formula, latex
from bridge_jax.grading.formula import Node
from bridge_jax.grading.latex import Unreadable

GREEK = "|".join(name for name in latex.GREEK if name != "pi")
CLOSE = 1e-6  # relative difference below which two values are not counted as different
ROUNDING = 1e-15  # bound of the relative error of one operation
UNSURE = 1e-3  # relative error above which a value is not used any more


class BoundedValue(NamedTuple):
    """A value and a bound of its error."""

    value: complex
    error: float = 0.0


class _Unclear(ValueError):
    """No value."""


def differ(one: str, other: str, absolute: float = 0.0, relative: float = 0.0) -> bool:
    """Whether the two values differ by more than rounding errors and the tolerances."""
    x, y = measure(one), measure(other)
    if x is None or y is None:
        return False
    allowed = max(CLOSE * max(abs(x.value), abs(y.value)), absolute, relative * abs(x.value))
    return abs(x.value - y.value) > 1e-9 + 1.01 * allowed + 2 * (x.error + y.error)


def value(text: str) -> complex | None:
    """The value with a fixed number for every letter (e and i as usual); None where undefined."""
    found = measure(text)
    return None if found is None else found.value


def measure(text: str) -> BoundedValue | None:
    """The value and the bound of its error; None where it is undefined."""
    try:
        found = _measure(formula.read(text))
        return found if cmath.isfinite(found.value) and math.isfinite(found.error) else None
    except (Unreadable, ArithmeticError, ValueError, RecursionError):
        return None


def constant(text: str) -> float | None:
    """The value of a formula without letters, where it is real; None for all others."""
    found = measure(text)
    if found is None or formula.letters(formula.read(text)):
        return None
    return None if abs(found.value.imag) > found.error else found.value.real


def letter_value(name: str) -> complex:
    """The number for a letter: a constant such as pi, otherwise between 1.1 and 2.8."""
    constants = {"e": math.e, "i": 1j, "pi": math.pi}
    name = name.removeprefix("\\")
    key = sum(ord(letter) * 31**place for place, letter in enumerate(name))
    return constants.get(name, 1.1 + 1.7 * (key * 0.6180339887 % 1))


def _measure(node: Node) -> BoundedValue:
    if node.kind == "number":
        found = float(node.value)
        return BoundedValue(complex(found), 0.0 if found == node.value else ROUNDING * abs(found))
    if node.kind in ("symbol", "constant"):
        if node.value == "infty":
            raise _Unclear
        return _rounded(complex(letter_value(node.value)))
    parts = [_measure(part) for part in node.parts]
    if any(part.error > UNSURE * (1 + abs(part.value)) for part in parts):
        raise _Unclear
    if node.kind == "call":
        return _call(node.value, parts)
    # any smooth function will do, the same for all that are called so
    if node.kind == "apply":
        (x,) = parts
        return _sum(_product(x, x), _product(x, _rounded(complex(letter_value(node.value)))))
    return _OPERATIONS[node.kind](*parts)


def _rounded(value: complex, error: float = 0.0) -> BoundedValue:
    return BoundedValue(complex(value), error + ROUNDING * abs(value))


def _sum(*parts: BoundedValue) -> BoundedValue:
    found = sum(part.value for part in parts)
    largest = max(abs(part.value) for part in parts)
    rounding = ROUNDING * len(parts) * largest
    return BoundedValue(found, sum(part.error for part in parts) + rounding)


def _product(*parts: BoundedValue) -> BoundedValue:
    found = BoundedValue(1.0)
    for part in parts:
        error = abs(found.value) * part.error + abs(part.value) * found.error
        found = _rounded(found.value * part.value, error + found.error * part.error)
    return found


def _quotient(top: BoundedValue, bottom: BoundedValue) -> BoundedValue:
    smallest = abs(bottom.value) - bottom.error
    if smallest <= 0 or bottom.error > UNSURE * abs(bottom.value):
        raise _Unclear
    error = (top.error + abs(top.value / bottom.value) * bottom.error) / smallest
    return _rounded(top.value / bottom.value, error)


def _power(base: BoundedValue, exponent: BoundedValue) -> BoundedValue:
    n = exponent.value
    if n == round(n.real) and exponent.error < 1e-9 and abs(n) <= formula.EXPONENT:
        if n == 0 and base.value == 0:
            raise _Unclear
        if n.real < 0:
            return _quotient(BoundedValue(1.0), _power(base, BoundedValue(-n)))
        found = base.value ** int(n.real)
        slope = abs(n) * (abs(base.value) + base.error) ** max(int(n.real) - 1, 0)
        return _rounded(found, slope * base.error + abs(n) * ROUNDING * abs(found))
    logarithm = _logarithm(base)
    return _exponential(_product(logarithm, exponent))


def _root(base: BoundedValue, degree: BoundedValue) -> BoundedValue:
    if degree.value == 2:
        if base.value.imag == 0 and base.value.real == 0 and base.error == 0:
            return BoundedValue(0.0)
        _off_the_cut(base, exact=True)
        found = cmath.sqrt(complex(base.value.real, base.value.imag or 0.0))
        return _rounded(found, base.error / max(abs(found), 1e-300))
    if base.value.imag == 0 and base.value.real <= 0:
        # real or complex, as one likes
        raise _Unclear
    return _power(base, _quotient(BoundedValue(1.0), degree))


def _off_the_cut(found: BoundedValue, exact: bool = False) -> None:
    """Raises _Unclear near the branch cut of roots and logarithms, the negative numbers.

    There rounding could flip the sign of the imaginary part.
    """
    if found.value.real > found.error or abs(found.value.imag) > found.error:
        return
    if not (exact and found.value.imag == 0 and found.value.real < -found.error):
        raise _Unclear


def _sure(error: float) -> None:
    """Raises _Unclear for a large error, for which first-order bounds do not hold."""
    if error > 0.1:
        raise _Unclear


def _logarithm(found: BoundedValue) -> BoundedValue:
    _off_the_cut(found)
    _sure(found.error / abs(found.value))
    return _rounded(cmath.log(found.value), 2 * found.error / abs(found.value))


def _exponential(found: BoundedValue) -> BoundedValue:
    _sure(found.error)
    result = cmath.exp(found.value)
    return _rounded(result, 2 * found.error * abs(result))


def _call(name: str, parts: list[BoundedValue]) -> BoundedValue:
    (x, *base) = parts
    if name == "exp":
        return _exponential(x)
    if name in ("ln", "log"):
        below = _logarithm(base[0]) if base else _rounded(math.log(10))
        return _logarithm(x) if name == "ln" else _quotient(_logarithm(x), below)
    if name in ("sec", "csc", "cot"):
        return _quotient(
            BoundedValue(1.0), _call({"sec": "cos", "csc": "sin", "cot": "tan"}[name], [x])
        )
    if name in ("tan", "tanh"):
        kind = "h" if name == "tanh" else ""
        return _quotient(_call("sin" + kind, [x]), _call("cos" + kind, [x]))
    if name in ("sin", "cos", "sinh", "cosh"):
        _sure(x.error)
        slope = abs(cmath.cosh(x.value)) + abs(cmath.cos(x.value)) + abs(cmath.sin(x.value)) + 1
        return _rounded(getattr(cmath, name)(x.value), slope * x.error)
    if name == "arctan" and x.value.imag == 0:
        return _rounded(math.atan(x.value.real), x.error)
    if name in ("arcsin", "arccos") and x.value.imag == 0 and abs(x.value.real) + x.error < 0.99:
        return _rounded(getattr(math, name.replace("arc", "a"))(x.value.real), 10 * x.error)
    if name in ("max", "min") and all(part.value.imag == 0 for part in parts):
        chosen = (max if name == "max" else min)(part.value.real for part in parts)
        return BoundedValue(chosen, max(part.error for part in parts))
    raise _Unclear


def _factorial(x: BoundedValue) -> BoundedValue:
    if (
        x.value != round(x.value.real)
        or not 0 <= x.value.real <= formula.FACTORIAL
        or x.error > 1e-6
    ):
        raise _Unclear
    return _rounded(float(math.factorial(int(x.value.real))))


def _binomial(n: BoundedValue, k: BoundedValue) -> BoundedValue:
    top, below = n.value.real, k.value.real
    whole = n.value == round(top) and k.value == round(below) and n.error + k.error < 1e-6
    if not whole or not 0 <= below <= top <= formula.EXPONENT:
        raise _Unclear
    return _rounded(float(math.comb(int(top), int(below))))


def _step(up: bool):
    def stepped(x: BoundedValue) -> BoundedValue:
        below = math.floor(x.value.real)
        far = min(x.value.real - below, below + 1 - x.value.real) > x.error + 1e-9
        if x.value.imag != 0 or not far:
            raise _Unclear
        return BoundedValue(float(below + up))

    return stepped


_OPERATIONS = {
    "sum": _sum,
    "negative": lambda x: BoundedValue(-x.value, x.error),
    "product": _product,
    "quotient": _quotient,
    "power": _power,
    "root": _root,
    "factorial": _factorial,
    "binomial": _binomial,
    "degrees": lambda x: _product(x, _rounded(math.pi / 180)),
    "abs": lambda x: BoundedValue(abs(x.value), x.error),
    "floor": _step(False),
    "ceil": _step(True),
}
