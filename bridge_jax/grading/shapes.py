r"""Structure of an answer: lists, tuples, intervals, sets, unions, matrices, inequalities.

1, 2 or 3                    list, in any order
(1, 2], (1, 2, 3)            by its brackets
3 < x \le 4                  the interval (3, 4]
x < 1 \text{ or } x > 3      the union of (-\infty, 1) and (3, \infty)
\{1, 2\}                     set
2 \pm \sqrt 3                the list of both values
pmatrix, array               matrix
vmatrix                      determinant, which is not the matrix
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from bridge_jax.grading import names, probe
from bridge_jax.grading.latex import closing, outside_brackets, split
from bridge_jax.grading.names import Named
from bridge_jax.grading.numbers import DIGITS

ONE, LIST, SET, UNION = "one", ",", "{", "union"
REALS = r"(-\infty,\infty)"

_SEPARATOR = outside_brackets(
    r"[,;]", r"\x00(?:and|or)\x00", r"(?<=[\s})\]0-9])(?:and|or)(?=[\s({\[0-9\\])", r"\\\\"
)
_SEPARATES = re.compile(r"[,;\x00]|\b(?:and|or)\b|\\\\")
_COMMA, _CUP = outside_brackets(","), outside_brackets(r"\\cup(?![A-Za-z])")
_THOUSANDS = re.compile(rf"\D*{DIGITS}(?:\.[0-9]+)?\D*", re.DOTALL)
_COMMAS_OF_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_LINES = re.compile(r"\\(?:begin|end)\{(?:cases|aligned|gathered|split|align\*?)\}")
_MATRIX = re.compile(
    r"(?P<factor>[^&]*?)(?P<opens>\(|\[|\||\\\|)?\s*"
    r"\\begin\{(?P<kind>[pbBvV]?matrix|smallmatrix|array)\}(?:\{[lcr|@!\s]*\})?"
    r"(?P<cells>.*)\\end\{(?P=kind)\}\s*(?P<closes>\)|\]|\||\\\|)?",
    re.DOTALL,
)
_ROW, _CELL = re.compile(r"\\\\(?:\s*\[[^\]]*\])?|\\cr(?![A-Za-z])"), re.compile("&")
_PAIRS = {"(": ")", "[": "]", "|": "|", r"\|": r"\|", "": ""}
# the factor of a matrix: one term, which may contain a sum in brackets
_FACTOR = re.compile(r"(-?(?:\([^()]*\)|[^-+=()])*?)\s*(?:\\cdot|\\times|\*)?")
_BUILDER = re.compile(
    r"\\\{\s*([^|:\\]+?)\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\\mid|\||:)(.+)\\\}", re.DOTALL
)
_WITHOUT = re.compile(r"\\mathbb\{R\}\s*(?:\\setminus|-|\\backslash)\s*\\\{(.+)\\\}", re.DOTALL)
_LESS, _MORE = ("<", r"\le"), (">", r"\ge")
_TURNED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


class Shape(NamedTuple):
    """The kind of a value and its parts; kind: ONE, LIST, SET, UNION, "(]", "matrix2,2", ..."""

    kind: str
    parts: tuple[str, ...]


class Part(NamedTuple):
    """One answer of a list: its name and value; joined: the word or sign before it."""

    name: str
    body: str
    equation: bool = False
    joined: str = ""


def parts(text: str, every_comma: bool = False) -> list[Part]:
    """The answers that a text lists, with their names; every_comma: 1,234 is a list of two."""
    pieces = _pieces(text, every_comma)
    listed, before = [], ""
    for piece, separator in pieces:
        if piece:
            listed += [Part(*found, before) for found in _values(piece)]
        before = separator.strip("\x00")
    if len(listed) > 1:
        return _joined(_with_first_name(listed))
    return listed


def _pieces(text: str, every_comma: bool) -> list[tuple[str, str]]:
    """Splits at commas, semicolons, and, or, and lines of cases; commas within numbers stay."""
    text = _LINES.sub(" ", text)
    if not _SEPARATES.search(text):
        return [(text, "")]
    if "," in text and _COMMAS_OF_THOUSANDS.search(text):
        spaced = ";" in text or re.search(r",\s|\x00|\b(?:and|or)\b", text)
        pieces = split(_COMMAS_OF_THOUSANDS.sub("\x01", text), _SEPARATOR)
        grouped = all("\x01" not in piece or _is_grouped(piece) for piece, _ in pieces)
        if grouped and (spaced if every_comma else spaced or len(pieces) == 1):
            return [(piece.replace("\x01", ","), separator) for piece, separator in pieces]
    return split(text, _SEPARATOR)


def _is_grouped(piece: str) -> bool:
    """Whether the commas in a piece group the digits of a number, outside brackets."""
    return _THOUSANDS.fullmatch(piece.replace("\x01", ",")) is not None and "(" not in piece


def _values(piece: str) -> list[Named]:
    """The named values of one piece; two for a plus-minus."""
    found = names.named(piece)
    if found.body.count(r"\pm") + found.body.count(r"\mp") == 0 or found.body.startswith(r"\{"):
        return [found]
    if found.body.count(r"\pm") > 1 or found.body.count(r"\mp") > 1:
        return [found]
    signs = [(r"+", "-"), ("-", "+")]
    both = []
    for plus, minus in signs:
        body = found.body.replace(r"\pm", plus).replace(r"\mp", minus)
        both.append(found._replace(body=body.strip().removeprefix("+").strip()))
    return both


def _with_first_name(listed: list[Part]) -> list[Part]:
    """Gives all values the name of the first, as in x = 1, 2."""
    first, *others = listed
    if first.name and not any(other.name or other.equation for other in others):
        return [first, *(other._replace(name=first.name) for other in others)]
    return listed


def _joined(listed: list[Part]) -> list[Part]:
    """Joins inequalities of one unknown: a union for "or", an interval for two with "and".

    A comma means "and" where both inequalities can hold.
    """
    words = {part.joined for part in listed[1:]}
    sets = [interval(part) for part in listed]
    if None in sets or len({found.name for found in sets}) != 1:
        return listed
    if words == {"or"}:
        return [_union(sets)]
    both = _both(sets) if len(sets) == 2 and words <= {"and", ","} else None
    if both is None or words == {"and"}:
        return both or listed
    low, high = (probe.constant(end) for end in shape(both[0].body).parts)
    if low is None or high is None:
        return listed
    return both if low < high else [_union(sets)]


def _union(sets: list[Part]) -> Part:
    return Part(sets[0].name, r" \cup ".join(found.body for found in sets))


def as_union(listed: list[Part]) -> list[Part]:
    """The union of intervals joined by "or" or of which one is infinite; other lists stay."""
    words = {part.joined for part in listed[1:]}
    infinite = any(r"\infty" in part.body for part in listed)
    if all(_is_interval(part.body) for part in listed) and (words == {"or"} or infinite):
        return [_union(listed)]
    return listed


def _is_interval(text: str) -> bool:
    """Whether a value is a pair in round or square brackets."""
    found = shape(text)
    return found.kind in ("()", "(]", "[)", "[]") and len(found.parts) == 2


def _both(sets: list[Part]) -> list[Part] | None:
    """The intersection of two rays of opposite directions."""
    below = [found.body for found in sets if found.body.endswith(r",\infty)")]
    above = [found.body for found in sets if found.body.startswith(r"(-\infty,")]
    if len(below) != 1 or len(above) != 1 or below == above:
        return None
    low = below[0].removesuffix(r",\infty)")
    return [Part(sets[0].name, low + "," + above[0].removeprefix(r"(-\infty,"))]


def interval(part: Part | Named) -> Part | None:
    """The solutions of an inequality in one unknown, as an interval or a union; otherwise None."""
    if not part.equation:
        return None
    found = names.relation(part.body)
    if found is None or not all(found.sides):
        return None
    signs, sides = found.signs, found.sides
    if len(sides) == 2 and signs[0] == r"\ne":
        return _all_but(sides)
    if signs[0] in _MORE:
        sides, signs = sides[::-1], tuple(_TURNED.get(sign, sign) for sign in signs[::-1])
    if not all(sign in _LESS for sign in signs):
        return None
    if len(sides) == 3:
        return _between(sides, signs)
    if len(sides) != 2:
        return None
    left, right = (names.canonical(side) for side in sides)
    # the set of |x| is not that of x
    if any(name.startswith(("|", r"\|")) for name in (left, right)):
        return None
    if left and not right and not names.occurs(left, sides[1]):
        return Part(left, rf"(-\infty,{sides[1]}" + ("]" if signs[0] == r"\le" else ")"))
    if right and not left and not names.occurs(right, sides[0]):
        return Part(right, ("[" if signs[0] == r"\le" else "(") + rf"{sides[0]},\infty)")
    return None


def _between(sides: tuple[str, ...], signs: tuple[str, ...]) -> Part | None:
    low, middle, high = sides
    name = names.canonical(middle)
    if (
        not name
        or name.startswith(("|", r"\|"))
        or names.occurs(name, low)
        or names.occurs(name, high)
    ):
        return None
    values = probe.constant(low), probe.constant(high)
    if None not in values and values[0] >= values[1]:
        # empty, or one point
        return None
    opens, closes = "[" if signs[0] == r"\le" else "(", "]" if signs[1] == r"\le" else ")"
    return Part(name, f"{opens}{low},{high}{closes}")


def _all_but(sides: tuple[str, ...]) -> Part | None:
    """The solutions of x \\ne 3, a union of two intervals."""
    left, right = (names.canonical(side) for side in sides)
    if bool(left) == bool(right):
        return None
    name, value = (left, sides[1]) if left else (right, sides[0])
    return Part(name, rf"(-\infty,{value}) \cup ({value},\infty)")


@functools.lru_cache(maxsize=4096)
def shape(text: str) -> Shape:
    """The shape of one value, by its outermost brackets or signs."""
    text = text.strip()
    if r"\begin" in text and (found := _MATRIX.fullmatch(text)):
        return _matrix(found)
    if r"\mathbb{R}" in text:
        text = _reals(text)
    if r"\cup" in text and len(union := split(text, _CUP)) > 1:
        return Shape(UNION, tuple(piece for piece, _ in union))
    if text in (r"\emptyset", r"\{ \}", r"\{\}"):
        return Shape(SET, ())
    if text.startswith(r"\{") and closing(text, 2) == len(text) - 2:
        return _set(text)
    text = text.replace(r"\langle", "(").replace(r"\rangle", ")")
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and closing(text, 1) == len(text) - 1:
        inner = [piece for piece, _ in split(text[1:-1], _COMMA)]
        if len(inner) > 1 and all(inner):
            return Shape(text[0] + text[-1], tuple(inner))
    return Shape(ONE, (text,))


def _reals(text: str) -> str:
    """Writes the reals, and the reals without some numbers, as intervals."""
    if text == r"\mathbb{R}":
        return REALS
    found = _WITHOUT.fullmatch(text)
    if not found:
        return text
    points = [piece for piece, _ in split(found[1], _COMMA)]
    if len(points) > 1:
        if any(probe.constant(point) is None for point in points):
            return text
        points.sort(key=probe.constant)
    ends = [r"-\infty", *points, r"\infty"]
    return r"\cup".join(f"({low},{high})" for low, high in zip(ends, ends[1:]))


def _set(text: str) -> Shape:
    found = _BUILDER.fullmatch(text)
    if found:
        inner = parts(found[2])
        bounds = interval(inner[0]) if len(inner) == 1 else None
        if bounds and bounds.name == names.canonical(found[1]):
            return shape(bounds.body)
    listed = parts(text[2:-2], every_comma=True)
    return Shape(
        SET, tuple(f"{part.name}={part.body}" if part.name else part.body for part in listed)
    )


def _matrix(found: re.Match) -> Shape:
    """Cells row by row.

    The kind has the lengths of the rows and tells a determinant by its bars.
    """
    rows = [row for row in _ROW.split(found["cells"]) if row.strip()]
    cells = [[cell.strip() for cell in _CELL.split(row)] for row in rows]
    lengths = ",".join(str(len(row)) for row in cells)
    opens, closes, kind = found["opens"] or "", found["closes"] or "", found["kind"]
    if _PAIRS[opens] != closes or (opens and kind not in ("array", "matrix", "smallmatrix")):
        return Shape(ONE, (found[0],))
    name = "matrix"
    if kind == "vmatrix" or opens == "|":
        name = "determinant"
    elif kind == "Vmatrix" or opens == r"\|":
        name = "norm"
    factor = _FACTOR.fullmatch(found["factor"].strip())
    if not factor or factor[0] and name != "matrix":
        return Shape(ONE, (found[0],))
    times = "-1" if factor[1] == "-" else factor[1]
    values = [f"({times})({cell})" if times else cell for row in cells for cell in row]
    return Shape(name + lengths, tuple(values))
