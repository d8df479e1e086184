r"""Units after a number or a formula, scale words such as million, and currency signs.

    5\text{ cm}^2, 5 square centimeters, 5\,\mathrm{cm^2}    5 of cm^2
    5 m/s, 5 meters per second                               5 of m / s
    \$5, 5 dollars, USD 5                                    5 of dollar
    2.5\text{ million}                                       2500000

A unit may be given or left out, but two given units must be equal; nothing is converted. The known
units and their spellings are listed here; other words are not accepted as the unit of an answer.
The words after the number of a gold answer are always its unit, which an answer may repeat. Letters
outside \text are factors, except for unmistakable names of units (cm, feet, m/s).
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from bridge_jax.grading import numbers
from bridge_jax.grading.latex import FUNCTIONS, normalise

# a unit's name, then its other spellings; plurals and capitals are accepted
_MEASURES = """
millimeter mm millimetre | centimeter cm centimetre | decimeter dm decimetre | meter m metre
kilometer km kilometre | micrometer µm micron | nanometer nm | inch in inches | foot ft feet
yard yd | mile mi | furlong | nautical-mile nmi | light-year lightyear ly | astronomical-unit au
parsec pc | acre ac | hectare ha | liter l litre | milliliter ml millilitre cc | gallon gal
quart qt | pint pt | cup | ounce oz | fluid-ounce | tablespoon tbsp | teaspoon tsp | bushel
gram g gm | kilogram kg kilo | milligram mg | microgram | pound lb lbs | ton | tonne
second s sec | millisecond ms | minute min | hour h hr | day | week wk | month mo | year yr
decade | century centuries | fortnight | millennium millennia
dollar usd buck | cent ¢ | euro eur | pound-sterling gbp quid | penny pennies pence p | yen jpy
yuan rmb cny | rupee inr rs | peso | franc | nickel | dime | quarter | won | ruble
percent pct percentage per-cent | percentage-point
degree deg | degree-celsius celsius | degree-fahrenheit fahrenheit | kelvin | radian rad
gradian | revolution rev rotation turn | arcminute | arcsecond | steradian sr | octave
newton n | joule j | kilojoule kj | watt w | kilowatt kw | megawatt mw | volt v | ampere amp
ohm | pascal pa | kilopascal kpa | atmosphere atm | bar | hertz hz | kilohertz khz | megahertz mhz
coulomb | farad | henry | tesla | weber | lumen | calorie cal | kilocalorie kcal | horsepower hp
electronvolt ev | erg | dyne | angstrom å | mole mol | ordinal st nd rd th
bit | byte | kilobyte kb | megabyte mb
gigabyte gb | knot | dozen-units | pixel | decibel db | becquerel | jansky jy | magnitude mag
""".split("\n")

# countable things; an adjective of COUNTED_AS may stand before them
_COUNTED = """
unit way value integer number digit solution root answer point pair triple set subset element
element term factor divisor multiple prime square circle triangle rectangle polygon quadrilateral
side edge face vertex vertices diagonal angle line segment plane region cube sphere block tile
card coin ball marble bead die dice chip token stick brick book page word letter string sequence
permutation combination arrangement choice possibility possibilities outcome event case function
polynomial matrix matrices vector graph path route step move game match round player team
tournament person people man men woman women child children kid boy girl student teacher pupil
adult friend guest member worker employee customer passenger family families couple voter senator
apple orange banana pear lemon peach cherry cherries grape strawberry strawberries berry berries
cookie cake pie pizza slice piece sandwich sandwiches egg candy candies chocolate donut muffin
flower rose tulip tree plant seed leaf leaves dog cat puppy puppies kitten bird fish horse cow pig
sheep chicken duck rabbit goat animal pet bee ant car truck bus buses bike bicycle train plane
ticket seat room house door window table chair shirt pant shoe sock hat dress box boxes bag bottle
jar can basket bucket package pack bundle pen pencil crayon eraser notebook paper sheet toy doll
balloon stamp sticker picture photo gift present item object good product order unit job task
problem question test quiz quizzes lesson class classes school score goal run hit vote trip visit
lap mark time dot symbol character row column group copy copies meal lunch dinner glass glasses
spoon fork plate dish shot trial flip roll toss tosses more bead rock stone shell star planet
bill gold gem diamond ring necklace button key rope ribbon string foot-pound serving portion
""".split()

# words that are no unit, even in a gold answer
_NEVER = frozenset(
    "a an and answer answers are but else if is maybe no not or so than the think wrong right "
    "correct incorrect true false about around approximately plus minus times over equals "
    "yes".split()
)
_ADJECTIVES = frozenset("distinct different possible total such right".split())
# fmt: skip
_SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "quadrillion": 10**15,
    "dozen": 12,
    "lakh": 10**5,
    "crore": 10**7,
}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
# fmt: skip
_TOGETHER = {
    "mph": {"mile": 1, "hour": -1},
    "kph": {"kilometer": 1, "hour": -1},
    "kmh": {"kilometer": 1, "hour": -1},
    "kmph": {"kilometer": 1, "hour": -1},
    "mps": {"meter": 1, "second": -1},
    "fps": {"foot": 1, "second": -1},
    "mpg": {"mile": 1, "gallon": -1},
    "rpm": {"revolution": 1, "minute": -1},
    "footpound": {"foot": 1, "pound": 1},
    "kilowatthour": {"kilowatt": 1, "hour": 1},
    "kwh": {"kilowatt": 1, "hour": 1},
}
_MONEY = {"\\$": "dollar", "\\euro": "euro", "\\pounds": "pound-sterling", "\\yen": "yen",
          "\\rupee": "rupee"}  # fmt: skip
# symbols that cannot be mistaken for a product of letters
_PLAIN_SYMBOLS = (
    "st nd rd th cm mm km kg ft yd lb lbs oz hr hrs min sec mph kph kmh rpm usd eur pct deg rad "
    "mol ml kw hz"
).split()
_PLAIN_QUOTIENTS = ("km/h", "km/hr", "m/s", "cm/s", "mi/h", "mi/hr", "ft/s", "ft/sec", "m/sec")


class Quantity(NamedTuple):
    """An expression with its unit, or with other words after it."""

    body: str
    unit: tuple[tuple[str, int], ...] = ()  # (name, power), sorted
    words: tuple[str, ...] = ()  # as they are written, singular
    known: bool = True  # whether the words are a unit of the list


def _singular(word: str) -> str:
    word = word.strip(".'").casefold()
    if word.endswith("'s"):
        word = word[:-2]
    for ending in ("xes", "ches", "shes", "sses"):
        if word.endswith(ending):
            return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _names() -> dict[str, str]:
    """Spelling in the singular -> unit."""
    found = {}
    for line in _MEASURES:
        for kind in line.split("|"):
            for spelling in kind.split():
                found.setdefault(_singular(spelling), kind.split()[0])
                found.setdefault(spelling, kind.split()[0])
                if len(spelling) > 1:
                    found.setdefault(spelling + "s", kind.split()[0])
    for word in _COUNTED:
        found.setdefault(_singular(word), _singular(word))
    irregular = {"vertices": "vertex", "people": "person", "men": "man", "women": "woman",
                 "children": "child", "kid": "child", "dice": "die", "matrices": "matrix",
                 "leaves": "leaf", "possibilities": "possibility", "cherries": "cherry",
                 "possibilitie": "possibility", "familie": "family", "cherrie": "cherry",
                 "candie": "candy", "copie": "copy", "puppie": "puppy", "berrie": "berry",
                 "strawberrie": "strawberry", "centurie": "century"}  # fmt: skip
    return found | irregular


NAMES = _names()
_ORDINAL, _COUNTABLE = (("ordinal", 1),), re.compile(r"[0-9,/]+")  # 21st, 3/4ths
_POWER = r"(?:\s*\^\s*\{?\s*(-?[0-9])\s*\}?)?"
_PIECE = re.compile(rf"\s*(?:\x00([^\x00]+)\x00{_POWER}|(/|\\cdot(?![A-Za-z])|\*|\\times))")
_FRACTION_OF_UNITS = re.compile(
    rf"\\frac\s*\{{\s*(\x00[^\x00]+\x00{_POWER})\s*\}}\s*\{{\s*(\x00[^\x00]+\x00{_POWER})\s*\}}"
)
_BEFORE = re.compile(
    r"([+-]?)\s*(?:(?:\x00?(?:US|us)\x00?\s*)?(\\\$|\\(?:euro|pounds|yen|rupee)(?![A-Za-z]))"
    r"|\x00(USD|EUR|GBP|Rs\.?|US)\x00|(USD|EUR|GBP|Rs\.?)(?=[\s0-9]))\s*(.+)",
    re.DOTALL,
)
_DEGREES = re.compile(r"(.+?)\s*\^\\circ\s*(?:\x00?([CF])\x00?)?", re.DOTALL)
_AFTER = re.compile(r"(.+?)\s*(\\\$|\\(?:euro|pounds|yen|rupee)(?![A-Za-z]))", re.DOTALL)
_FUNCTION = re.compile(r"\\(?:" + "|".join(FUNCTIONS) + r")(?![A-Za-z])")
_TAIL = re.compile(
    r"(?<![A-Za-z\\_^])((?:(?:square|sq\.?|cubic|cu\.?|distinct|different)\s+)?"
    r"(?:(?:" + "|".join(map(re.escape, sorted(_PLAIN_QUOTIENTS, key=len, reverse=True))) + r")"
    r"|[A-Za-z]{2,}\.?(?:[\s-]+[A-Za-z]{2,}\.?){0,5}(?:\s*/\s*[A-Za-z]+)?))" + _POWER + r"\s*$"
)


@functools.lru_cache(maxsize=4096)
def split(text: str) -> Quantity:
    """Splits a text into expression and unit; `known=False` for words that are not in the list."""
    text = text.strip()
    if found := _BEFORE.fullmatch(text):
        money = _MONEY.get(found[2] or "") or NAMES[(found[3] or found[4]).strip(".").casefold()]
        inner = split(found[1] + found[5].strip())
        if inner.unit in ((), ((money, 1),)) and inner.known:
            return inner._replace(unit=((money, 1),), words=(money,))
        return Quantity(text)
    if "\x00" in text:
        return _marked(text)
    if text.endswith(("C", "F", "circ")) and (found := _DEGREES.fullmatch(text)):
        return _of_degrees(text, found[1], found[2])
    if found := _AFTER.fullmatch(text):
        return Quantity(found[1], ((_MONEY[found[2]], 1),), (_MONEY[found[2]],))
    return _plain(text)


def compatible(gold: Quantity, answer: Quantity, unit: str = "") -> bool:
    """Whether the units are equal or one is left out.

    unit: the gold answer's, from its benchmark.
    """
    if not answer.words:
        return True
    if not answer.known:
        return bool(gold.words) and answer.words == gold.words
    stated = gold.unit or named(unit)
    # "distinct integers" may be called integers
    if gold.words and not gold.known:
        return gold.words[-len(answer.words) :] == answer.words
    return not stated or stated == answer.unit or _degrees_of_heat(stated, answer.unit)


def is_negligible(words: str) -> bool:
    """Whether marked words are a unit, a scale, or a word without meaning for the answer."""
    found = split(f"1 {words}")
    return found.known


@functools.lru_cache(maxsize=256)
def named(unit: str) -> tuple[tuple[str, int], ...]:
    """The unit of a text such as km/h; () for none."""
    if not unit.strip():
        return ()
    text = normalise(unit)
    if text.replace(" ", "") in (r"^\circ", r"{}^\circ"):
        return (("degree", 1),)
    marked = re.sub(r"\x00?([A-Za-z][A-Za-z. ]*)\x00?", "\x00\\1\x00", text)
    found = split(f"1 {marked}")
    return found.unit if found.known and found.unit else ((marked.replace("\x00", ""), 1),)


def _degrees_of_heat(one, other) -> bool:
    """Whether both are temperatures of the same scale, or one gives no scale."""
    pair = {one, other}
    heat = {(("degree-celsius", 1),), (("degree-fahrenheit", 1),)}
    return (("degree", 1),) in pair and bool(pair & heat)


def _of_degrees(text: str, body: str, scale: str | None) -> Quantity:
    """Degrees after the whole expression; inside a formula, as in \\cos 60^\\circ, they stay."""
    if r"\circ" in body or _FUNCTION.search(body):
        return Quantity(text)
    name = {"C": "degree-celsius", "F": "degree-fahrenheit", None: "degree"}[scale]
    return Quantity(body, ((name, 1),), (name,))


def _marked(text: str) -> Quantity:
    """Words between NUL characters at the end."""
    text = _FRACTION_OF_UNITS.sub(r"\1/\3", text)
    begin = text.index("\x00")
    body, tail = text[:begin].strip(), text[begin:]
    pieces, place = [], 0
    while place < len(tail):
        found = _PIECE.match(tail, place)
        if not found:
            if tail[place:].strip():
                return Quantity(text)
            break
        pieces.append((found[1], found[2], found[3]))
        place = found.end()
    if not body or pieces[-1][2]:
        return Quantity(text)
    heat = re.fullmatch(r"(.+?)\s*\^\\circ", body, re.DOTALL)
    if heat and len(pieces) == 1 and pieces[0][0] in ("C", "F"):
        return _of_degrees(text, heat[1], pieces[0][0])
    return _with_unit(text, body, pieces)


def _plain(text: str) -> Quantity:
    """Names of units that are not marked as words: 18 dollars, 12\\pi cm^2."""
    found = _TAIL.search(text)
    if not found or not text[: found.start()].strip():
        return Quantity(text)
    words, power = found[1], found[2]
    names = re.findall(r"[A-Za-z]+", words)
    if words.replace(" ", "") not in _PLAIN_QUOTIENTS and not all(
        _singular(name) in _PLAIN_SYMBOLS
        or name.casefold() in _PLAIN_SYMBOLS
        or ((len(name) >= 3 or name in _POWERS) and _is_word(name))
        or (name == "in" and text[found.start() - 1].isspace() and len(names) == 1)
        for name in names
    ):
        return Quantity(text)
    quantity = _with_unit(text, text[: found.start()].strip(), [(words, power, None)])
    return quantity if quantity.known else Quantity(text)


def _is_word(name: str) -> bool:
    lower = name.casefold()
    return (
        _singular(lower) in NAMES
        or lower in NAMES
        or _singular(lower) in _SCALES
        or lower in {*_POWERS, *_ADJECTIVES, "per"}
    )


def _with_unit(text: str, body: str, pieces: list) -> Quantity:
    """The quantity that the pieces (words, power, sign between) make."""
    words = _words(pieces)
    scale, unit = _read_pieces(pieces)
    if unit is None and (_NEVER | {*_SCALES}) & {*words}:
        return Quantity(text)
    if unit is None:
        return Quantity(body, (), words, False)
    if unit == _ORDINAL and not _COUNTABLE.fullmatch(body):
        return Quantity(text)
    if scale != 1:
        value = numbers.number(body)
        # a formula, or zero, which is a million of nothing
        if not value:
            return Quantity(text)
        value *= scale
        body = f"{value.numerator}/{value.denominator}" if value.denominator > 1 else str(value)
        if not unit:
            return Quantity(body)
    return Quantity(body, unit, words)


def _words(pieces: list) -> tuple[str, ...]:
    """The words in the singular, and the signs between them."""
    found = []
    for phrase, power, sign in pieces:
        found += [sign] if sign else re.findall(r"/|[^\s/]+", phrase)
        found += [f"^{power}"] if power else []
    return tuple(_singular(word) for word in found)


def _read_pieces(pieces: list) -> tuple[int, tuple[tuple[str, int], ...] | None]:
    """Scale and unit of (words, power, sign) pieces.

    Unit None for words that are not in the list.
    """
    scale, found, over = 1, {}, 1
    for phrase, power, sign in _without_slashes(pieces):
        if sign:
            over = -1 if sign == "/" else over
            continue
        words = re.split(r"\s+|(?<=[a-z])-(?=[a-z])", phrase)
        words = [word for word in (word.strip(".,'").casefold() for word in words) if word]
        while words and _singular(words[0]) in _SCALES and not found:
            scale *= _SCALES[_singular(words.pop(0))]
        last = None
        if words:
            last = _read_words(words, found, over)
            if last is None:
                return 1, None
        if power and last is None:
            return 1, None
        if power:
            found[last] *= int(power)
    if not found and scale == 1:
        return 1, None
    return scale, tuple(sorted((name, exponent) for name, exponent in found.items() if exponent))


def _read_words(words: list[str], found: dict[str, int], over: int) -> str | None:
    """Adds the unit of the words ("square feet", "miles per hour") to `found`.

    Returns the name of its last part, or None where a word is not in the list.
    """
    raised, last = 1, None
    while words:
        word = words.pop(0)
        if word in _ADJECTIVES and words:
            continue
        if word == "per" and last and words:
            over, last = -1, None
        elif word in ("squared", "cubed") and last:
            found[last] *= _POWERS[word]
        elif word in _POWERS and words:
            raised = _POWERS[word]
        else:
            named_parts, words = _unit_of(word, words)
            if named_parts is None or last:
                return None
            for last, exponent in named_parts.items():
                found[last] = found.get(last, 0) + exponent * raised * over
            raised = 1
    return last


def _without_slashes(pieces: list) -> list:
    """km/h as two pieces and a sign between them, a power belonging to the last."""
    found = []
    for phrase, power, sign in pieces:
        first, *others = phrase.split("/") if phrase else [None]
        found.append((first, None if others else power, sign))
        for place, other in enumerate(others, 1):
            found += [(None, None, "/"), (other, power if place == len(others) else None, None)]
    return found


def _unit_of(word: str, words: list[str]) -> tuple[dict[str, int] | None, list[str]]:
    """The unit that a word names, alone or with the next one."""
    if words:
        for joined in (f"{word}-{words[0]}", f"{word}-{_singular(words[0])}",
                       f"{_singular(word)}-{_singular(words[0])}"):  # fmt: skip
            if joined in NAMES:
                return {NAMES[joined]: 1}, words[1:]
    for spelling in (word, _singular(word)):
        if spelling in _TOGETHER:
            return _TOGETHER[spelling], words
        if spelling in NAMES:
            return {NAMES[spelling]: 1}, words
    return None, words
