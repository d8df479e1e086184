r"""Equality of an answer and the gold answer: a cheap stage, and symbolic algebra for the rest.

`compare` runs in the trainer's process, in linear time: limits first, then a normal form of LaTeX
(latex.py), the parts of lists, tuples, sets, unions and matrices (shapes.py), names on left-hand
sides (names.py), units (units.py), exact numbers (numbers.py), and formulas that differ in their
value at one point (probe.py). An undecided case becomes a DeferredComparison. `symbolic` decides it
with algebra.py. It runs in the processes of grading.pool alone, because some expressions take so
long that only SIGKILL ends them.

Strict: 0.333 is not 1/3, 11_2 is not 11, (1,2) is not [1,2), 5 km is not 5 m, y = 1 is not x = 1; a
unit or a name may be given or left out. An answer that cannot be decided is wrong. Left out:
several values chained by "=", proofs, answers in words other than equal words.
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
    # after a letter in words, -1 is the content of the choice and not a term
    r"[.:)]?(?:\s*|\s+(?:(?![-+*/^_=<>,;])|(?<=\x00\) )(?=-[0-9.\\]))(\S.*)|\s*(\x00.*))",
    re.DOTALL,
)
_SPACED_WORD = re.compile(r"(\x00\s*\))\s+")
_CALLED = re.compile(r"\x00?(?:option|choice)(?:\x00\s*|\s+)(?=[(\x00A-Z])", re.IGNORECASE)
_ANOTHER_CHOICE = re.compile(r"\(\s*\x00?[A-Z]\x00?\s*\)|\x00[A-Z]\x00|\b(?:or|and|not|nor)\b")
_PROSE = re.compile(r"\x00[^\x00]{2,}\x00|(?<![\\A-Za-z_])(?!d[A-Za-z])[A-Za-z]{4,}")
# words too short for _PROSE that are no products of letters
_SHORT_WORD = re.compile(r"(?:yes|no|true|odd|even)\.?", re.IGNORECASE)
_TWO_LETTERS = re.compile(r"(?<!\\)\b[A-Za-z'-]{2,}")
_WORD = re.compile(r"[A-Za-z][A-Za-z' -]*")
_RATIO = outside_brackets(":")
_INFINITE = re.compile(r"[+-]?\s*\\infty")


def compare(gold: str, answer: str, rule: Rule = Rule()) -> Outcome | DeferredComparison:
    """The Outcome where it is cheap to decide, otherwise a DeferredComparison for grading.pool.

    Answers beyond the limits are a parse_error.
    """
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold) and not rule.parts:
        verdict = _within_tolerance(Fraction(int(gold)), Fraction(int(answer)), rule)
        return Outcome.correct if verdict else Outcome.wrong
    try:
        verdict = _Judge(rule, exact=False).answers(gold, answer)
    except (Unreadable, RecursionError):
        return Outcome.parse_error
    if verdict is None:
        return DeferredComparison(gold, answer, rule)
    return Outcome.correct if verdict else Outcome.wrong


def symbolic(comparison: DeferredComparison) -> Outcome:
    """The Outcome by algebra. Slow, and unsafe for hostile text: for worker processes only."""
    try:
        judge = _Judge(comparison.rule, exact=True)
        verdict = judge.answers(comparison.gold, comparison.answer)
    except (Unreadable, RecursionError):
        return Outcome.parse_error
    return Outcome.correct if verdict else Outcome.wrong


class Choice(NamedTuple):
    """The letter of a multiple choice, and the text next to it."""

    letter: str
    text: str


class _Judge:
    """Compares answers part by part; None: undecided, which never happens with `exact`."""

    def __init__(self, rule: Rule, exact: bool):
        self.rule, self.exact = rule, exact
        if exact:
            # workers alone pay for its imports
            from bridge_jax.grading import algebra

            self.algebra = algebra

    def answers(self, gold: str, answer: str) -> Verdict:
        """Compares two whole answers; Unreadable if the answer cannot be parsed."""
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
        """Compares multiple choices by letter, and by the text next to it if both have one.

        None where neither is a choice.
        """
        g = _choice(gold)
        a = _choice(answer, marked=g is None)
        if g and a:
            same_letter = g.letter == a.letter.upper()
            if not same_letter or not (g.text and a.text):
                return same_letter
            return self.texts(g.text, a.text)
        if g and g.text:
            return self.texts(g.text, answer)
        if a and a.text and a.letter.isupper():
            return gold == a.letter if _LETTER.fullmatch(gold) else self.texts(gold, a.text)
        return None

    def texts(self, gold: str, answer: str, every_comma: bool = False) -> Verdict:
        """Compares two normalised texts, which may be lists of named values."""
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
        """Compares lists in any order by pairing their values; named values by name."""
        if len(gold) != len(answer):
            return False
        answer_named = any(part.name for part in answer)
        if len({part.name for part in gold}) > 1 and not answer_named:
            return self.all_equal(list(zip(gold, answer, strict=True)))
        return _pairing(gold, answer, self.single)

    def all_equal(self, pairs: list) -> Verdict:
        """True if all pairs are equal, False if one is not, otherwise undecided."""
        verdicts = []
        for one, other in pairs:
            verdicts.append(self.single(one, other))
            if verdicts[-1] is False:
                return False
        return None if None in verdicts else True

    def single(self, gold: Part, answer: Part) -> Verdict:
        """Compares two named values, equations or inequalities."""
        if answer.equation and (exact := names.without_rounding(answer.body)) != answer.body:
            answer = Part(*names.named(exact))
        g, a = interval(gold) or gold, interval(answer) or answer
        if g.equation or a.equation:
            return self.equations(g, a)
        if not names.compatible(g.name, a.name):
            return self.other_names(g, a)
        return self.values(g.body, a.body)

    def other_names(self, gold: Part, answer: Part) -> Verdict:
        """Compares values of different names: (x,y) = (1,2) and (y,x) = (2,1).

        Y = x/2 and x = 2y.
        """
        lists = [_tuple_by_names(part) for part in (gold, answer)]
        if None not in lists:
            return self.lists(*lists)
        if _is_constant(gold.body) or _is_constant(answer.body):
            return False
        return self.equation_sides((gold.name, gold.body), (answer.name, answer.body))

    def equations(self, gold: Part, answer: Part) -> Verdict:
        """Compares equations up to a factor, and inequalities side by side.

        Any value of a gold answer that chains several will do.
        """
        g, a = _relation_of(gold), _relation_of(answer)
        if g is None:
            return False
        if a is None or len(g.signs) > 1 and len(a.signs) == 1:
            return self.one_of_chained(g, answer)
        if g.signs == a.signs == ("=",):
            if gold.name and _is_constant(gold.body) or answer.name and _is_constant(answer.body):
                # x = 5 is solved, 2x = 10 is not
                return False
            return self.equation_sides(g.sides, a.sides)
        if g.signs[0] in (">", r"\ge"):
            g = _reversed(g)
        if a.signs[0] in (">", r"\ge"):
            a = _reversed(a)
        if g.signs != a.signs:
            return False
        pairs = [
            (Part("", one), Part("", other)) for one, other in zip(g.sides, a.sides, strict=True)
        ]
        return self.all_equal(pairs)

    def one_of_chained(self, gold: names.Relation, answer: Part) -> Verdict:
        """Compares with a gold answer of several equal values, 0.56 = 56\\%: any one will do."""
        if not set(gold.signs) <= {"=", r"\approx"} or answer.equation:
            return False
        if any(number(units.split(side).body) is None for side in gold.sides):
            return False
        verdicts = [self.values(side, answer.body) for side in gold.sides]
        return True if True in verdicts else None if None in verdicts else False

    def equation_sides(self, gold: tuple[str, ...], answer: tuple[str, ...]) -> Verdict:
        """Compares two equations, given by their sides."""
        one, other = (f"({left})-({right})" for left, right in (gold, answer))
        try:
            letters = [formula.letters(formula.read(text)) for text in (one, other)]
        except Unreadable:
            return flat("=".join(gold)) == flat("=".join(answer))
        if letters[0] != letters[1]:
            return False
        return self.algebra.same_equation(one, other) if self.exact else None

    def values(self, gold: str, answer: str) -> Verdict:
        """Compares two values without names: by their shape, or as single expressions."""
        if flat(gold) == flat(answer):
            return True
        g, a = shape(gold), shape(answer)
        if g.kind == a.kind == ONE:
            return self.expressions(g.parts[0], a.parts[0])
        g, a = _as_same_kind(g, a)
        if g.kind != a.kind or len(g.parts) != len(a.parts):
            return False
        if g.kind in (LIST, SET, UNION):
            return self.lists(
                [Part("", part) for part in g.parts], [Part("", part) for part in a.parts]
            )
        return self.all_equal(
            [(Part("", one), Part("", other)) for one, other in zip(g.parts, a.parts, strict=True)]
        )

    def expressions(self, gold: str, answer: str) -> Verdict:
        """Compares two single expressions: units, then text, numbers, words, formulas."""
        bases = numbers.parse_based(gold), numbers.parse_based(answer)
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
        if not units.compatible(g, a, self.rule.unit):
            return False
        if flat(g.body) == flat(a.body):
            return True
        x, y = number(g.body), number(a.body)
        if x is not None and y is not None:
            return _within_tolerance(x, y, self.rule)
        if (found := _compare_words(g.body, a.body, x, y)) is not None:
            return found
        return self.formulas(g.body, a.body)

    def ratios(self, gold: list[str], answer: list[str]) -> Verdict:
        """Compares ratios term by term.

        A ratio of two terms also equals the number of its quotient.
        """
        terms = gold, answer
        if len(gold) == len(answer):
            pairs = zip(gold, answer, strict=True)
            return self.all_equal([(Part("", one), Part("", other)) for one, other in pairs])
        values = [[number(term) for term in side] for side in terms]
        if sorted(map(len, values)) != [1, 2] or any(None in side or 0 in side for side in values):
            return False
        first, second = (side[0] / side[1] if len(side) == 2 else side[0] for side in values)
        return first == second

    def formulas(self, gold: str, answer: str) -> Verdict:
        """Compares two formulas by their values at a point, then by algebra.

        Unreadable if the answer cannot be parsed.
        """
        if not _is_readable(gold):
            return False
        if not _is_readable(answer):
            raise Unreadable("no expression")
        if probe.differ(gold, answer, self.rule.absolute, self.rule.relative):
            return False
        return self.algebra.equal(gold, answer, self.rule) if self.exact else None


def _is_readable(text: str) -> bool:
    """Whether formula.py can read the text, or math-verify might."""
    try:
        formula.read(text)
    except formula.Unknown:
        return "\x00" not in text
    except Unreadable:
        return False
    return True


def _special(gold: str, answer: str) -> Verdict:
    """Compares times of day and infinities; None where neither side is one."""
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


def _within_tolerance(gold: Fraction, answer: Fraction, rule: Rule) -> bool:
    """Whether two numbers are equal up to the rule's tolerance."""
    if gold == answer:
        return True
    allowed = max(Fraction(rule.absolute), abs(gold) * Fraction(rule.relative))
    return abs(gold - answer) <= allowed


def _pairing(
    gold: list[Part], answer: list[Part], single: Callable[[Part, Part], Verdict]
) -> Verdict:
    """Whether gold and answer parts can be paired; None where that depends on undecided pairs."""
    verdicts: dict[tuple[int, int], Verdict] = {}

    def pair(i: int, j: int) -> Verdict:
        if (i, j) not in verdicts:
            try:
                verdicts[i, j] = single(gold[i], answer[j])
            except Unreadable:
                verdicts[i, j] = False
        return verdicts[i, j]

    def matched(allowed: tuple) -> bool:
        # answer -> gold
        partners: dict[int, int] = {}

        def place(i: int, seen: set[int]) -> bool:
            order = sorted(
                range(len(answer)), key=lambda j: flat(answer[j].body) != flat(gold[i].body)
            )
            for j in order:
                if j in seen or pair(i, j) not in allowed:
                    continue
                seen.add(j)
                if j not in partners or place(partners[j], seen):
                    partners[j] = i
                    return True
            return False

        return all(place(i, set()) for i in range(len(gold)))

    if matched((True,)):
        return True
    return None if None in verdicts.values() and matched((True, None)) else False


def _elements(listed: list[Part]) -> list[Part]:
    """The parts of a list; a list of one set or one tuple of names is replaced by its parts."""
    if len(listed) != 1:
        return listed
    by_names = _tuple_by_names(listed[0])
    if by_names:
        return by_names
    found = shape(listed[0].body)
    return [Part(listed[0].name, part) for part in found.parts] if found.kind == SET else listed


def _tuple_by_names(part: Part) -> list[Part] | None:
    """(x,y) = (1,2) as x = 1, y = 2."""
    heads, found = names.tuple_names(part.name), shape(part.body)
    if not heads or found.kind != "()" or len(heads) != len(found.parts):
        return None
    return [Part(name, body) for name, body in zip(heads, found.parts, strict=True)]


def _as_same_kind(gold: Shape, answer: Shape) -> tuple[Shape, Shape]:
    """A set of one element is compared as the element."""
    if {gold.kind, answer.kind} == {ONE, SET} and len(gold.parts) == len(answer.parts) == 1:
        return gold._replace(kind=SET), answer._replace(kind=SET)
    return gold, answer


def _relation_of(part: Part | Named) -> names.Relation | None:
    """The relation of an equation or of a named value."""
    if part.equation:
        return names.relation(part.body)
    return names.Relation((part.name, part.body), ("=",)) if part.name else None


def _reversed(found: names.Relation) -> names.Relation:
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
    """The letter of a choice and the text next to it, or None.

    marked: only a capital in brackets or marked as a word is a choice.
    """
    if called := _CALLED.match(text):
        text = text[called.end() :]
        text = "\x00" + text if text.count("\x00") % 2 else text
        text = f"({text})" if _LETTER.fullmatch(text) else text
    found = _CHOSEN.fullmatch(_SPACED_WORD.sub(r"\1 ", text))
    if not found:
        return None
    letter = found[1] or found[2] or found[3]
    text_beside = (found[4] or found[5] or "").strip()
    if marked and (found[3] or letter.islower()) or _ANOTHER_CHOICE.search(text_beside):
        return None
    if (
        units.is_negligible(text_beside)
        if text_beside.startswith("\x00")
        else _PROSE.search(text_beside)
    ):
        return None
    return Choice(letter, text_beside)


def _compare_words(gold: str, answer: str, x: Fraction | None, y: Fraction | None) -> Verdict:
    """Compares words, single letters, and expressions with words.

    None where neither side has any.
    """
    bare = [text.replace("\x00", "").strip(" ()") for text in (gold, answer)]
    if all(_LETTER.fullmatch(text) for text in bare):
        return bare[0] == bare[1]
    if all(_SHORT_WORD.fullmatch(text) for text in bare):
        return _fold_words(bare[0]) == _fold_words(bare[1])
    if x is not None and (found := numbers.number_word(answer)) is not None:
        return x == found
    if y is not None and (found := numbers.number_word(gold)) is not None:
        return y == found
    prose = [bool(_PROSE.search(text)) for text in (gold, answer)]
    if not any(prose):
        return None
    if all(prose) or all(_WORD.fullmatch(text) for text in bare):
        return _fold_words(bare[0]) == _fold_words(bare[1])
    return False


def _fold_words(text: str) -> str:
    """Words in lower case with single spaces; single letters keep their case."""
    text = _TWO_LETTERS.sub(lambda found: found[0].casefold(), text)
    return re.sub(r"[\s.\x00]+", " ", text).strip()
