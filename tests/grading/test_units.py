r"""Units of a list in their spellings; scale words multiply, letters are factors, other words are
no unit.
"""

from __future__ import annotations

import pytest

from bridge_jax.grading import units
from bridge_jax.grading.latex import normalise
from bridge_jax.grading.outcome import Rule
from tests.grading.judged import both_ways, outcome

SAME = [
    ("5", r"5\text{ cm}"),
    ("5", r"5\mathrm{~cm}"),
    ("5", "5 cm"),
    ("5 ft", "5 feet"),
    (r"5\text{ feet}", r"5\text{ ft.}"),
    (r"5\text{ in}", "5 inches"),
    ("5 hours", "5 hrs"),
    ("5 minutes", "5 min"),
    ("5", r"5\text{ min}"),
    ("5", "5 sec"),
    (r"5\text{ cm}^2", r"5\text{ square centimeters}"),
    (r"5\text{ cm}^2", r"5\text{ sq. cm}"),
    (r"5\text{ cm}^2", r"5\,\mathrm{cm^2}"),
    (r"5\text{ cm}^2", "5 cm²"),
    (r"34\text{ sq. units}", r"34\text{ units}^2"),
    (r"5\text{ m/s}", "5 m/s"),
    ("5", "5 m/s"),
    (r"5\text{ m/s}", r"5\text{ meters per second}"),
    (r"5\text{ m/s}", r"5\,\frac{\text{m}}{\text{s}}"),
    (r"5\text{ mph}", r"5\text{ miles per hour}"),
    (r"5\text{ km/h}", "5 kph"),
    ("5", r"5\text{ kg}\cdot\text{m}/\text{s}^2"),
    (r"12\pi\text{ cm}^2", r"12\pi cm^2"),
    (r"12\pi\text{ cm}^2", r"12\pi"),
    (r"6\frac{1}{6}\text{ feet}", "37/6"),
    ("90", r"90^\circ"),
    (r"90^\circ", r"90\text{ degrees}"),
    (r"90^\circ", "90°"),
    ("20", r"20^\circ\text{C}"),
    (r"-5^\circ", "-5 °C"),
    (r"50\%", "50 pct"),
    (r"50\%", "50％"),
    (r"50\%", r"50\text{ percent}"),
    ("5", "€5"),
    ("5", "5元"),
    ("€5", "5 euros"),
    (r"\$5", "USD 5"),
    (r"-\$0.50", "-0.5 dollars"),
    ("1000", "1,000 dollars"),
    ("5000000", "5 million"),
    (r"5\text{ million}", r"5\times 10^6"),
    (r"\$5\text{ million}", r"\$5,000,000"),
    ("2500000", r"2.5\text{ million}"),
    ("60", "5 dozen"),
    ("5 million people", "5,000,000"),
    ("5", r"5\text{ apples}"),
    ("5", "5 people"),
    (r"7\text{ distinct integers}", r"7\text{ integers}"),
    (r"8:34\text{ p.m.}", "8:34 PM"),
    ("8:34 p.m.", "20:34"),
    (r"8\!:\!34\text{ p.m.}", "8:34"),
    (r"9\text{ a.m.}", "9:00 AM"),
    ("5, 6", r"5\text{ cm}, 6\text{ cm}"),
    ("(5,6)", r"(5\text{ cm},6\text{ cm})"),
]
OTHER = [
    ("5", "5 million"),
    ("5", r"5\text{ million}"),
    ("5", "5 thousand"),
    ("5", "5 dozen"),
    ("5 million", "5 billion"),
    ("5", "5 plus one"),
    ("5", "5xy"),
    ("5", "5x"),
    ("5", "5 pi"),
    ("5", r"5\pi"),
    ("5", r"5\alpha"),
    ("5", "5i"),
    ("5", "5e"),
    ("5", r"5\text{ wrong}"),
    ("5", r"5\text{ not}"),
    ("5", r"5\text{ or so}"),
    ("3xy", "3"),
    ("2x", "2"),
    ("6m", "6"),
    ("0", r"0\text{ million}"),
    ("0", "0xy"),
    ("x", r"x\text{ million}"),
    (r"\sqrt{2}", r"\sqrt{2}\text{ million}"),
    ("(1,2)", r"(1,2)\text{ million}"),
    (r"\{1,2\}", r"\{1,2\}x"),
    ("5, 6", "5, 6 million"),
    ("(5,6)", "(5x,6)"),
    (r"90^\circ", r"90^\circ\text{ million}"),
    (r"5\text{ cm}", r"5\text{ m}"),
    ("5 km", "5 m"),
    ("5 cm^2", "5 cm^3"),
    (r"5\text{ cm}^2", r"5\text{ cm}"),
    (r"12\pi cm^2", r"12\pi cm^3"),
    (r"12\pi\text{ cm}^2", r"12\pi\text{ cm}^3"),
    (r"\sqrt{2}\text{ ft}", r"\sqrt{2}\text{ in}"),
    (r"(12\pi\text{ cm}^2, 1)", r"(12\pi\text{ cm}^3, 1)"),
    (r"5\text{ m/s}", r"5\text{ m/s}^2"),
    (r"5\text{ m/s}", r"5\text{ m s}"),
    ("5 mph", "5 km/h"),
    (r"\$5", "€5"),
    (r"\$5", "5 cents"),
    ("5%", r"5\text{ cm}"),
    (r"90^\circ", r"90\text{ radians}"),
    (r"20^\circ C", r"20^\circ F"),
    ("3:30 PM", "3:30 AM"),
    (r"3:30\text{ PM}", r"3:30\text{ AM}"),
    ("3:30 PM", "3:31 PM"),
    (r"9\text{ a.m.}", r"9\text{ p.m.}"),
]


@pytest.mark.parametrize("gold, answer", SAME)
def test_same(gold, answer):
    """The same quantity in other spellings of its unit is correct both ways."""
    assert both_ways(gold, answer) == [True, True]


@pytest.mark.parametrize("gold, answer", [pair for pair in OTHER if "wrong" not in pair[1]])
def test_other(gold, answer):
    """Quantities that differ in number or unit are not correct either way."""
    assert both_ways(gold, answer) == [False, False]


@pytest.mark.parametrize("word", ["wrong", "nonsense", "plus one", "is not it", "maybe"])
def test_words_that_are_no_unit(word):
    """A word that is no unit makes an answer wrong."""
    assert outcome("5", rf"5\text{{ {word}}}") == outcome("5", f"5 {word}") == "wrong"


def test_times_without_their_half():
    """A gold answer's half of the day may be left out; a number is no time."""
    assert outcome(r"9\text{ a.m.}", "9") == outcome("12 p.m.", "12") == "correct"
    assert outcome("12", "12 a.m.") == outcome("9 a.m.", "10") == outcome("10:30", "10") == "wrong"


def test_the_gold_answer_is_trusted():
    """Its words are a unit though the list has none such; an answer may repeat or drop them."""
    gold = r"16\text{ daps}"
    assert (
        outcome(gold, "16") == outcome(gold, gold) == outcome(gold, "16\\text{ dap}") == "correct"
    )
    assert outcome(gold, r"16\text{ dips}") == outcome("16", gold) == "wrong"
    assert outcome(r"14\text{ right triangles}", "14") == "correct"


@pytest.mark.parametrize(
    "unit, answer, expected",
    [
        ("cm", r"5\text{ cm}", "correct"),
        ("cm", r"5\text{ centimeters}", "correct"),
        ("cm", r"5\text{ km}", "wrong"),
        ("$cm^2$", r"5\text{ cm}^2", "correct"),
        ("$cm^2$", r"5\text{ cm}", "wrong"),
        ("km/h", "5 kilometers per hour", "correct"),
        ("km/h", "5 m/s", "wrong"),
        (r"^{\circ}", r"5^\circ", "correct"),
        (r"^{\circ}", "5%", "wrong"),
        ("minutes", "5 min", "correct"),
        ("%", r"5\%", "correct"),
        ("cm", r"5\text{ wrong}", "wrong"),
        ("cm", "5x", "wrong"),
    ],
)
def test_units_of_a_benchmark(unit, answer, expected):
    """With a unit given by the rule, that unit may stand in the answer, and no other."""
    assert outcome("5", "5", Rule(unit=unit)) == "correct"
    assert outcome("5", answer, Rule(unit=unit)) == expected


@pytest.mark.parametrize(
    "text, body, unit",
    [
        (r"5\text{ cm}^2", "5", (("centimeter", 2),)),
        ("5 cubic inches", "5", (("inch", 3),)),
        ("5 m/s^2", "5", (("meter", 1), ("second", -2))),
        (r"\$5", "5", (("dollar", 1),)),
        (r"5\text{ million}", "5000000", ()),
        (r"\cos 60^\circ", r"\cos 60^\circ", ()),
        ("5xy", "5xy", ()),
        ("6m", "6m", ()),
        ("x+1", "x+1", ()),
    ],
)
def test_split(text, body, unit):
    """An answer is split into its number and its unit with powers."""
    found = units.split(normalise(text))
    assert (found.body, found.unit, found.known) == (body, unit, True)
