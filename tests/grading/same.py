r"""Answers that mean the same as a gold answer: one generator for each way to spell it otherwise.

Every spelling is one that a mathematician would take for the gold answer, or that the benchmarks'
conventions allow: a name or a unit may be stated or left out, lists have no order, words no case.
Text surgery with exact fractions, without an algebra system; a gold for which a spelling could be
doubted is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from fractions import Fraction

from tests.grading import golds
from tests.grading.golds import (
    FORMULAS,
    NUMBERS,
    UNITS,
    Gold,
    bare,
    complex_parts,
    doubled,
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
    split,
    written,
)

KEPT: dict[str, Callable[[Gold], Iterator[str]]] = {}


def kept(made):
    """Enter a generator under its name."""
    KEPT[made.__name__.replace("_", " ")] = made
    return made


# Layout


@kept
def as_it_stands(gold: Gold) -> Iterator[str]:
    yield gold.text
    if gold.shape != "other":
        yield gold.plain


@kept
def dollars_and_brackets_of_mathematics(gold: Gold) -> Iterator[str]:
    if bare(gold):
        yield from filled(r"$@$   $ @ $   $$@$$   \(@\)   \[@\]", gold.trimmed)


@kept
def white_space_around(gold: Gold) -> Iterator[str]:
    if bare(gold):
        for before, behind in (("  ", " "), ("\n", "\n"), ("\t", "\t"), ("\u00a0", "\u2009")):
            yield before + gold.trimmed + behind
        yield rf"\ {gold.trimmed}\ "
        yield from filled(r"\,@\,   \quad @   @\;   ~@~", gold.trimmed)


@kept
def final_point(gold: Gold) -> Iterator[str]:
    if bare(gold) and not gold.trimmed.endswith("."):
        yield from filled(r"@.   @ .   $@$.   @\,.", gold.trimmed)


@kept
def spaces_inside(gold: Gold) -> Iterator[str]:
    if gold.shape in ("word", "other", "time", "ratio", "unit", "money", "base", "percent"):
        return
    text = gold.plain
    # no space where a sign belongs to an exponent, or a comma to thousands
    yield re.sub(r"(?<![\^_eE{(\[])\s*([-+=,])\s*(?=\D|\d(?!\d\d(?!\d)))", r" \1 ", text)
    yield re.sub(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9&\\])", "", text.replace("& ", "&"))
    if gold.shape in (*FORMULAS, "equation", "implicit equation", "plus-minus"):
        name, equals, formula = text.rpartition("=")
        for space in (" ", r" \, ", r"\;"):
            yield (
                name + (space + equals + space if equals else "") + space.join(golds.terms(formula))
            )
    if gold.shape in ("list", "tuple", "set", "interval", "named"):
        for comma in (r",\ ", r",\;", ",~"):
            yield text.replace(",", comma)


@kept
def sizes_of_brackets(gold: Gold) -> Iterator[str]:
    text = gold.plain
    if gold.shape == "set":
        inside = text[2:-2]
        yield from filled(r"\left\{ @ \right\}   \bigl\{ @ \bigr\}   \Big\{ @ \Big\}", inside)
        yield from filled(r"\lbrace @ \rbrace", inside)
    elif gold.shape in ("tuple", "interval"):
        opens, inside, closes = text[0], text[1:-1], text[-1]
        for big, small in ((r"\left", r"\right"), (r"\bigl", r"\bigr"), (r"\Big", r"\Big")):
            yield f"{big}{opens} {inside} {small}{closes}"
    elif gold.shape == "formula" and "(" in text:
        yield text.replace("(", r"\left(").replace(")", r"\right)")
        yield text.replace("(", r"\big(").replace(")", r"\big)")


@kept
def kinds_of_fractions(gold: Gold) -> Iterator[str]:
    if r"\frac" in gold.plain and gold.shape != "other":
        for command in (r"\dfrac", r"\tfrac", r"\cfrac"):
            yield gold.plain.replace(r"\frac", command)
        yield re.sub(r"\\frac\{(\d)\}\{(\d)\}", r"\\frac\1\2", gold.plain)
        yield re.sub(r"\\frac\{(\d)\}\{(\d+)\}", r"\\frac \1 {\2}", gold.plain)
        if gold.shape == "fraction":
            yield re.sub(r"\\frac\{(-?\d+)\}\{(\d+)\}", r"{\1 \\over \2}", gold.plain)


@kept
def braces_around_arguments(gold: Gold) -> Iterator[str]:
    if gold.shape in (*FORMULAS, "equation", "implicit equation"):
        yield re.sub(r"([\^_])([0-9A-Za-z])", r"\1{\2}", gold.plain)
        yield re.sub(r"([\^_])\{([0-9A-Za-z])\}(?![0-9A-Za-z])", r"\1\2", gold.plain)
        yield re.sub(r"\\sqrt\{(\d)\}(?!\d)", r"\\sqrt \1", gold.plain)
        yield re.sub(r"\\sqrt\{(\d+)\}", r"{\\sqrt{\1}}", gold.plain)
    if gold.shape in NUMBERS + FORMULAS:
        yield from filled("{@}   {{@}}", gold.plain)


@kept
def colour(gold: Gold) -> Iterator[str]:
    if bare(gold):
        yield from filled(
            r"\textcolor{red}{@}   \color{red}{@}   {\color{blue}@}   \color{blue} @   "
            r"\textcolor{blue}{\boldsymbol{@}}",
            gold.trimmed,
        )


@kept
def bold(gold: Gold) -> Iterator[str]:
    if bare(gold):
        yield from filled(r"\boldsymbol{@}   \bm{@}", gold.trimmed)
    if gold.shape in ("integer", "decimal", "word"):
        yield from filled(r"\mathbf{@}   {\bf @}   \pmb{@}", gold.plain)


@kept
def underline(gold: Gold) -> Iterator[str]:
    if bare(gold):
        yield from filled(r"\underline{@}   \underline{\underline{@}}", gold.trimmed)
    if gold.shape == "integer":
        yield from filled(r"\underline{\textbf{@}}", gold.trimmed)


@kept
def markdown(gold: Gold) -> Iterator[str]:
    if bare(gold) and "*" not in gold.text:
        yield from filled("**@**   **$@$**   $**@**$   **@.**", gold.trimmed)


@kept
def text_around_numbers(gold: Gold) -> Iterator[str]:
    commands = "text textbf textit textrm textnormal textsf texttt mbox mathrm mathbf mathit"
    if gold.shape in ("integer", "decimal"):
        for command in (*commands.split(), "mathsf", "mathtt"):
            yield rf"\{command}{{{gold.plain}}}"


# Words and choices


@kept
def words(gold: Gold) -> Iterator[str]:
    if gold.shape == "word":
        word = golds.WORDS.fullmatch(gold.plain)[1]
        yield from (word.lower(), word.capitalize(), word.upper())
        yield from filled(r"@   @.   **@**   \text{@}   \textbf{@}   \textit{@}   \textrm{@}", word)
        yield from filled(r"\textnormal{@}   \mbox{@}   \text{ @ }   \text{@.}   \emph{@}", word)
        if " " not in word:
            yield from filled(r"\mathrm{@}   \mathbf{@}   \operatorname{@}", word)


@kept
def choices(gold: Gold) -> Iterator[str]:
    if gold.shape == "choice":
        letter = golds.chosen(gold)
        for command in "text textbf textrm mathrm mathbf textnormal mbox".split():
            yield from filled(r"\#{(@)}   \#{@}   (\#{@})", letter, command)
        yield from filled("@   (@)   @.   **@**   **(@)**", letter)


@kept
def choices_with_their_text(gold: Gold) -> Iterator[str]:
    if gold.shape == "choice":
        for content in ("5", r"\frac{3}{4}", "12", r"2\sqrt{3}", "-1"):
            forms = r"\text{(@) } #   \textbf{(@)}\ #   \mathrm{(@)} \quad #   \text{(@)} #"
            yield from filled(forms, golds.chosen(gold), content)
            # a difference, where nothing marks the choice as text
            if content[0] != "-":
                yield from filled("(@) #", golds.chosen(gold), content)


# Numbers


@kept
def thousands(gold: Gold) -> Iterator[str]:
    if gold.shape == "integer" and abs(gold.value) >= 1000 and not gold.rule.parts:
        grouped = f"{int(gold.value):,}"
        for mark in (",", "{,}", r",\!", r"\,", r",\! "):
            yield grouped.replace(",", mark)
        yield str(int(gold.value))
    elif gold.shape == "money" and "," in gold.plain:
        yield gold.plain.replace(",", "")


@kept
def zeros_and_signs(gold: Gold) -> Iterator[str]:
    text = gold.plain.replace(",", "")
    if gold.shape == "integer":
        yield from filled("@.0   @.00   @.", text)
        if text.isdigit():
            yield f"+{text}"
        if text.strip("0").isdigit():
            yield f"0{text}"
    elif gold.shape == "decimal" and "e" not in text:
        yield f"{text}0"
        yield re.sub(r"^(-?)0\.", r"\1.", text)
        yield re.sub(r"^(-?)\.", r"\g<1>0.", text)


@kept
def decimals_and_fractions(gold: Gold) -> Iterator[str]:
    if gold.value is None or gold.shape == "integer" or "e" in gold.plain:
        return
    if gold.value.denominator > 1:
        over, under = str(gold.value.numerator), str(gold.value.denominator)
        yield from filled(r"\frac{@}{#}   @/#", over, under)
    if (decimal := finite_decimal(gold.value)) and len(decimal) < 12:
        yield decimal


@kept
def fractions_written_otherwise(gold: Gold) -> Iterator[str]:
    if gold.shape != "fraction":
        return
    over, under = abs(gold.value.numerator), gold.value.denominator
    sign = "-" if gold.value < 0 else ""
    if sign:
        yield from filled(r"\frac{-@}{#}   \frac{@}{-#}   -\left(\frac{@}{#}\right)", over, under)
    for form in filled(r"@/#   @ / #   (@)/(#)   @ \div #   {@}/{#}   \frac{@.0}{#}", over, under):
        yield sign + form
    yield rf"{sign}\frac{{{2 * over}}}{{{2 * under}}}"
    yield rf"{sign}\frac{{1}}{{{under}}} \cdot {over}"


@kept
def mixed_numbers(gold: Gold) -> Iterator[str]:
    if gold.shape not in ("fraction", "mixed"):
        return
    if abs(gold.value) > 1 and 1 < gold.value.denominator < 1000:
        size, sign = abs(gold.value), "-" if gold.value < 0 else ""
        whole, over = divmod(size.numerator, size.denominator)
        rest = rf"{{{over}}}{{{size.denominator}}}"
        for form in filled(r"@\frac#   @\tfrac#   @\ \frac#   @ \dfrac#", whole, rest):
            yield sign + form
        yield f"{sign}{whole} {over}/{size.denominator}"
        yield f"{sign}{size}"
        yield rf"{sign}\frac{{{size.numerator}}}{{{size.denominator}}}"
        if not sign:
            yield rf"{whole}+\frac{rest}"


@kept
def repeating_decimals(gold: Gold) -> Iterator[str]:
    if gold.shape in ("fraction", "mixed") and (found := repeating(gold.value)):
        before, period = found
        yield from filled(r"@\overline{#}   @\overline{##}", before, period)
        if before.startswith("0."):
            yield from filled(r"@\overline{#}", before[1:], period)
        if len(period) == 1:
            yield from filled(r"@\bar{#}   @\bar#   @#\overline{#}", before, period)


@kept
def powers_of_ten(gold: Gold) -> Iterator[str]:
    if gold.shape != "decimal" or not gold.value:
        return
    size = abs(gold.value)
    digits = str(size.numerator * 10**40 // size.denominator).strip("0")
    power = math.floor(math.log10(float(size)) + 1e-12)
    front = ("-" if gold.value < 0 else "") + digits[0] + ("." if digits[1:] else "") + digits[1:]
    if exact(f"{front}e{power}") != gold.value:
        return
    yield from filled(r"@e#   @E#   @ \times 10^{#}   @\cdot10^{#}   @\times{10}^{#}", front, power)
    yield from filled(r"@ × 10^{#}   \left(@\right)\times 10^{#}", front, power)
    if front == "1":
        yield from filled(r"10^{@}   1.0\times10^{@}", power)


@kept
def powers_side_by_side(gold: Gold) -> Iterator[str]:
    factors = factored(gold)
    if not factors:
        return
    for mark in (r" \cdot ", r"\times "):
        yield mark.join(power_of(*each) for each in factors.items())
    yield r"\cdot ".join(f"{{{prime}}}^{{{power}}}" for prime, power in factors.items())
    if all(power > 1 for power in factors.values()):
        forms = [(" ", "@^{#}"), ("", "@^{#}")]
        if max(factors.values()) < 10:
            forms += [(" ", "@^#"), ("", "(@^#)")]
        for mark, form in forms:
            yield mark.join(next(filled(form, *each)) for each in factors.items())


@kept
def words_of_scale(gold: Gold) -> Iterator[str]:
    scales = (("thousand", 10**3), ("million", 10**6), ("billion", 10**9))
    for word, scale in scales if gold.shape == "integer" else ():
        short = finite_decimal(gold.value / scale)
        if abs(gold.value) >= scale and 0 < len(short) < 7:
            yield from filled(r"@ #   @\text{ #}   @\ \text{#}   @ \mathrm{~#}", short, word)


@kept
def complex_arithmetic(gold: Gold) -> Iterator[str]:
    if gold.shape == "complex":
        real, imaginary = complex_parts(gold.plain)
        yield f"({written(-imaginary, real)})(-i)"
        yield f"{written(real + 1, imaginary + 1)} - (1+i)"
    elif gold.shape == "integer" and gold.value > 1:
        real, imaginary = int(gold.value), 0
        yield from filled(r"-@ e^{i\pi}   -@ i^2   -@e^{\pi i}   \frac{@(1+i)(1-i)}{2}", real)
        if real % 16 == 0:
            yield f"{real // 16}(1+i)^8" if real > 16 else "(1+i)^8"
        if real % 5 == 0:
            yield f"|{3 * real // 5}+{4 * real // 5}i|"
    else:
        return
    # (a+bi)(1-2i) = (a+2b) + (b-2a)i and (a+bi)(1+i) = (a-b) + (a+b)i
    yield rf"\frac{{{written(real + 2 * imaginary, imaginary - 2 * real)}}}{{1-2i}}"
    yield rf"\frac{{{written(real - imaginary, real + imaginary)}}}{{1+i}}"


@kept
def complex_numbers_written_otherwise(gold: Gold) -> Iterator[str]:
    if gold.shape == "complex":
        real, imaginary = complex_parts(gold.plain)
        text = written(real, imaginary)
        yield from filled(r"z=@   (@)", text)
        yield rf"{text[:-1]}\mathrm{{i}}"
        if real:
            yield f"{written(0, imaginary)}{real:+d}"
            yield f"{real}+({imaginary})i"
            yield rf"{real}{imaginary:+d}\cdot i"


@kept
def sines_of_degrees(gold: Gold) -> Iterator[str]:
    if gold.shape == "integer" and gold.value > 1:
        number = int(gold.value)
        yield from filled(r"@\tan 45^\circ   @\sin\left(90^\circ\right)   @\sin 90°", number)
        yield from filled(
            r"@\sin 30^\circ   @\cos 60^{\circ}   @\cos\frac{\pi}{3}   @\sin(30^\circ)", 2 * number
        )
    elif gold.value == Fraction(1, 2):
        yield from (r"\sin 30^\circ", r"\cos 60^\circ", r"\sin\frac{\pi}{6}", r"\sin 30°")
    elif gold.shape == "trigonometry":
        name, angle = golds.sine(gold)
        yield from filled(
            r"\@(#^\circ)   \@ #^{\circ}   \@\left(#^{\circ}\right)   \@#°", name, angle
        )
        yield from filled(r"\@ \frac{#\pi}{180}", name, angle)
        if name in ("sin", "cos") and angle < 90:
            yield rf"\{'cos' if name == 'sin' else 'sin'} {90 - angle}^\circ"


@kept
def roots_logarithms_and_factorials(gold: Gold) -> Iterator[str]:
    if gold.shape == "integer" and 2 <= gold.value <= 10**6:
        number = int(gold.value)
        yield from filled(r"|-@|   @^1   \lfloor @.5 \rfloor", number)
        yield f"{number - 1}+1"
        if number <= 300:
            yield from filled(r"@\log_2 2   \ln e^{@}   \binom{@}{1}", number)
            yield rf"\sqrt{{{number * number}}}"
        if number <= 20:
            yield rf"\log_2 {2**number}"
        for small in (3, 4, 5, 6):
            if number == math.factorial(small):
                yield f"{small}!"
    elif found := re.fullmatch(r"\\sqrt\{(\d+)\}", gold.plain):
        yield from filled(r"@^{1/2}   \sqrt[2]{@}   @^{\frac{1}{2}}", found[1])


# Units, money, bases


@kept
def units_spelled_otherwise(gold: Gold) -> Iterator[str]:
    found = measure(gold)
    for name in UNITS[found.unit] if found and found.unit else ():
        yield from measured(found.value, name, found.power)


def measured(value: str, name: str, power: int) -> Iterator[str]:
    """A value and its unit as people write them."""
    raised = "" if power == 1 else f"^{power}"
    yield from filled(r"@\text{ #}   @\ \text{#}   @\,\textrm{#}", value, name, raised)
    if " " not in name:
        yield from filled(r"@ \mathrm{~#}", value, name, raised)
    if len(name) > 1 and "\\" not in value:
        yield f"{value} {name}{raised}"
    if power > 1:
        yield rf"{value}\text{{ {name}}}^{{{power}}}"
        yield rf"{value}\text{{ {name}$^{power}$}}"
        if len(name) > 2:
            for word in ("square", "sq") if power == 2 else ("cubic", "cu"):
                yield rf"{value}\text{{ {word} {name}}}"


@kept
def units_left_out(gold: Gold) -> Iterator[str]:
    if found := measure(gold):
        yield from filled("@   $@$   {@}", found.value)
        if exact(found.value) is not None:
            yield f"x={found.value}"


@kept
def units_stated(gold: Gold) -> Iterator[str]:
    if gold.rule.unit == "km":
        stated = r"@\text{ km}   @\ \textrm{kilometers}   @\text{ kilometres}"
    elif gold.rule.unit:
        return
    elif gold.shape in NUMBERS:
        stated = (
            r"@\text{ cm}   @\ \textrm{feet}   @\text{ miles per hour}   @\ \textrm{years}   "
            r"@\text{ cm}^2   @\text{ square units}   @ m/s   @\text{ cm}^3   @\text{ cubic inches}"
        )
        if gold.shape != "mixed":
            stated += "   @ cm   @ feet   @ miles per hour   @ years"
    elif gold.shape == "formula" and not gold.letters:
        stated = r"@\text{ cm}^2   @\text{ square units}   @ \text{ inches}"
    else:
        return
    yield from filled(stated, gold.plain)


@kept
def money(gold: Gold) -> Iterator[str]:
    if gold.shape == "money":
        amount = gold.plain.lstrip("\\$ ")
        yield from filled(
            r"@   \$@   \$ @   $@   \$\,@   @ dollars   @\text{ dollars}   \text{\$@}   @ USD   "
            r"@\ \text{USD}",
            amount,
        )
        yield r"\$" + amount.replace(",", "{,}")
        if "." not in amount:
            yield rf"\${amount}.00"
    elif gold.shape == "integer" and gold.value >= 0 and not gold.rule.unit and not gold.rule.parts:
        yield from filled(
            r"\$@   \$@.00   @ dollars   €@   £@   @元   @€   ¥@   @\text{ dollars}   \text{\$@}   "
            "@ USD   @円",
            int(gold.value),
        )
        yield from filled("@ dollars   $@", f"{int(gold.value):,}")


@kept
def percent(gold: Gold) -> Iterator[str]:
    if gold.shape == "percent":
        yield from filled(
            r"@   @\%   @%   @ \%   @\ \%   @\,\%   @ percent   @\text{ percent}   @\text{\%}   "
            r"@ pct   @\text{ per cent}   @％",
            gold.plain.removesuffix(r"\%").strip(),
        )


@kept
def degrees(gold: Gold) -> Iterator[str]:
    if gold.shape == "degrees":
        yield from filled(
            r"@   @^\circ   @^{\circ}   @°   @\degree   @ degrees   @\text{ degrees}   @ ^ \circ   "
            r"@^{ \circ }   @\text{°}   @\text{ deg}   \theta = @^\circ",
            gold.plain.removesuffix(r"^\circ").strip(),
        )


@kept
def bases(gold: Gold) -> Iterator[str]:
    if gold.shape == "base":
        digits, base = golds.based(gold)
        yield from filled(
            r"@_{#}   (@)_{#}   @ _{#}   {@}_{#}   \left(@\right)_{#}   \text{@}_{#}   "
            r"@_{\text{#}}   N=@_{#}",
            digits,
            base,
        )
        yield digits + "".join(chr(0x2080 + int(digit)) for digit in base)
        yield rf"{digits}_{{\text{{{golds.COUNTED[int(base)]}}}}}"
        if len(base) == 1:
            yield from filled("@_#   (@)_#", digits, base)


@kept
def times_of_day(gold: Gold) -> Iterator[str]:
    if gold.shape == "time":
        hour, minute, half = golds.TIME.fullmatch(gold.plain).groups()
        for name in filled("@M   @.M.", half.upper()):
            for spelled in (name, name.lower()):
                yield from filled(
                    r"@ #   @\text{ #}   \text{@ #}   @#", f"{hour}:{minute}", spelled
                )
                yield rf"{hour}\!:\!{minute} \text{{ {spelled}}}"


@kept
def ratios(gold: Gold) -> Iterator[str]:
    if gold.shape == "ratio":
        one, other = gold.plain.split(":")
        yield from filled(r"@:#   @ : #   @\!:\!#   @: #   \text{@:#}", one.strip(), other.strip())


# Names

NAMED = (*NUMBERS, "formula", "complex", "base", "percent", "degrees", "money", "unit")


def named(gold: Gold, names: str) -> Iterator[str]:
    """name = answer, for golds without a name and for names whose letters do not occur in them."""
    one_letter = len(gold.plain) == 1 and gold.shape != "integer"
    if gold.shape not in NAMED or one_letter or gold.rule.parts:
        return
    for name in names.split("   "):
        letters = re.findall("[A-Za-z]", re.sub(r"\\text\{[^}]*\}|\\[A-Za-z]+", "", name))
        if not set(letters) & gold.letters:
            yield from filled("@=#   @ = #", name, gold.plain)


@kept
def names_of_one_letter(gold: Gold) -> Iterator[str]:
    yield from named(gold, "x   n   k   S   A   N   y")


@kept
def names_in_Greek(gold: Gold) -> Iterator[str]:
    if not re.search(r"\\(?:theta|alpha|lambda)", gold.plain):
        yield from named(gold, r"\theta   \alpha   \Delta   \lambda   \varphi   \Theta")


@kept
def names_with_primes(gold: Gold) -> Iterator[str]:
    yield from named(gold, r"x'   y''   x^{\prime}   f'(x)   A'   \theta'")


@kept
def names_with_indices(gold: Gold) -> Iterator[str]:
    yield from named(gold, r"x_1   a_{2024}   S_n   x_{\max}   a_{10}   S_{\triangle}")


@kept
def names_in_words(gold: Gold) -> Iterator[str]:
    yield from named(gold, r"\text{Area}   \text{Total cost}   \mathrm{Area}   \text{Answer}")
    yield from named(gold, r"Area   \textbf{Answer}   \text{Area of the circle}")


@kept
def names_with_brackets(gold: Gold) -> Iterator[str]:
    yield from named(gold, r"f(2)   P(A)   [ABC]   |AB|   f(x)   f\left(\frac{1}{2}\right)")
    yield from named(gold, r"\left|AB\right|   g(-1)   f(f(2))")
    if gold.shape == "formula" and gold.letters == {"x"}:
        yield from filled("f(x)=@   g(x) = @", gold.plain)


@kept
def names_of_segments_and_angles(gold: Gold) -> Iterator[str]:
    yield from named(gold, r"AB   \angle A   \angle ABC   \overline{AB}   m\angle B")


@kept
def names_on_the_other_side(gold: Gold) -> Iterator[str]:
    for answer in named(gold, r"x   k   \theta"):
        name, _, value = answer.partition("=")
        yield from filled("@=#   @ = #", value.strip(), name.strip())


@kept
def names_and_other_dress_at_once(gold: Gold) -> Iterator[str]:
    names = r"x   \theta   AB   \text{Area}   a_1"
    for answer in [form for form in named(gold, names) if " = " in form]:
        yield from filled(r"$@$.   **@**   \boldsymbol{@}   \(@\)", answer)
        name, _, value = answer.partition(" = ")
        yield from filled(r"@ = \textcolor{red}{#}   @ = \underline{#}   @ = {#}", name, value)
    if gold.shape == "integer" and not gold.rule.unit and not gold.rule.parts:
        yield from filled(
            r"x=\$@   x=@\text{ cm}   **@ cm**   \boldsymbol{@\text{ cm}^2}", gold.plain
        )
    if gold.shape == "choice":
        yield from filled(r"\boldsymbol{\text{(@)}}   **(@) 5**", golds.chosen(gold))


@kept
def names_of_the_gold(gold: Gold) -> Iterator[str]:
    if gold.shape == "equation":
        name, value = (side.strip() for side in gold.plain.split("="))
        yield from filled(r"@ = #   @=#   @\;=\;#   $@$ = $#$   #", name, value)


@kept
def sides_of_equations_swapped(gold: Gold) -> Iterator[str]:
    if gold.shape in ("equation", "implicit equation"):
        one, other = (side.strip() for side in gold.plain.split("="))
        yield from filled(r"@ = #   @\,=\,#   @=#", other, one)


@kept
def named_parts(gold: Gold) -> Iterator[str]:
    if gold.shape == "named":
        for joint in (", ", "; ", r" \text{ and } ", r",\ ", ", and ", r", \quad ", " and "):
            yield joint.join(gold.parts)
            yield joint.join(reversed(gold.parts))
        yield ", ".join(part.replace("=", " = ") for part in gold.parts)
        yield r"\begin{cases} " + r" \\ ".join(gold.parts) + r" \end{cases}"
        names, values = golds.names_and_values(gold)
        if all(len(name) == 1 for name in names):
            yield f"({','.join(names)}) = ({','.join(values)})"
            yield f"({', '.join(names[::-1])}) = ({', '.join(values[::-1])})"


@kept
def names_repeated(gold: Gold) -> Iterator[str]:
    if gold.shape == "same name":
        yield ", ".join(reversed(gold.parts))
        for joint in (r" \text{ and } ", r" \text{ or } "):
            yield joint.join(gold.parts)
    values = [exact(part) for part in gold.parts] if gold.shape == "list" else []
    if 1 < len(values) < 5 and None not in values and len(set(values)) == len(values):
        for joint in (", ", r" \text{ or } "):
            yield joint.join(f"x={part}" for part in gold.parts)
        yield from filled(r"x=@   x \in \{@\}", ", ".join(gold.parts))


# Tuples, intervals, sets, lists, matrices


@kept
def tuples_with_names(gold: Gold) -> Iterator[str]:
    if is_point(gold):
        letters = {2: ("(x,y)", "(a, b)", "(m,n)", r"(r,\theta)"), 3: ("(x,y,z)", "(a,b,c)")}
        for name in ("P", "A", *letters.get(len(gold.parts), ())):
            if not set(re.findall("[a-zA-Z]", name.replace(r"\theta", ""))) & gold.letters:
                yield from filled("@=#   @ = #", name, gold.plain)
        slashed_parts = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2", gold.plain)
        if len(gold.parts) == 2 and not gold.letters and "frac" not in slashed_parts:
            yield f"(x,y) = {slashed_parts}"


@kept
def tuples_spelled_otherwise(gold: Gold) -> Iterator[str]:
    if gold.shape == "tuple":
        yield from filled(r"(@)   ( @ )   \left( @ \right)", ", ".join(gold.parts))
        yield r"\left(" + r",\,".join(gold.parts) + r"\right)"
        yield "(" + ",".join(decimal_or_self(part) for part in gold.parts) + ")"
        yield "(" + ",".join(doubled(part) for part in gold.parts) + ")"


def decimal_or_self(text: str) -> str:
    """A fraction as a decimal where it ends."""
    value = exact(text)
    return text if value is None else finite_decimal(value) or text


@kept
def intervals_as_inequalities(gold: Gold) -> Iterator[str]:
    if gold.shape == "member":
        yield from inequalities(gold.plain.partition(r"\in")[2].strip())
    elif "x" in gold.letters:
        return
    elif is_interval(gold):
        yield from inequalities(gold.plain)
    elif gold.shape == "union":
        arms = [list(inequalities(arm)) for arm in gold.parts]
        for joint in (r" \text{ or } ", " or ", r"\text{ or }"):
            yield joint.join(arm[0] for arm in arms)
            yield joint.join(arm[-1] for arm in arms)


def inequalities(interval: str) -> Iterator[str]:
    """The interval said with < and its kin, from either side; nothing for all real numbers."""
    low, high = split(interval[1:-1])
    if "infty" in low and "infty" in high:
        return
    below, above = golds.mark_of(interval[0]), golds.mark_of(interval[-1])
    turned = {r"\le": r"\ge", "<": ">"}
    if "infty" in low:
        forms = (f"x {above} {high}", f"{high} {turned[above]} x")
    elif "infty" in high:
        forms = (f"x {turned[below]} {low}", f"{low} {below} x")
    else:
        forms = (
            f"{low} {below} x {above} {high}",
            f"{high} {turned[above]} x {turned[below]} {low}",
        )
    marks = ((r"\le", r"\ge"), (r"\leq", r"\geq"), ("<=", ">="), ("≤", "≥"))
    for form in forms:
        for less, more in (*marks, (r"\leqslant", r"\geqslant")):
            yield form.replace(r"\le", less).replace(r"\ge", more)


@kept
def intervals_with_a_name(gold: Gold) -> Iterator[str]:
    if (is_interval(gold) or gold.shape == "union") and "x" not in gold.letters:
        yield from filled(r"x\in @   x \in @   t\in@   x ∈ @", gold.plain)
    elif gold.shape == "member":
        yield gold.plain.partition(r"\in")[2].strip()


@kept
def inequalities_as_intervals(gold: Gold) -> Iterator[str]:
    found = as_interval(gold.plain) if gold.shape == "inequality" else None
    if found and "integer" not in gold.question:
        yield from filled(r"#   @ \in #   @\in#", *found)
        yield found[1].replace(",", ", ")


def as_interval(text: str) -> tuple[str, str] | None:
    """Letter and interval of an inequality in one letter."""
    sides, marks = inequality(text)
    if marks[0] in (">", r"\ge"):
        sides, marks = sides[::-1], [golds.TURNED[mark] for mark in marks[::-1]]
    if set(marks) - {"<", r"\le"}:
        return None
    opens, closes = "(" if marks[0] == "<" else "[", ")" if marks[-1] == "<" else "]"
    if len(sides) == 3 and re.fullmatch("[a-z]", sides[1]):
        return sides[1], f"{opens}{sides[0]},{sides[2]}{closes}"
    if re.fullmatch("[a-z]", sides[0]) and exact(sides[1]) is not None:
        return sides[0], rf"(-\infty,{sides[1]}{closes}"
    if re.fullmatch("[a-z]", sides[1]) and exact(sides[0]) is not None:
        return sides[1], rf"{opens}{sides[0]},\infty)"
    return None


def inequality(text: str) -> tuple[list[str], list[str]]:
    """Sides and marks of a chain."""
    return [side.strip() for side in golds.RELATION.split(text)], golds.RELATION.findall(text)


@kept
def inequalities_spelled_otherwise(gold: Gold) -> Iterator[str]:
    if gold.shape == "inequality":
        less, more, unequal = r"\le(?![a-z])", r"\ge(?![a-z])", r"\ne(?![a-z])"
        for spelled in (
            (r"\leq", r"\geq", r"\neq"),
            ("<=", ">=", "!="),
            ("≤", "≥", "≠"),
            (r"\leqslant", r"\geqslant", r"\not="),
        ):
            text = gold.plain
            for old, new in zip((less, more, unequal), spelled):
                text = re.sub("\\" + old, new.replace("\\", "\\\\") + " ", text)
            yield text
        sides, marks = inequality(gold.plain)
        other_way = sides[-1]
        for side, mark in zip(sides[-2::-1], marks[::-1]):
            other_way += f" {golds.TURNED[mark]} {side}"
        yield other_way
        yield gold.plain.replace("<", r"\lt ").replace(">", r"\gt ")


@kept
def unions_in_another_order(gold: Gold) -> Iterator[str]:
    if gold.shape == "union":
        for joint in (r"\cup", r" \cup ", " ∪ ", r"\, \cup \,"):
            yield joint.join(gold.parts)
            yield joint.join(reversed(gold.parts))


@kept
def lists_and_sets_in_another_order(gold: Gold) -> Iterator[str]:
    if gold.shape in ("list", "set"):
        opens, closes = (r"\{", r"\}") if gold.shape == "set" else ("", "")
        parts = list(gold.parts)
        for order in (parts[::-1], parts[1:] + parts[:1], sorted(parts), parts[1::2] + parts[::2]):
            yield opens + ", ".join(order) + closes
            # 1,234 would be a number
            if not re.search(r"\d,\d{3}(?!\d)", ",".join(order)):
                yield opens + ",".join(order) + closes


@kept
def lists_with_words_or_as_sets(gold: Gold) -> Iterator[str]:
    if gold.shape == "list":
        for joint in (r"\text{ and }", r"\text{ or }", " and ", " or ", "; "):
            yield joint.join(gold.parts)
        for joint in (r"\text{, and } ", r", \text{ and } "):
            yield ", ".join(gold.parts[:-1]) + joint + gold.parts[-1]
        yield "$" + "$, $".join(gold.parts) + "$"
    if gold.shape in ("list", "set"):
        yield ", ".join(gold.parts)
        yield r"\{" + ", ".join(gold.parts) + r"\}"
        yield r"\left\{" + ", ".join(reversed(gold.parts)) + r"\right\}"


@kept
def plus_minus(gold: Gold) -> Iterator[str]:
    if gold.shape == "plus-minus":
        plus = gold.plain.replace(r"\pm", "+").lstrip("+ ")
        minus = gold.plain.replace(r"\pm", "-")
        yield from filled(r"@, #   #, @   @\text{ and }#   \{#, @\}   @\text{ or }#", plus, minus)
        yield from (gold.plain.replace(r"\pm", "±"), gold.plain.replace(r"\pm", r"\mp"))
        yield f"x={gold.plain}"


@kept
def empty_set_and_real_numbers(gold: Gold) -> Iterator[str]:
    if gold.shape == "empty":
        yield from filled(r"\emptyset   \varnothing   ∅   \{\}   \{ \}   \left\{\right\}")
    elif gold.shape == "reals":
        yield from filled(r"\mathbb R   \mathbb{R}   ℝ   (-\infty,\infty)   (-\infty, +\infty)")
        yield from filled(r"x\in\mathbb{R}   \Bbb{R}   x \in (-\infty,\infty)")


@kept
def matrices(gold: Gold) -> Iterator[str]:
    if gold.shape == "matrix":
        table = golds.rows(gold.plain)
        inside = r" \\ ".join(" & ".join(row) for row in table)
        for name in ("pmatrix", "bmatrix"):
            for content in (inside, inside + r" \\ ", inside.replace(" ", "")):
                yield rf"\begin{{{name}}}{content}\end{{{name}}}"
        for column in "cr":
            array = rf"\begin{{array}}{{{column * len(table[0])}}} {inside} \end{{array}}"
            yield from filled(r"\left(@\right)   \left[@\right]   \left[ @ \right]", array)
        yield rf"\left(\begin{{matrix}} {inside} \end{{matrix}}\right)"
        yield gold.plain.replace(r"\\", r"\\[4pt]").replace(r"\frac", r"\dfrac")
        yield gold.plain.replace(r"\\", "\\\\\n")


@kept
def matrices_with_names(gold: Gold) -> Iterator[str]:
    if gold.shape == "matrix":
        for name in filled(r"\mathbf{v}   M   \vec{v}   \mathbf{M}   A   \overrightarrow{AB}"):
            yield from filled("@ = #   @=#", name, gold.plain)


@kept
def cells_of_matrices(gold: Gold) -> Iterator[str]:
    if gold.shape == "matrix":
        for rewrite in (decimal_or_self, doubled, slashed):
            yield in_matrix([[rewrite(cell) for cell in row] for row in golds.rows(gold.plain)])


def slashed(text: str) -> str:
    r"""3/4 as \frac{3}{4} and the other way round."""
    if found := re.fullmatch(r"(-?)(\d+)/(\d+)", text):
        return rf"{found[1]}\frac{{{found[2]}}}{{{found[3]}}}"
    found = re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", text)
    return f"{found[1]}{found[2]}/{found[3]}" if found else text


# Formulas


@kept
def terms_in_another_order(gold: Gold) -> Iterator[str]:
    if gold.shape in ("formula", "equation"):
        name, equals, text = gold.plain.rpartition("=")
        signed = [term if term[0] in "+-" else f"+{term}" for term in golds.terms(text)]
        for order in (signed[::-1], signed[1:] + signed[:1]) if len(signed) > 1 else ():
            closer = [term if "\\" in term else term.replace(" ", "") for term in order]
            yield name + equals + " ".join(order).removeprefix("+")
            yield name + equals + "".join(closer).removeprefix("+")


@kept
def factors_in_another_order(gold: Gold) -> Iterator[str]:
    text = gold.plain
    if found := re.fullmatch(r"(-?)(\d+)\s*(\\sqrt\{\d+\}|\\pi)", text):
        sign, number, rest = found.groups()
        forms = r"#\cdot @   @\cdot #   @\times #   # \times @   (@)(#)   @*#"
        yield from (sign + form for form in filled(forms, number, rest))
        if root := re.fullmatch(r"\\sqrt\{(\d+)\}", rest):
            yield rf"{sign}\sqrt{{{int(number) ** 2 * int(root[1])}}}"
    elif found := re.fullmatch(r"(\([^()]*\))(\([^()]*\))", text.replace(" ", "")):
        yield from filled(r"#@   @\cdot#   # @", *found.groups())
    elif found := re.fullmatch(r"\\frac\{(\d+)\s*(\\sqrt\{\d+\}|\\pi)\}\{(\d+)\}", text):
        number, rest, under = found.groups()
        yield rf"\frac{{{number}}}{{{under}}}{rest}"
        yield rf"{number}{rest}/{under}"
        yield rf"\frac{{{rest}\cdot {number}}}{{{under}}}"
        yield rf"\frac{{{2 * int(number)}{rest}}}{{{2 * int(under)}}}"
        if decimal := finite_decimal(Fraction(int(number), int(under))):
            yield f"{decimal}{rest}"


@kept
def algebra_that_comes_to_nothing(gold: Gold) -> Iterator[str]:
    if gold.shape == "formula" and plain_algebra(gold.plain):
        yield from filled(
            r"\frac{2(@)}{2}   (@)+1-1   1\cdot(@)   \frac{@}{1}   -(-(@))   0+(@)", gold.plain
        )


@kept
def approximation_said_too(gold: Gold) -> Iterator[str]:
    if (decimal := golds.decimal_of(gold)) and gold.exactly:
        for places in (2, 3, 5):
            rounded = f"{decimal:.{places}f}"
            if float(rounded):
                yield from filled(r"@ \approx #   @\approx#", gold.plain, rounded)
        yield f"{gold.plain} ≈ {decimal:.3f}"


@kept
def cancellation(gold: Gold) -> Iterator[str]:
    algebra = gold.shape == "formula" and plain_algebra(gold.plain)
    if gold.exactly and (gold.shape in ("integer", "fraction") or algebra):
        yield from filled(
            "10^{15}+(@)-10^{15}   (@)-10^{12}+10^{12}   2^{70}-2^{70}+(@)   "
            "1000000000000000000 + (@) - 1000000000000000000",
            gold.plain,
        )


# Characters that are not ASCII


@kept
def unicode_of_full_width(gold: Gold) -> Iterator[str]:
    if gold.shape in ("integer", "decimal") and "e" not in gold.plain:
        text = gold.plain.replace(",", "")
        yield from (text.translate(golds.FULL_WIDTH), f"x＝{text}", f"{text}。")
        yield text.replace("-", "－").translate(golds.FULL_WIDTH)
        if gold.shape == "integer" and abs(gold.value) >= 1000 and not gold.rule.parts:
            yield f"{int(text):,}".replace(",", "，").translate(golds.FULL_WIDTH)
    elif gold.shape == "tuple":
        yield from filled("（@）   (@)", "，".join(gold.parts))
    elif gold.shape in ("list", "set"):
        yield from ("，".join(gold.parts), "、".join(gold.parts))


@kept
def unicode_signs(gold: Gold) -> Iterator[str]:
    text = gold.plain
    signed = (*NUMBERS, *FORMULAS, "tuple", "list", "matrix", "equation", "interval")
    if gold.shape in signed and "-" in text and "e-" not in text:
        yield from (text.replace("-", minus) for minus in "−－–")
    if gold.shape in ("formula", "equation") and r"\cdot" in text:
        yield from (text.replace(r"\cdot", times) for times in "·×⋅")
    if gold.shape in ("interval", "union") and r"\infty" in text:
        yield text.replace(r"\infty", "∞")
        yield text.replace(r"\infty", "∞").replace("-", "−")
        yield text.replace(r"\infty", "∞").replace(r"\cup", "∪")


@kept
def unicode_fractions(gold: Gold) -> Iterator[str]:
    if gold.shape in ("fraction", "mixed", "decimal") and gold.value:
        size, sign = abs(gold.value), "-" if gold.value < 0 else ""
        whole, over = divmod(size.numerator, size.denominator)
        if glyph := golds.GLYPHS.get((over, size.denominator)):
            yield f"{sign}{whole or ''}{glyph}"
        if gold.shape == "fraction":
            yield f"{sign}{size.numerator}⁄{size.denominator}"


@kept
def unicode_powers(gold: Gold) -> Iterator[str]:
    if gold.shape in ("formula", "equation") and re.search(r"\^\{?\d", gold.plain):
        raised = lambda found: (found[1] or found[2]).translate(golds.SUPERSCRIPT)
        yield re.sub(r"\^(?:\{(\d+)\}|(\d))", raised, gold.plain)
    found = measure(gold)
    if found and found.power > 1 and found.unit:
        for name in UNITS[found.unit][:2]:
            raised = name + ("²" if found.power == 2 else "³")
            yield from filled(r"@\text{ #}   @ #", found.value, raised)


@kept
def unicode_roots_and_letters(gold: Gold) -> Iterator[str]:
    text, simple_root = gold.plain, r"\\sqrt\{(\d+)\}"
    if gold.shape not in ("formula", "equation", "tuple") or not re.search(r"\\sqrt|\\pi", text):
        return
    if not re.search(r"\\sqrt\{(?!\d+\})|\\pi\^|\\sqrt\[|\\sqrt\{\d+\}\s*[\d^]", text):
        for root in (r"√\1", r"√{\1}", r"√(\1)"):
            yield re.sub(simple_root, root, text).replace(r"\pi", "π")


@kept
def plain_text(gold: Gold) -> Iterator[str]:
    text = gold.plain
    if gold.shape != "formula":
        return
    others = r"\\(?!sqrt|pi|frac)|\\sqrt\[|\\sqrt\{(?!\d+\})|\\pi\^|[A-Za-z0-9}]\^"
    if re.search(r"\\sqrt|\\pi", text) and not re.search(others, text):
        flat = re.sub(r"\\sqrt\{(\d+)\}", r"sqrt(\1)", re.sub(r"(?<=\d)\s*(?=\\)", "*", text))
        flat = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1)/(\2)", flat).replace(r"\pi", "pi")
        # 2/7 sqrt(53) can be read in two ways
        if "\\" not in flat and "}" not in flat and not re.search(r"/\(\S*\)\s*[a-z(]", flat):
            yield flat
    if "\\" not in text and "^" in text and plain_algebra(text):
        yield re.sub(r"(\d)([a-z(])", r"\1*\2", text)
