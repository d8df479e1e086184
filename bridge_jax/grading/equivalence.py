r"""Whether an answer equals the gold answer: a cheap stage that decides almost all, and symbolic
algebra for the rest.

`compare` runs in the trainer's process: limits first, then one spelling (latex.py), the parts of
lists, tuples, sets, unions and matrices one by one (shapes.py), names on the left-hand side
(names.py), units (units.py), exact numbers (numbers.py), and formulas told apart by their value at
one point (probe.py). It takes linear time. What it cannot decide becomes a DeferredComparison;
`symbolic` judges that with algebra.py, part by part on the short strings, and runs in the processes
of grading.pool alone, because nothing but SIGKILL ends some expressions.

Strict: 0.333 is not 1/3, 11_2 is not 11, (1,2) is not [1,2), 5 km is not 5 m, y = 1 is not x = 1; a
unit or a name may be stated or left out. What cannot be decided is wrong. Left out: several values
chained by "=", proofs, answers in words beyond equal words.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from bridge_jax.grading import formula, names, numbers, probe, units
from bridge_jax.grading.latex import (
    LONGEST,
    MOST_DIGITS,
    Unreadable,
    check_limits,
    flat,
    normalise,
    outside_brackets,
    split,
)
from bridge_jax.grading.names import Named
from bridge_jax.grading.numbers import number
from bridge_jax.grading.outcome import DeferredComparison, Outcome, Rule
from bridge_jax.grading.shapes import (
    LIST,
    ONE,
    SET,
    UNION,
    Part,
    Shape,
    as_union,
    interval,
    parts,
    shape,
)

__all__ = ["LONGEST", "Unreadable", "compare", "number", "symbolic"]

Verdict = bool | None  # None: undecided

_INTEGER = re.compile(rf"-?[0-9]{{1,{MOST_DIGITS}}}")
_LETTER = re.compile(r"[A-Za-z]")
_CHOSEN = re.compile(
    r"(?:\(\s*\x00?([A-Za-z])\x00?\s*\)|\x00([A-Za-z])\x00|([A-Z])(?=[.:)]))"
    # behind a letter that is a word, -1 is what the choice says and no term
    r"[.:)]?(?:\s*|\s+(?:(?![-+*/^_=<>,;])|(?<=\x00\) )(?=-[0-9.\\]))(\S.*)|\s*(\x00.*))",
    re.DOTALL,
)
_SPACED_WORD = re.compile(r"(\x00\s*\))\s+")
_CALLED = re.compile(r"\x00?(?:option|choice)(?:\x00\s*|\s+)(?=[(\x00A-Z])", re.IGNORECASE)
_ANOTHER_CHOICE = re.compile(r"\(\s*\x00?[A-Z]\x00?\s*\)|\x00[A-Z]\x00|\b(?:or|and|not|nor)\b")
_PROSE = re.compile(r"\x00[^\x00]{2,}\x00|(?<![\\A-Za-z_])(?!d[A-Za-z])[A-Za-z]{4,}")
# too short for _PROSE, and no product of letters
_SHORT_WORD = re.compile(r"(?:yes|no|true|odd|even)\.?", re.IGNORECASE)
_TWO_LETTERS = re.compile(r"(?<!\\)\b[A-Za-z'-]{2,}")
_WORD = re.compile(r"[A-Za-z][A-Za-z' -]*")
_RATIO = outside_brackets(":")
_INFINITE = re.compile(r"[+-]?\s*\\infty")


def compare(gold: str, answer: str, rule: Rule = Rule()) -> Outcome | DeferredComparison:
    """Outcome where it can be told cheaply, else a DeferredComparison for grading.pool; parse_error
    for what is beyond the limits.
    """
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold) and not rule.parts:
        verdict = _near(Fraction(int(gold)), Fraction(int(answer)), rule)
        return Outcome.correct if verdict else Outcome.wrong
    try:
        verdict = _Judge(rule, exact=False).answers(gold, answer)
    except (Unreadable, RecursionError):
        return Outcome.parse_error
    if verdict is None:
        return DeferredComparison(gold, answer, rule)
    return Outcome.correct if verdict else Outcome.wrong


def symbolic(claim: DeferredComparison) -> Outcome:
    """What algebra says. Slow, and not safe against hostile text: for worker processes only."""
    try:
        judge = _Judge(claim.rule, exact=True)
        verdict = judge.answers(claim.gold, claim.answer)
    except (Unreadable, RecursionError):
        return Outcome.parse_error
    return Outcome.correct if verdict else Outcome.wrong


class Choice(NamedTuple):
    """The letter of a multiple choice, and what an answer says beside it."""

    letter: str
    said: str


class _Judge:
    """Compares part by part; None where a part that matters is undecided, which with `exact` none
    is.
    """

    def __init__(self, rule: Rule, exact: bool):
        self.rule, self.exact = rule, exact
        if exact:
            from bridge_jax.grading import algebra  # workers alone pay for its imports

            self.algebra = algebra

    def answers(self, gold: str, answer: str) -> Verdict:
        """Two whole answers. Unreadable if the answer is."""
        check_limits(answer)
        g_text, a_text = normalise(gold), normalise(answer)
        if len(a_text) > 2 * LONGEST or not a_text.strip("{}() \x00"):
            raise Unreadable("too long, or empty")
        if flat(g_text) == flat(a_text):
            return True
        if (choice := self.choices(g_text, a_text)) is not None:
            return choice
        return self.texts(g_text, a_text, self.rule.parts)

    def choices(self, gold: str, answer: str) -> Verdict:
        """(C) against "(C) 5": the same letter, and what both say beside it. None where neither is
        a choice.
        """
        g = _choice(gold)
        a = _choice(answer, marked=g is None)
        if g and a:
            same_letter = g.letter == a.letter.upper()
            if not same_letter or not (g.said and a.said):
                return same_letter
            return self.texts(g.said, a.said)
        if g and g.said:
            return self.texts(g.said, answer)
        if a and a.said and a.letter.isupper():
            return gold == a.letter if _LETTER.fullmatch(gold) else self.texts(gold, a.said)
        return None

    def texts(self, gold: str, answer: str, every_comma: bool = False) -> Verdict:
        """Two normalised texts, which may be lists of named values."""
        if flat(gold) == flat(answer):
            return True
        g = parts(gold, every_comma)
        a = parts(answer, every_comma or len(g) > 1)
        if len(g) == 1 and shape(g[0].body).kind == UNION:
            a = as_union(a)
        if len(a) == 1 and shape(a[0].body).kind == UNION:
            g = as_union(g)
        if len(g) == len(a) == 1:
            return self.single(g[0], a[0])
        g, a = _elements(g), _elements(a)
        return self.lists(g, a)

    def lists(self, gold: list[Part], answer: list[Part]) -> Verdict:
        """Values in any order, each gold one paired with an answer of its own; named ones by their
        names.
        """
        if len(gold) != len(answer):
            return False
        answer_named = any(part.name for part in answer)
        if len({part.name for part in gold}) > 1 and not answer_named:
            return self.everyone(list(zip(gold, answer, strict=True)))
        return _pairing(gold, answer, self.single)

    def everyone(self, pairs: list) -> Verdict:
        """True if all are equal, False if one is not, else undecided."""
        verdicts = []
        for one, other in pairs:
            verdicts.append(self.single(one, other))
            if verdicts[-1] is False:
                return False
        return None if None in verdicts else True

    def single(self, gold: Part, answer: Part) -> Verdict:
        """Two named values, equations or inequalities."""
        if answer.equation and (exact := names.without_rounding(answer.body)) != answer.body:
            answer = Part(*names.named(exact))
        g, a = interval(gold) or gold, interval(answer) or answer
        if g.equation or a.equation:
            return self.equations(g, a)
        if not names.agree(g.name, a.name):
            return self.other_names(g, a)
        return self.values(g.body, a.body)

    def other_names(self, gold: Part, answer: Part) -> Verdict:
        """(x,y) = (1,2) against (y,x) = (2,1); y = x/2 against x = 2y, the same equation."""
        lists = [_tuple_by_names(part) for part in (gold, answer)]
        if None not in lists:
            return self.lists(*lists)
        if _is_constant(gold.body) or _is_constant(answer.body):
            return False
        return self.equation_sides((gold.name, gold.body), (answer.name, answer.body))

    def equations(self, gold: Part, answer: Part) -> Verdict:
        """Equations that differ by a factor; inequalities with the same sides. Gold that chains
        values: any of them.
        """
        g, a = _relation_of(gold), _relation_of(answer)
        if g is None:
            return False
        if a is None or len(g.signs) > 1 and len(a.signs) == 1:
            return self.one_of_chained(g, answer)
        if g.signs == a.signs == ("=",):
            if gold.name and _is_constant(gold.body) or answer.name and _is_constant(answer.body):
                return False  # x = 5 is solved, 2x = 10 is not
            return self.equation_sides(g.sides, a.sides)
        if g.signs[0] in (">", r"\ge"):
            g = _turned(g)
        if a.signs[0] in (">", r"\ge"):
            a = _turned(a)
        if g.signs != a.signs:
            return False
        pairs = [
            (Part("", one), Part("", other)) for one, other in zip(g.sides, a.sides, strict=True)
        ]
        return self.everyone(pairs)

    def one_of_chained(self, gold: names.Relation, answer: Part) -> Verdict:
        """0.56 = 56\\%: the gold answer says it in two ways, and either will do."""
        if not set(gold.signs) <= {"=", r"\approx"} or answer.equation:
            return False
        if any(number(units.split(side).body) is None for side in gold.sides):
            return False
        verdicts = [self.values(side, answer.body) for side in gold.sides]
        return True if True in verdicts else None if None in verdicts else False

    def equation_sides(self, gold: tuple[str, ...], answer: tuple[str, ...]) -> Verdict:
        """Two equations by their sides."""
        one, other = (f"({left})-({right})" for left, right in (gold, answer))
        try:
            letters = [formula.letters(formula.read(text)) for text in (one, other)]
        except Unreadable:
            return flat("=".join(gold)) == flat("=".join(answer))
        if letters[0] != letters[1]:
            return False
        return self.algebra.same_equation(one, other) if self.exact else None

    def values(self, gold: str, answer: str) -> Verdict:
        """Two values without names: by their shape, or as one expression each."""
        if flat(gold) == flat(answer):
            return True
        g, a = shape(gold), shape(answer)
        if g.kind == a.kind == ONE:
            return self.expressions(g.parts[0], a.parts[0])
        g, a = _alike(g, a)
        if g.kind != a.kind or len(g.parts) != len(a.parts):
            return False
        if g.kind in (LIST, SET, UNION):
            return self.lists(
                [Part("", part) for part in g.parts], [Part("", part) for part in a.parts]
            )
        return self.everyone(
            [(Part("", one), Part("", other)) for one, other in zip(g.parts, a.parts, strict=True)]
        )

    def expressions(self, gold: str, answer: str) -> Verdict:
        """Two expressions of one part each: units, then text, numbers, words, formulas."""
        bases = numbers.based(gold), numbers.based(answer)
        if all(bases):
            return bases[0] == bases[1]
        if any(bases):
            plain = numbers.without_base_ten(gold), numbers.without_base_ten(answer)
            if plain == (gold, answer):
                return False
            gold, answer = plain
        if (found := _special(gold, answer)) is not None:
            return found
        if ":" in gold or ":" in answer:
            terms = [[term for term, _ in split(text, _RATIO)] for text in (gold, answer)]
            if max(map(len, terms)) > 1:
                return self.ratios(*terms)
        g, a = units.split(gold), units.split(answer)
        if not units.same(g, a, self.rule.unit):
            return False
        if flat(g.body) == flat(a.body):
            return True
        x, y = number(g.body), number(a.body)
        if x is not None and y is not None:
            return _near(x, y, self.rule)
        if (found := _by_words(g.body, a.body, x, y)) is not None:
            return found
        return self.formulas(g.body, a.body)

    def ratios(self, gold: list[str], answer: list[str]) -> Verdict:
        """1:4 term by term; against a number, the quotient of two terms."""
        terms = gold, answer
        if len(gold) == len(answer):
            pairs = zip(gold, answer, strict=True)
            return self.everyone([(Part("", one), Part("", other)) for one, other in pairs])
        values = [[number(term) for term in side] for side in terms]
        if sorted(map(len, values)) != [1, 2] or any(None in side or 0 in side for side in values):
            return False
        first, second = (side[0] / side[1] if len(side) == 2 else side[0] for side in values)
        return first == second

    def formulas(self, gold: str, answer: str) -> Verdict:
        """Two formulas: different where their values at a point are, else by algebra. Unreadable if
        the answer is.
        """
        if not _is_readable(gold):
            return False
        if not _is_readable(answer):
            raise Unreadable("no expression")
        if probe.differ(gold, answer, self.rule.absolute, self.rule.relative):
            return False
        return self.algebra.equal(gold, answer, self.rule) if self.exact else None


def _is_readable(text: str) -> bool:
    """Whether formula.py reads it, or another reader might."""
    try:
        formula.read(text)
    except formula.Unknown:
        return "\x00" not in text
    except Unreadable:
        return False
    return True


def _special(gold: str, answer: str) -> Verdict:
    """Times of day and infinity; None for what is neither."""
    times = numbers.time(gold), numbers.time(answer)
    if all(times):
        return numbers.same_time(*times)
    if times[0] and times[0].half and (hour := number(answer)) is not None:
        return 1 <= hour <= 12 and times[0].seconds == hour % 12 * 3600
    if any(times):
        return False
    if _INFINITE.fullmatch(gold) or _INFINITE.fullmatch(answer):
        return flat(gold).lstrip("+") == flat(answer).lstrip("+")
    return None


def _near(gold: Fraction, answer: Fraction, rule: Rule) -> bool:
    """Equal numbers, or as near as the rule allows."""
    if gold == answer:
        return True
    allowed = max(Fraction(rule.absolute), abs(gold) * Fraction(rule.relative))
    return abs(gold - answer) <= allowed


def _pairing(
    gold: list[Part], answer: list[Part], single: Callable[[Part, Part], Verdict]
) -> Verdict:
    """Whether gold and answer parts can be paired; undecided where only undecided pairs make it
    possible.
    """
    verdicts: dict[tuple[int, int], Verdict] = {}

    def pair(i: int, j: int) -> Verdict:
        if (i, j) not in verdicts:
            try:
                verdicts[i, j] = single(gold[i], answer[j])
            except Unreadable:
                verdicts[i, j] = False
        return verdicts[i, j]

    def matched(allowed: tuple) -> bool:
        taken: dict[int, int] = {}  # answer -> gold

        def place(i: int, seen: set[int]) -> bool:
            order = sorted(
                range(len(answer)), key=lambda j: flat(answer[j].body) != flat(gold[i].body)
            )
            for j in order:
                if j in seen or pair(i, j) not in allowed:
                    continue
                seen.add(j)
                if j not in taken or place(taken[j], seen):
                    taken[j] = i
                    return True
            return False

        return all(place(i, set()) for i in range(len(gold)))

    if matched((True,)):
        return True
    return None if None in verdicts.values() and matched((True, None)) else False


def _elements(listed: list[Part]) -> list[Part]:
    """The parts of a list, or of the one set, tuple of names or list that stands for it."""
    if len(listed) != 1:
        return listed
    by_names = _tuple_by_names(listed[0])
    if by_names:
        return by_names
    found = shape(listed[0].body)
    return [Part(listed[0].name, part) for part in found.parts] if found.kind == SET else listed


def _tuple_by_names(part: Part) -> list[Part] | None:
    """(x,y) = (1,2) as x = 1, y = 2."""
    heads, found = names.several(part.name), shape(part.body)
    if not heads or found.kind != "()" or len(heads) != len(found.parts):
        return None
    return [Part(name, body) for name, body in zip(heads, found.parts, strict=True)]


def _alike(gold: Shape, answer: Shape) -> tuple[Shape, Shape]:
    """A set of one element is compared as the element."""
    if {gold.kind, answer.kind} == {ONE, SET} and len(gold.parts) == len(answer.parts) == 1:
        return gold._replace(kind=SET), answer._replace(kind=SET)
    return gold, answer


def _relation_of(part: Part | Named) -> names.Relation | None:
    """An equation taken apart; a named value is one too."""
    if part.equation:
        return names.relation(part.body)
    return names.Relation((part.name, part.body), ("=",)) if part.name else None


def _turned(found: names.Relation) -> names.Relation:
    """a > b as b < a."""
    signs = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
    return names.Relation(
        found.sides[::-1], tuple(signs.get(sign, sign) for sign in found.signs[::-1])
    )


def _is_constant(text: str) -> bool:
    """Whether a value has no letters."""
    body = units.split(text).body
    try:
        return not formula.letters(formula.read(body))
    except Unreadable:
        return number(body) is not None or shape(body).kind != ONE


def _choice(text: str, marked: bool = True) -> Choice | None:
    """The letter of a choice and what is said beside it; with `marked` a capital in brackets or as
    a word.
    """
    if called := _CALLED.match(text):
        text = text[called.end() :]
        text = "\x00" + text if text.count("\x00") % 2 else text
        text = f"({text})" if _LETTER.fullmatch(text) else text
    found = _CHOSEN.fullmatch(_SPACED_WORD.sub(r"\1 ", text))
    if not found:
        return None
    letter = found[1] or found[2] or found[3]
    said = (found[4] or found[5] or "").strip()
    if marked and (found[3] or letter.islower()) or _ANOTHER_CHOICE.search(said):
        return None
    if units.adds_nothing(said) if said.startswith("\x00") else _PROSE.search(said):
        return None
    return Choice(letter, said)


def _by_words(gold: str, answer: str, x: Fraction | None, y: Fraction | None) -> Verdict:
    """Words, single letters, and expressions with words around them; None where neither side has
    any.
    """
    bare = [text.replace("\x00", "").strip(" ()") for text in (gold, answer)]
    if all(_LETTER.fullmatch(text) for text in bare):
        return bare[0] == bare[1]
    if all(_SHORT_WORD.fullmatch(text) for text in bare):
        return _spoken(bare[0]) == _spoken(bare[1])
    if x is not None and (found := numbers.counted(answer)) is not None:
        return x == found
    if y is not None and (found := numbers.counted(gold)) is not None:
        return y == found
    prose = [bool(_PROSE.search(text)) for text in (gold, answer)]
    if not any(prose):
        return None
    if all(prose) or all(_WORD.fullmatch(text) for text in bare):
        return _spoken(bare[0]) == _spoken(bare[1])
    return False


def _spoken(text: str) -> str:
    """Words without capitals and white space; single letters as they are."""
    text = _TWO_LETTERS.sub(lambda found: found[0].casefold(), text)
    return re.sub(r"[\s.\x00]+", " ", text).strip()
