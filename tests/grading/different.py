r"""Answers that mean something else than a gold answer: one generator for each way to be wrong.

None of these may ever be called correct. Each is certain to be a change: golds for which it is not
(a zero times a letter, a choice with its text, a constant C that may be called c, a number within
its rule's tolerance) are left out.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from fractions import Fraction

from tests.grading import golds
from tests.grading.golds import (
    FORMULAS,
    LENGTHS,
    NUMBERS,
    UNITS,
    Gold,
    bare,
    complex_parts,
    exact,
    factored,
    filled,
    finite_decimal,
    in_matrix,
    is_interval,
    is_point,
    measure,
    plain_algebra,
    power_of,
    repeating,
    written,
)

CHANGED: dict[str, Callable[[Gold], Iterator[str]]] = {}


def changed(made):
    """Enter a generator under its name."""
    CHANGED[made.__name__.replace("_", " ")] = made
    return made


# Something put before or behind


def appended(gold: Gold, endings: str) -> Iterator[str]:
    """The gold and an ending; no zero, no infinity that swallows it, no choice that has a text
    behind it.
    """
    if gold.shape in ("choice", "other", "empty", "reals") or not bare(gold):
        return
    if not gold.zero and not re.search(r"infty\s*$", gold.plain):
        yield from (gold.trimmed + ending for ending in endings.split("|"))


@changed
def letters_behind(gold: Gold) -> Iterator[str]:
    yield from appended(gold, r" xy|xy|\,xy| abc| z| \cdot x")


@changed
def words_behind(gold: Gold) -> Iterator[str]:
    yield from appended(gold, r" wrong|\text{ wrong}| NONSENSE|\text{ NONSENSE}| foo bar")
    yield from appended(gold, r"\text{ is wrong}")


@changed
def words_of_scale_behind(gold: Gold) -> Iterator[str]:
    yield from appended(gold, r" million|\text{ million}|\text{ thousand}| billion| dozen")
    yield from appended(gold, r"\text{ hundred}")


@changed
def plus_one_behind(gold: Gold) -> Iterator[str]:
    if gold.exactly:
        yield from appended(gold, r" plus one|\text{ plus one}| + 1|+1|\text{ minus }1")


@changed
def constants_behind(gold: Gold) -> Iterator[str]:
    yield from appended(gold, r" pi|\pi|i| i| e|\cdot e| \theta")


@changed
def approximately_nonsense(gold: Gold) -> Iterator[str]:
    if bare(gold) and gold.shape != "other":
        yield from filled(
            r"@ \approx NONSENSE   @ \approx \text{NONSENSE}   @ ≈ NONSENSE", gold.trimmed
        )
        if gold.value is not None:
            if apart(gold, gold.value + 1000):
                yield from filled(r"@ \approx #   @ = #", gold.trimmed, int(gold.value) + 1000)
        if gold.shape == "formula" and len(gold.plain) == 1:
            yield rf"{gold.plain} \approx 17"


@changed
def words_before(gold: Gold) -> Iterator[str]:
    if bare(gold) and gold.shape in (*NUMBERS, *FORMULAS, "word", "tuple", "interval"):
        yield from filled(r"\text{not } @   \text{not equal to }@   \ne @", gold.trimmed)
        if gold.shape in NUMBERS:
            yield from filled(r"less than @   \text{more than }@   \text{at least }@", gold.trimmed)


@changed
def words_that_compute(gold: Gold) -> Iterator[str]:
    if gold.value is not None and gold.value > 2 and gold.shape != "mixed":
        text = gold.plain.replace(",", "")
        for word in ("squared", "cubed", "halves", "thirds", "or more", "at most", "times x"):
            yield from filled(r"@ #   @\text{ #}", text, word)
        yield from filled(r"@‰   @\text{k}", text)
        for word in ("minus", "negative", "half of", "twice", "about twice"):
            yield from filled(r"# @   \text{# }@", text, word)


@changed
def several_answers(gold: Gold) -> Iterator[str]:
    if gold.value is not None and not gold.rule.parts and apart(gold, gold.value + 29):
        text, other = gold.plain.replace(",", ""), int(gold.value) + 29
        yield from filled(
            r"@, #   #, @   @ or #   @\text{ or }#   #\text{ and }@   @; #", text, other
        )
        yield from filled(r"\{@, #\}   @ \pm 29   (@, #)", text, other)
    elif gold.shape == "word":
        yield from filled(r"@\text{ or not}   @, \text{neither nor}", gold.plain)
    elif gold.shape == "choice":
        letter = golds.chosen(gold)
        other = "A" if letter == "D" else "D"
        yield from filled(r"\text{(@), (#)}   @ or #   \text{@ or #}   @#", letter, other)


@changed
def operators_applied(gold: Gold) -> Iterator[str]:
    text = gold.plain.replace(",", "")
    if gold.shape == "complex":
        yield from filled(r"\overline{@}   |@|   \text{Re}(@)", text)
    elif gold.value and gold.shape != "mixed":
        yield from filled(r"\pm @   \cancel{@}", text)
        if gold.value < 0:
            yield f"|{text}|"
        if gold.exactly:
            yield rf"\sin({text})"
        if apart(gold, Fraction(math.floor(gold.value))):
            yield rf"\lfloor {text} \rfloor"
        if gold.value > 2:
            yield from filled(r"\frac{1}{@}   \sqrt{@}   (@)^2   (@)^{-1}   2(@)   (@)(@)", text)
            yield from filled(r"\ln(@)   -(@)", text)
        if gold.shape == "integer" and gold.value > 2:
            yield from filled(r"@!   @^2   @^{0}   @^{-1}   @\%+1", text)


@changed
def something_behind_a_unit(gold: Gold) -> Iterator[str]:
    if gold.shape in ("integer", "fraction") and gold.value and not gold.rule.unit:
        forms = (
            r"@\text{ cm} \times 3   @\text{ cm}+1\text{ cm}   @\text{ cm} 7   "
            r"@\text{ feet }2\text{ inches}   @\text{ cm million}   \$@ \text{ million}"
        )
    elif gold.shape == "unit":
        forms = r"@ \cdot 2   @ + 1   @\text{ squared}   -@"
    elif gold.shape in ("degrees", "percent", "money"):
        forms = r"@ + 1   @ \cdot 3   -@   2@"
    else:
        return
    yield from filled(forms, gold.plain)


# Names and relations


@changed
def another_name(gold: Gold) -> Iterator[str]:
    if gold.shape != "equation":
        return
    name, value = (side.strip() for side in gold.plain.split("="))
    used = set(re.findall(r"[A-Za-z]", gold.plain))
    yield from filled("@'=#   @''=#" if len(name) == 1 else "", name, value)
    if function := re.fullmatch(r"([a-zA-Z])\((\w)\)", name):
        inside = f"({function[2]})={value}"
        yield from filled(r"@'#   @^{-1}#", function[1], inside)
        yield from (other + inside for other in ("h", "q", "F") if other not in used)
        return
    others = [other for other in ("x", "y", "z", "n", "m", "u", "AB") if not set(other) & used]
    for other in (*others, r"\theta"):
        yield from filled("@=#   #=@", other, value)
    if len(name) == 1:
        yield from filled("@_1=#", name, value)


@changed
def names_of_parts_swapped(gold: Gold) -> Iterator[str]:
    if gold.shape == "same name":
        yield f"{gold.parts[0]}, h{gold.parts[1][1:]}"
    elif gold.shape == "named":
        names, values = golds.names_and_values(gold)
        yield ", ".join(f"{name}={value}" for name, value in zip("uwv", values))
        numbers = [exact(value) for value in values]
        # of n and 1 one is a number, the other is none
        if len(set(numbers)) == len(numbers):
            wrong = [f"{name}={value}" for name, value in zip(names[::-1], values)]
            for joint in (", ", r"\text{ and }", "; ", " and ", ","):
                yield joint.join(wrong)
            yield f"({','.join(names)})=({','.join(values[::-1])})"


@changed
def name_under_an_operation(gold: Gold) -> Iterator[str]:
    if gold.shape == "equation":
        name, value = (side.strip() for side in gold.plain.split("="))
        if exact(value) not in (None, 0, 1):
            yield from filled(
                r"-@=#   2@=#   @^2=#   @+1=#   \sqrt{@}=#   \frac{@}{2}=#", name, value
            )
            yield from filled(r"-|@|=#   @ \approx #1   @=#=0", name, value)
    elif is_point(gold):
        yield from filled(r"(x,y) \ne @   2@   -@" if not gold.zero else "", gold.plain)


@changed
def another_relation(gold: Gold) -> Iterator[str]:
    marks = (r"\ne", ">", "<", r"\ge", r"\le", r"\neq", "!=", ">=", "≠")
    if gold.shape in ("integer", "fraction", "decimal"):
        yield from (f"x {mark} {gold.plain}" for mark in marks)
    elif gold.shape == "equation" and exact(gold.plain.partition("=")[2]) is not None:
        yield from (gold.plain.replace("=", f" {mark} ") for mark in marks)


@changed
def equation_that_another_number_solves(gold: Gold) -> Iterator[str]:
    if gold.shape in ("integer", "fraction") and gold.value > 2 and not gold.rule.parts:
        asked = gold.question.replace(" ", "")
        for left in ("2x", "x+1", "x^2", "3x", "-x", r"\frac{x}{2}", "x-4"):
            if left not in asked:
                yield from filled("@=#   #=@", left, gold.plain)


@changed
def false_equalities(gold: Gold) -> Iterator[str]:
    if gold.shape == "integer" and gold.exactly:
        number = int(gold.value)
        yield from filled("@=#   #=@   x=@=#   x=#=@", number, number + 1)
        yield f"{number} = {abs(number)}+7"


@changed
def relations_turned(gold: Gold) -> Iterator[str]:
    others = {
        "<": (">", r"\le", "=", ">="),
        ">": ("<", r"\ge", "<="),
        r"\le": (r"\ge", "<", "="),
        r"\ge": (r"\le", ">", "<"),
        r"\ne": ("=", "<"),
    }
    if gold.shape == "inequality":
        mark = golds.RELATION.search(gold.plain)
        for other in others[mark[0]]:
            yield gold.plain[: mark.start()] + f" {other} " + gold.plain[mark.end() :]
    elif is_interval(gold) and "x" not in gold.letters and "infty" not in gold.plain:
        low, high = gold.parts
        below = "<" if gold.plain[0] == "[" else r"\le"
        above = "<" if gold.plain[-1] == "]" else r"\le"
        yield f"{low} {below} x {above} {high}"
        yield from filled(r"@ > x > #   x < #   @ < x < # \text{ or } x > 1000", low, high)
        yield f"{low} < x^2 {above} {high}"
        if exact(low) is not None and exact(low) >= 0:
            yield f"{low} {golds.mark_of(gold.plain[0])} |x| {golds.mark_of(gold.plain[-1])} {high}"


@changed
def outside_an_interval(gold: Gold) -> Iterator[str]:
    if is_interval(gold) or gold.shape == "union":
        yield from filled(r"x \notin @   \mathbb{R} \setminus @", gold.plain)
    elif gold.shape == "member":
        yield gold.plain.replace(r"\in", r"\notin")


# Bases, units, times


@changed
def another_base(gold: Gold) -> Iterator[str]:
    if gold.shape == "base":
        digits, base = golds.based(gold)
        for other in range(max(map(int, digits)) + 1, 17):
            if other != int(base):
                yield from filled(r"@_{#}   (@)_{#}", digits, other)
                yield rf"{digits}_{{\text{{{golds.COUNTED[other]}}}}}"
                if other < 10:
                    yield from (f"{digits}_{other}", f"{digits}{chr(0x2080 + other)}")


@changed
def base_too_many_or_too_few(gold: Gold) -> Iterator[str]:
    if gold.shape == "base" and golds.based(gold)[1] != "10":
        yield golds.based(gold)[0]
    elif gold.shape == "integer" and gold.value >= 10 and gold.exactly and not gold.rule.parts:
        digits = str(int(gold.value))
        for base in range(max(map(int, digits)) + 1, 10):
            yield from filled("@_#   (@)_{#}", digits, base)


@changed
def another_unit(gold: Gold) -> Iterator[str]:
    if gold.shape == "unit":
        yield from other_units(gold)
    elif gold.shape == "degrees":
        yield from filled(
            r"@\text{ radians}   @\%   @\text{ cm}", gold.plain.removesuffix(r"^\circ")
        )
    elif gold.shape == "percent":
        value = gold.plain.removesuffix(r"\%").strip()
        yield from filled(r"@^\circ   @\text{ cm}   \$@", value)
        yield rf"{finite_decimal(exact(value) / 100)}\%"
    elif gold.shape == "money":
        amount = gold.plain.lstrip("\\$ ")
        yield from filled(r"@ cents   €@   @\text{ euros}   @\%   £@", amount)
    elif gold.rule.unit == "km" and gold.shape in NUMBERS:
        yield from filled(r"@\text{ m}   @\text{ miles}   @ meters", gold.plain)


def other_units(gold: Gold) -> Iterator[str]:
    """The same value with units of another size or kind."""
    found = measure(gold)
    if not found.unit or found.unit == "unit":
        return
    raised = "" if found.power == 1 else f"^{found.power}"
    for unit in LENGTHS if found.unit in LENGTHS else UNITS:
        if unit not in (found.unit, "unit"):
            name = UNITS[unit][0]
            yield rf"{found.value}\text{{ {name}}}{raised}"
            if len(name) > 1:
                yield f"{found.value} {name}{raised}"


@changed
def another_power_of_the_unit(gold: Gold) -> Iterator[str]:
    found = measure(gold)
    if found and found.unit in LENGTHS and found.power > 1:
        for power, name in itertools.product({1, 2, 3} - {found.power}, UNITS[found.unit][:2]):
            raised = "" if power == 1 else f"^{power}"
            yield rf"{found.value}\text{{ {name}}}{raised}"
            if power > 1:
                yield rf"{found.value}\text{{ {'square' if power == 2 else 'cubic'} {name}}}"
            if len(name) > 1:
                yield f"{found.value} {name}{raised}"


@changed
def other_half_of_the_day(gold: Gold) -> Iterator[str]:
    if gold.shape == "time":
        hour, minute, half = golds.TIME.fullmatch(gold.plain).groups()
        same = f"{half.upper()}M"
        other = "AM" if same == "PM" else "PM"
        yield from filled(r"@ #   @\text{ #}   \text{@ #}", f"{hour}:{minute}", other)
        yield f"{hour}:{minute} {other.lower()}"
        yield from filled(r"@ #   @\text{ #}", f"{int(hour) % 12 + 1}:{minute}", same)


# Numbers

TINY = ("+10^{-17}", r"+\frac{1}{2^{99}}", "-10^{-40}", r"-\frac{1}{10^{18}}", r"+2^{-80}")


@changed
def tiny_difference(gold: Gold) -> Iterator[str]:
    text = gold.plain.replace(",", "")
    algebra = gold.shape == "formula" and plain_algebra(gold.plain)
    if not gold.exactly:
        return
    if gold.shape in ("integer", "fraction", "decimal") or algebra:
        yield from (text + tiny for tiny in TINY)
    if gold.shape == "integer":
        yield from filled(
            r"@.00000000000000001   x=@+10^{-17}   @.00000000000000001\text{ cm}", text
        )
        yield f"{text}.{'0' * 30}1"
        if gold.value > 0:
            yield f"{int(text) - 1}.{'9' * 25}"
    elif gold.shape in ("degrees", "percent", "money") and "." not in text:
        yield re.sub(r"(\d)(?!.*\d)", rf"\g<1>.{'0' * 18}1", gold.plain)
    elif gold.shape == "unit":
        value, rest = gold.plain.split(r"\text", 1)
        yield from (rf"{value.strip()}{tiny}\text{rest}" for tiny in TINY)
    elif gold.shape == "formula" and (found := re.search(r"2\^\{(\d\d)\}", text)):
        for power in (int(found[1]) + 1, int(found[1]) - 1):
            yield text[: found.start()] + f"2^{{{power}}}" + text[found.end() :]


@changed
def tiny_difference_in_a_part(gold: Gold) -> Iterator[str]:
    if not gold.exactly or gold.shape not in ("tuple", "set", "list", "matrix", "interval"):
        return
    for place, part in enumerate(gold.parts[:8]):
        algebra = golds.formula_shape(part) and plain_algebra(part)
        if exact(part) is not None or algebra:
            for tiny in TINY[:2]:
                yield with_part(gold, place, part + tiny)
        if re.fullmatch(r"-?\d+", part):
            yield with_part(gold, place, part + ".00000000000000001")


def with_part(gold: Gold, place: int, part: str) -> str:
    """The gold with another part at a place."""
    parts = [*gold.parts[:place], part, *gold.parts[place + 1 :]]
    if gold.shape != "matrix":
        return enclosed(gold, parts)
    width = len(golds.rows(gold.plain)[0])
    return in_matrix([parts[begin : begin + width] for begin in range(0, len(parts), width)])


def enclosed(gold: Gold, parts: list[str]) -> str:
    """Other parts in the gold's own brackets."""
    if gold.shape == "list":
        return ", ".join(parts)
    opens, closes = (r"\{", r"\}") if gold.shape == "set" else (gold.plain[0], gold.plain[-1])
    return opens + ", ".join(parts) + closes


@changed
def rounded(gold: Gold) -> Iterator[str]:
    if not gold.exactly:
        return
    if gold.shape in ("fraction", "mixed") and (found := repeating(gold.value)):
        before, period = found
        for length in (2, 6, 16, 30):
            yield before + (period * length)[:length]
        last = (int(period[-1]) + 1) % 10
        yield rf"{before}\overline{{{period[:-1]}{last}}}"
    elif found := re.fullmatch(r"(-?)(\d*)\s*\\sqrt\{(\d+)\}", gold.plain):
        square = int(found[2] or 1) ** 2 * int(found[3])
        for places in (2, 6, 12, 25) if math.isqrt(square) ** 2 != square else ():
            digits = str(math.isqrt(square * 100**places))
            yield f"{found[1]}{digits[:-places]}.{digits[-places:]}"
    elif found := re.fullmatch(r"(\d+)\s*\\pi", gold.plain):
        for pi in ("3.14", "3.14159265358979323846"):
            yield finite_decimal(int(found[1]) * Fraction(pi))


@changed
def approximation_of_something_else(gold: Gold) -> Iterator[str]:
    decimal = golds.decimal_of(gold)
    if abs(decimal) > 0.1 and gold.exactly:
        for other in (decimal + 1, -decimal, 10 * decimal, 1.05 * decimal):
            yield rf"{gold.plain} \approx {other:.3f}"
            yield rf"\approx {other:.3f}"


def apart(gold: Gold, other: Fraction) -> bool:
    """Whether a number is clearly outside the gold's tolerance."""
    allowed = max(Fraction(gold.rule.absolute), abs(gold.value) * Fraction(gold.rule.relative))
    return abs(other - gold.value) > 10 * allowed


@changed
def digit(gold: Gold) -> Iterator[str]:
    if not digits_matter(gold):
        return
    for found in itertools.islice(re.finditer(r"\d", gold.plain), 8):
        new = {"9": "8", "0": "1"}.get(found[0], chr(ord(found[0]) + 1))
        other = gold.plain[: found.start()] + new + gold.plain[found.end() :]
        value = exact(other)
        if gold.shape == "mixed":
            value = golds.mixed_value(other)
        if gold.value is None or value is not None and apart(gold, value):
            yield other


def digits_matter(gold: Gold) -> bool:
    """Whether every digit of the text counts: no periods of angles, floors, indices, powers of
    one.
    """
    if gold.shape in ("other", "word", "choice", "empty", "reals"):
        return False
    if re.search(r"\\(?:sin|cos|tan|cot|sec|csc|arc)|floor|ceil|!|\\binom|\(-1\)\^", gold.plain):
        return False
    if "_" in gold.plain and gold.shape != "base":
        return False
    powers_of_one = r"(?<![\d.])[01]\s*\^|\^\{?0"
    times_zero = r"(?<![\d.])0[\d.]*\s*(?:\\cdot|\\times|[A-Za-z(])"
    if re.search(powers_of_one, gold.plain) or re.search(times_zero, gold.plain):
        return False
    return "k" not in gold.letters or r"\pi" not in gold.plain


@changed
def sign(gold: Gold) -> Iterator[str]:
    text = gold.plain
    if gold.value and apart(gold, -gold.value):
        yield text[1:] if text[0] == "-" else f"-{text.lstrip('+')}"
        yield f"-({text})"
    elif gold.shape == "formula":
        yield from filled(r"-(@)   -\left(@\right)   -1\cdot(@)", text)
        *first, last = golds.terms(text)
        if first:
            yield " ".join(first) + (" + " if last[0] == "-" else " - ") + last.lstrip("+- ")
    elif gold.shape == "complex":
        real, imaginary = complex_parts(text)
        yield written(real, -imaginary)
        if real:
            yield from (written(-real, imaginary), str(real))
        if real != imaginary:
            yield written(imaginary, real)
    elif gold.shape in ("tuple", "matrix", "interval"):
        for place, part in enumerate(gold.parts):
            if exact(part):
                yield with_part(gold, place, part[1:] if part[0] == "-" else f"-{part}")
    elif gold.shape == "equation":
        name, value = gold.plain.split("=")
        if exact(value):
            yield f"{name}=-({value.strip()})"


@changed
def exponent(gold: Gold) -> Iterator[str]:
    if gold.shape in ("formula", "equation", "implicit equation") and digits_matter(gold):
        for found in re.finditer(r"(?<=[A-Za-z2-9)])\^(?:\{(\d+)\}|(\d))", gold.plain):
            before, behind = gold.plain[: found.start()], gold.plain[found.end() :]
            power = int(found[1] or found[2])
            for other in (power + 1, power + 2):
                yield f"{before}^{{{other}}}{behind}"
            if power > 1:
                yield before + behind
            if power > 9 and power % 10:
                yield f"{before}^{{{power // 10}}}{power % 10}{behind}"


@changed
def term(gold: Gold) -> Iterator[str]:
    found = golds.terms(gold.plain) if gold.shape == "formula" else ()
    if len(found) > 1 and all(re.search("[1-9A-Za-z]", each) for each in found):
        for place in range(len(found)):
            yield " ".join(found[:place] + found[place + 1 :]).removeprefix("+").strip()


@changed
def factor_left_out(gold: Gold) -> Iterator[str]:
    text = gold.plain
    if gold.shape == "unit" and (found := re.fullmatch(r"(\d+)(\\pi|\\sqrt\{\d+\})(.*)", text)):
        yield from (found[1], found[1] + found[3])
    elif gold.shape != "formula" or len(golds.terms(text)) > 1:
        return
    elif found := re.fullmatch(r"(-?)(\d+)\s*(\\sqrt\{\d+\}|\\pi|[A-Za-z].*|\([^()]*\))", text):
        minus, number, rest = found.groups()
        if not re.match(r"[a-zA-Z]\(", rest):
            yield minus + number
            if number != "1":
                yield minus + rest
    elif found := re.fullmatch(r"(\([^()]*\))(\([^()]*\))", text.replace(" ", "")):
        yield from found.groups()
    elif re.fullmatch("[a-z]{2,3}", text):
        yield from (text[0], text[:-1])


@changed
def powers_of_other_numbers(gold: Gold) -> Iterator[str]:
    if factors := factored(gold):
        powers = [power_of(*each) for each in factors.items()]
        higher = [power_of(prime, power + 1) for prime, power in factors.items()]
        yield from ("+".join(powers), " ".join(powers[:-1]), "".join(powers[1:]))
        yield from (" ".join(higher), r"\cdot ".join(higher))
    if gold.shape == "integer" and 10 <= gold.value < 100 and not gold.rule.parts:
        tens, ones = str(int(gold.value))
        if int(tens) ** int(ones) != gold.value:
            yield from filled(r"@**#   @^#   @\cdot#   @\text{ and }#", tens, ones)
            yield tens + ones.translate(golds.SUPERSCRIPT)
    elif found := re.fullmatch(r"\\frac\{1(\d)\}\{(\d)\}", gold.plain):
        if glyph := golds.GLYPHS.get((int(found[1]), int(found[2]))):
            yield f"1{glyph}"


@changed
def complex_arithmetic_with_another_value(gold: Gold) -> Iterator[str]:
    if gold.shape == "integer" and gold.value > 0 and gold.exactly:
        yield from filled(
            r"@ e^{i\pi}   @ i^2   @ i^4 + i   (1+i)^{@}   \frac{@}{1-2i}   \frac{@(1+i)}{1-i}   @+i-2i",
            int(gold.value),
        )


@changed
def algebra_that_comes_to_something(gold: Gold) -> Iterator[str]:
    algebra = gold.shape == "formula" and plain_algebra(gold.plain)
    if gold.exactly and (gold.shape in ("integer", "fraction") or algebra):
        yield from filled(
            "10^{15}+(@)-10^{15}+1   10^{30}+(@)+10^{-3}-10^{30}   2^{90}+(@)-2^{90}-2   "
            "(@)+1-2   (@)+0.001",
            gold.plain,
        )
        if not gold.zero:
            yield from filled(r"\frac{2(@)}{3}   (@) \cdot 7", gold.plain)


@changed
def another_word_of_scale(gold: Gold) -> Iterator[str]:
    scales = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
    for right, wrong in itertools.permutations(scales, 2):
        if gold.shape == "integer" and gold.value:
            short = finite_decimal(gold.value / scales[right])
            if 0 < len(short) < 9:
                yield from filled(r"@ #   @\text{ #}", short, wrong)


@changed
def digit_in_other_dress(gold: Gold) -> Iterator[str]:
    if gold.shape == "integer" and not gold.rule.parts and apart(gold, gold.value + 1):
        other = str(int(gold.value) + 1)
        yield from filled(
            r"\textcolor{red}{@}   \color{red}{@}   **@**   \boldsymbol{@}   \underline{@}   "
            r"\textnormal{@}   \theta=@   \text{Area}=@   @=x   AB=@   €@   @元   @ m/s   f(2)=@   "
            "[ABC]=@   @@   @ @",
            other,
        )
        yield from (other.translate(golds.FULL_WIDTH), f"{int(other):,} dollars")


@changed
def repeating_decimals_with_another_period(gold: Gold) -> Iterator[str]:
    if gold.shape == "decimal" and re.fullmatch(r"-?\d*\.\d{1,6}", gold.plain):
        digits = gold.plain.partition(".")[2]
        more = Fraction(int(digits), 10 ** (2 * len(digits)))
        if more and apart(gold, gold.value + more):
            yield from filled(r"#\overline{@}", digits, gold.plain.removesuffix(digits))
            yield from filled(r"#\overline{@}", digits, gold.plain)


@changed
def fraction_upside_down(gold: Gold) -> Iterator[str]:
    if gold.shape == "fraction" and gold.value and apart(gold, 1 / gold.value):
        over, under = abs(gold.value).numerator, gold.value.denominator
        minus = "-" if gold.value < 0 else ""
        if over != under:
            yield from (minus + form for form in filled(r"\frac{#}{@}   #/@   @#", over, under))
    elif gold.shape == "ratio":
        one, other = (part.strip() for part in gold.plain.split(":"))
        if one != other:
            yield from filled("#:@   # : @   @:#:1   @#", one, other)


@changed
def decimal_point(gold: Gold) -> Iterator[str]:
    if gold.shape in ("decimal", "integer", "percent", "money"):
        value = exact(gold.plain.strip("\\$% "))
        for scale in (Fraction(1, 10), 10, 100, Fraction(1, 1000)) if value else ():
            if 0 < len(other := finite_decimal(value * scale)) < 40:
                yield other
    if gold.shape == "integer" and gold.value >= 10:
        text = str(int(gold.value))
        yield f"{text[0]}.{text[1:]}"
        # 1 234 may be meant for a thousand and more
        if len(text) != 4:
            yield f"{text[0]} {text[1:]}"


# Words, letters, parts


@changed
def another_word_or_choice(gold: Gold) -> Iterator[str]:
    if gold.shape == "word":
        word = golds.WORDS.fullmatch(gold.plain)[1]
        yield from filled(
            r"non@   not @   \text{not @}   \text{un@}   x@   banana   \text{@ banana}   5   x",
            word,
        )
    elif gold.shape == "choice":
        right = golds.chosen(gold)
        yield from filled(r"5   \text{not (@)}", right)
        for letter in sorted(set("ABCDEF") - {right}):
            yield from filled(
                r"@   (@)   \text{(@)}   \text{(@) } 5   \text{(@) } #", letter, right
            )


@changed
def another_set(gold: Gold) -> Iterator[str]:
    if gold.shape == "empty":
        yield from filled(r"\{0\}   0   \mathbb{R}   \{\varnothing\}   \{1\}   x")
    elif gold.shape == "reals":
        yield from filled(r"\mathbb{Q}   \mathbb{Z}   \mathbb{R}^2   \mathbb{R}\setminus\{0\}   R")
        yield from filled(r"(0,\infty)   (-\infty,0)\cup(0,\infty)   \varnothing   \mathbb{C}")


@changed
def case_of_a_letter(gold: Gold) -> Iterator[str]:
    text = gold.plain
    if text in ("e", "E", "i", "I"):
        yield text.swapcase()
    elif gold.shape == "formula" and text not in "ABCDEFGH" and not re.search(r"[A-Za-z]\(", text):
        for letter in sorted(gold.letters - set("cCdDeEiI")):
            other = re.sub(rf"(?<![A-Za-z\\]){letter}", letter.swapcase(), text)
            if other != text:
                yield other
            if len(text) == 1:
                yield rf"\text{{{other}}}"


@changed
def part_too_few(gold: Gold) -> Iterator[str]:
    if gold.shape in ("tuple", "set", "list") and len(set(gold.parts)) == len(gold.parts):
        for place in range(min(len(gold.parts), 4)):
            rest = [*gold.parts[:place], *gold.parts[place + 1 :]]
            if gold.shape != "tuple" or len(rest) > 1:
                yield enclosed(gold, rest)
    elif gold.shape == "union":
        yield from (gold.parts[0], r"\cup".join(gold.parts[1:]))
    elif gold.shape == "plus-minus":
        yield from (gold.plain.replace(r"\pm", one).lstrip("+ ") for one in "+-")
    elif gold.shape in ("named", "same name"):
        yield from gold.parts


@changed
def part_too_many(gold: Gold) -> Iterator[str]:
    more = [part for part in ("987", "-654") if part not in gold.plain]
    if gold.shape in ("plus-minus", "named"):
        yield from (f"{gold.plain}, {part}" for part in more)
    elif gold.shape == "union":
        yield rf"{gold.plain}\cup[1000,1001]"
    elif gold.shape in ("tuple", "set", "list"):
        for part in more if not any(map(golds.bracketed, gold.parts)) else ():
            yield enclosed(gold, [*gold.parts, part])
            yield enclosed(gold, [part, *gold.parts])


@changed
def parts_swapped(gold: Gold) -> Iterator[str]:
    if gold.shape in ("tuple", "interval"):
        values = [exact(part) for part in gold.parts]
        for one in range(len(values) - 1):
            if None not in values[one : one + 2] and values[one] != values[one + 1]:
                parts = list(gold.parts)
                parts[one], parts[one + 1] = parts[one + 1], parts[one]
                yield enclosed(gold, parts)
                if is_point(gold) and len(parts) == 2:
                    yield f"(x,y)=({','.join(parts)})"


@changed
def ends_of_intervals(gold: Gold) -> Iterator[str]:
    text, turned = gold.plain, {"(": "[", "[": "(", ")": "]", "]": ")"}
    if is_interval(gold) or gold.shape == "union":
        if not re.search(r"[A-Za-z]\(", text):
            for found in re.finditer(r"[\[(](?!-\\infty)|(?<!infty)[\])]", text):
                yield text[: found.start()] + turned[found[0]] + text[found.end() :]
    elif gold.shape == "member":
        yield text.replace("[", "(")
    elif is_point(gold):
        yield from filled(r"\{@\}   (@]", text[1:-1])
        if len(gold.parts) == 2:
            yield f"[{text[1:-1]}]"


@changed
def lists_glued_together(gold: Gold) -> Iterator[str]:
    if gold.shape == "list" and all(re.fullmatch(r"\d+", part) for part in gold.parts):
        yield "".join(gold.parts)
        if all(len(part) == 3 for part in gold.parts[1:]) and len(gold.parts[0]) <= 3:
            yield from ("{,}".join(gold.parts), r",\!".join(gold.parts))
    elif gold.shape == "integer" and not gold.rule.parts and gold.value >= 10:
        yield ", ".join(str(int(gold.value)))


# Matrices and angles


@changed
def determinant_for_a_matrix(gold: Gold) -> Iterator[str]:
    if gold.shape == "matrix":
        table = golds.rows(gold.plain)
        inside = r" \\ ".join(" & ".join(row) for row in table)
        for name in ("vmatrix", "Vmatrix"):
            yield rf"\begin{{{name}}} {inside} \end{{{name}}}"
        yield rf"\left|\begin{{array}}{{{'c' * len(table[0])}}}{inside}\end{{array}}\right|"
        if not gold.zero:
            yield from filled("-@   2@   @ + 1", gold.plain)


@changed
def rows_and_cells_of_matrices(gold: Gold) -> Iterator[str]:
    table = golds.rows(gold.plain) if gold.shape == "matrix" else []
    values = [[exact(cell) for cell in row] for row in table]
    if not table or None in itertools.chain(*values):
        return
    if values[0] != values[-1]:
        yield in_matrix([table[-1], *table[1:-1], table[0]])
    if [list(column) for column in zip(*values)] != values:
        yield in_matrix(list(zip(*table)))
        yield from filled(r"@^T   @^{\top}", gold.plain)
    yield in_matrix(table[:-1])
    yield in_matrix([*table, ["0"] * len(table[0])])
    for place, part in enumerate(gold.parts[:4]):
        yield with_part(gold, place, f"{part}+1")
        yield with_part(gold, place, "777" if exact(part) != 777 else "778")


@changed
def degrees_left_out_of_sines(gold: Gold) -> Iterator[str]:
    if gold.shape == "trigonometry":
        name, angle = golds.sine(gold)
        yield from filled(r"\@ #   \@(#)   \@\left(#\right)   \@(#\pi)", name, angle)
        yield rf"\{name} {angle + 1}^\circ"
    elif gold.shape == "integer" and gold.value > 1 and gold.exactly:
        number = int(gold.value)
        yield from filled(r"@\cos 60   @\sin 30", 2 * number)
        yield rf"{number}\tan 45"
