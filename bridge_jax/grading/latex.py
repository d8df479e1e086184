r"""Normal form of an answer's LaTeX, and the limits of its length. Time is linear in the text.

`normalise` removes formatting without meaning (delimiters, colours, bold, spacing), writes Unicode
and plain ASCII mathematics as LaTeX, and puts words between two NUL characters: `5\text{ cm}` and
`5\mathrm{cm}` become "5<NUL>cm<NUL>". Currency signs stay commands in front of their number
(`\$5`). The meaning of words and commands is left to units, names, shapes and formula.
"""

from __future__ import annotations

import functools
import re
import unicodedata

LONGEST = 400  # characters of an answer
DEEPEST = 20  # open brackets at once
MOST_DIGITS = 60  # digits of one number
WORDS = "\x00"  # stands at both ends of words

GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
).split()
FUNCTIONS = (
    "arcsin arccos arctan arccot sinh cosh tanh sin cos tan cot sec csc ln log lg exp "
    "max min gcd lcm"
).split()

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓ", "0123456789+-()nx")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓ]+")
_ROOT_OF_NUMBER = re.compile(r"√\s*([0-9]+(?:\.[0-9]+)?)")
# fmt: skip
_VULGAR = {
    "½": (1, 2),
    "⅓": (1, 3),
    "⅔": (2, 3),
    "¼": (1, 4),
    "¾": (3, 4),
    "⅕": (1, 5),
    "⅖": (2, 5),
    "⅗": (3, 5),
    "⅘": (4, 5),
    "⅙": (1, 6),
    "⅚": (5, 6),
    "⅐": (1, 7),
    "⅛": (1, 8),
    "⅜": (3, 8),
    "⅝": (5, 8),
    "⅞": (7, 8),
    "⅑": (1, 9),
    "⅒": (1, 10),
}
_GREEK_LETTERS = (
    "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩ",
    GREEK,
)
# fmt: skip
_UNICODE = str.maketrans(
    {letter: rf"\{name} " for letter, name in zip(*_GREEK_LETTERS, strict=True)}
    | {vulgar: rf"\frac{{{top}}}{{{bottom}}}" for vulgar, (top, bottom) in _VULGAR.items()}
    | dict.fromkeys("−–—‐‑‒﹣－", "-")
    | dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000", " ")
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", "")
    | {
        "ϕ": r"\phi ",
        "ϵ": r"\epsilon ",
        "ϑ": r"\theta ",
        "ς": r"\sigma ",
        "ℏ": r"\hbar ",
        "ℓ": r"\ell ",
        "∆": r"\Delta ",
        "∑": r"\sum ",
        "∏": r"\prod ",
        "∫": r"\int ",
        "≥": r"\ge ",
        "⩾": r"\ge ",
        "≧": r"\ge ",
        "≤": r"\le ",
        "⩽": r"\le ",
        "≦": r"\le ",
        "≠": r"\ne ",
        "≈": r"\approx ",
        "≅": r"\cong ",
        "≡": r"\equiv ",
        "∞": r"\infty ",
        "×": r"\times ",
        "⋅": r"\cdot ",
        "·": r"\cdot ",
        "∙": r"\cdot ",
        "•": r"\cdot ",
        "∗": "*",
        "÷": r"\div ",
        "∕": "/",
        "⁄": "/",
        "±": r"\pm ",
        "∓": r"\mp ",
        "√": r"\sqrt ",
        "∛": r"\sqrt[3]",
        "∜": r"\sqrt[4]",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∈": r"\in ",
        "∅": r"\emptyset ",
        "⌀": r"\emptyset ",
        "∖": r"\setminus ",
        "ℝ": r"\mathbb{R}",
        "ℤ": r"\mathbb{Z}",
        "ℕ": r"\mathbb{N}",
        "ℚ": r"\mathbb{Q}",
        "ℂ": r"\mathbb{C}",
        "°": r"^\circ ",
        "º": r"^\circ ",
        "˚": r"^\circ ",
        "℃": r"^\circ C",
        "℉": r"^\circ F",
        "′": "'",
        "″": "''",
        "’": "'",
        "‘": "'",
        "“": '"',
        "”": '"',
        "∠": r"\angle ",
        "△": r"\triangle ",
        "∧": r"\land ",
        "∨": r"\lor ",
        "→": r"\to ",
        "⇒": r"\Rightarrow ",
        "⟨": r"\langle ",
        "⟩": r"\rangle ",
        "∣": "|",
        "⌊": r"\lfloor ",
        "⌋": r"\rfloor ",
        "⌈": r"\lceil ",
        "⌉": r"\rceil ",
        "、": ",",
        "。": ".",
        "…": r"\dots ",
        "€": r"\euro ",
        "£": r"\pounds ",
        "¥": r"\yen ",
        "￥": r"\yen ",
        "￡": r"\pounds ",
        "₹": r"\rupee ",
        "¢": "\x00cents\x00",
        "元": "\x00yuan\x00",
        "円": "\x00yen\x00",
        "％": r"\%",
        "‰": "\x00permille\x00",
    }
)

# commands of formatting alone; their argument in braces stays as a group
_STYLE = (
    "left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle "
    "textstyle scriptstyle scriptscriptstyle limits nolimits quad qquad enspace enskip thinspace "
    "medspace thickspace negthinspace hfill nonumber notag large Large LARGE huge Huge small "
    "normalsize tiny footnotesize bf it rm tt sf sl bfseries itshape ttfamily rmfamily sffamily "
    "mathstrut strut noindent centering allowbreak nobreak boldsymbol bm pmb mathbf mathit mathsf "
    "mathtt mathcal mathfrak mathscr mathnormal underline uline ensuremath boxed fbox mathop "
    "mathord mathrel mathbin mathopen mathclose"
).split()
# fmt: skip
_COMMANDS = dict.fromkeys(_STYLE, " ") | {
    "dfrac": r"\frac",
    "tfrac": r"\frac",
    "cfrac": r"\frac",
    "dbinom": r"\binom",
    "tbinom": r"\binom",
    "geq": r"\ge",
    "geqslant": r"\ge",
    "leq": r"\le",
    "leqslant": r"\le",
    "neq": r"\ne",
    "lt": "<",
    "gt": ">",
    "lbrace": r"\{",
    "rbrace": r"\}",
    "lbrack": "[",
    "rbrack": "]",
    "vert": "|",
    "lvert": "|",
    "rvert": "|",
    "mid": r"\mid",
    "degree": r"^\circ",
    "degrees": r"^\circ",
    "textdegree": r"^\circ",
    "varnothing": r"\emptyset",
    "infin": r"\infty",
    "varphi": r"\phi",
    "varepsilon": r"\epsilon",
    "vartheta": r"\theta",
    "varrho": r"\rho",
    "varsigma": r"\sigma",
    "tg": r"\tan",
    "ctg": r"\cot",
    "arctg": r"\arctan",
    "simeq": r"\approx",
    "doteq": r"\approx",
    "approxeq": r"\approx",
    "colon": ":",
    "ast": "*",
    "dots": r"\dots",
    "ldots": r"\dots",
    "cdots": r"\dots",
    "dotsc": r"\dots",
    "dotsb": r"\dots",
    "R": r"\mathbb{R}",
    "reals": r"\mathbb{R}",
    "Reals": r"\mathbb{R}",
    "land": "\x00and\x00",
    "wedge": "\x00and\x00",
    "lor": "\x00or\x00",
    "vee": "\x00or\x00",
    "textdollar": r"\$",
    "texteuro": r"\euro",
    "EUR": r"\euro",
    "textsterling": r"\pounds",
    "textyen": r"\yen",
    "measuredangle": r"\angle",
    "smallsetminus": r"\setminus",
    "backslash": r"\setminus",
    "lang": r"\langle",
    "rang": r"\rangle",
    "texttimes": r"\times",
    "implies": r"\Rightarrow",
    ",": " ",
    "!": "",
    ";": " ",
    ":": " ",
    ">": " ",
    " ": " ",
    "\n": " ",
    "/": "",
    "-": "",
    "_": "_",
    "#": "",
    "&": " ",
    "(": " ",
    ")": " ",
    "[": " ",
    "]": " ",
    "|": r"\|",
}
_STYLED_TOKEN = re.compile(
    r"\\(?:boldsymbol|bm|pmb|math(?:bf|it|sf|tt|cal|frak|scr|normal))\s*\{\s*([A-Za-z]|[0-9.]+)\s*\}"
)
_COMMAND = re.compile(r"\\([A-Za-z]+|[^A-Za-z])", re.DOTALL)
_DROPPED = re.compile(
    r"\\(?:textcolor|color|colorbox|mathcolor|definecolor|hspace|vspace|kern|phantom|hphantom"
    r"|vphantom|label|tag)\*?\s*(?:\[[^\]]*\])?\s*(?:\{[^{}]*\}|(?<=phantom) *[-+])"
)
_TEXT_COMMANDS = (
    r"\\(text(?:bf|it|rm|normal|sf|tt|up|md|sl|sc)?|emph|[mh]box|mathrm|operatorname|mathup)\*?\s*"
)
_TEXT = re.compile(_TEXT_COMMANDS + r"\{([^{}]*)\}")
_TEXT_COMMAND = re.compile(_TEXT_COMMANDS + r"(?=\{)")
_DOUBLE = re.compile(r"\{\s*\{([^{}]*)\}\s*\}")
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"))
_MORE_DELIMITERS = (("__", "__"), ("`", "`"), ("*", "*"))
_RUN_OF_WORDS = re.compile(r"[A-Za-z][A-Za-z0-9.'’-]*(?:\s+[A-Za-z][A-Za-z0-9.'’-]*)*")
_JOINING = re.compile(r"\s*\b(and|or)\b\s*")
_FORMULA_IN_TEXT = re.compile(r"[=<>+\\]")
_TWO_LETTERS = re.compile(r"[A-Za-z]{2}")

_DOLLAR_COMMA = re.compile(r"(?<!\\)\$\s*,\s*\\?\$?|,\s*\\?\$")
_DOLLAR = re.compile(r"(?<!\\)\$")
# a dollar sign before a number, without a closing one after it, is money
_PRICE = re.compile(r"^(\s*-?\s*)\$(?=\s*[\d.])")
# 12{,}345, 12,\! 345, 12\,345
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\s*,\s*\\!\s*|\{,\}|\\[!,:; ])(?=[0-9]{3}(?![0-9]))")
_EMPTY_DELIMITER = re.compile(r"\\(?:left|right)\s*\.")
_DEGREES = re.compile(
    r"(?:\{\})?\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z])|\{\s*o\s*\}|o(?![A-Za-z]))"
)
_PRIMES = re.compile(r"\^\s*(?:\{((?:\s*\\prime)+)\s*\}|((?:\s*\\prime)+))")
_NUMBER_SET = re.compile(r"\\(?:mathbb|Bbb)\s*\{?\s*([RZNQCE])\s*\}?")
_IS = re.compile(r"\x00(?:([^\x00]*?)\s+)?(?:is|equals)\x00")
_PERCENT = re.compile(r"\\?%")
_ASCII_SIGNS = re.compile(r">=|<=|=<|==|\*\*|\+/?-|(?<![0-9)\]}!])!=|(?<=\s)!=")
_ASCII_NAMES = {
    ">=": r"\ge ",
    "<=": r"\le ",
    "=<": r"\le ",
    "==": "=",
    "**": "^",
    "+-": r"\pm ",
    "+/-": r"\pm ",
    "!=": r"\ne ",
}
_UNITS_TOO = ("sec", "min")  # where no bracket follows
_PLAIN_NAMES = re.compile(
    r"(?<![A-Za-z\\\x00])(?:np\.|math\.)?(sqrt|pi|infinity|infty|inf|"
    + "|".join(name for name in FUNCTIONS if name not in _UNITS_TOO)
    + rf"|(?:{'|'.join(_UNITS_TOO)})(?=\s*\())(?![A-Za-z\x00])"
)
_PLAIN_ROOT = re.compile(r"\\sqrt\s*\(([^()]*)\)")
_BARE = re.compile(
    r"\\(frac)\s*([0-9a-zA-Z])\s*([0-9a-zA-Z])|\\(sqrt)\s*([0-9a-zA-Z])|\\frac\s*([0-9a-zA-Z])\s*\{"
)
_OVER = re.compile(r"\{([^{}]*)\\(over|choose)(?![A-Za-z])([^{}]*)\}")
_ORDINAL = re.compile(r"\^\s*\{\s*(\x00(?:st|nd|rd|th)\x00)\s*\}")
_MODULUS = re.compile(
    r"\(?\s*(?:\\(?:pmod|bmod|mod)|\x00mod\x00|(?<![A-Za-z])mod)(?![A-Za-z])\s*\{?\s*"
    r"([0-9A-Za-z]+)\s*\}?\s*\)?"
)
_SINGLE = re.compile(r"([_^])\{\s*([0-9A-Za-z])\s*\}(?![0-9])")
_FLAT = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])|\x00")
_BRACKET = re.compile(r"\\[{}]|[()\[\]{}]")
_OPENING = {"(", "[", "{", r"\{"}


class Unreadable(ValueError):
    """The answer is beyond the limits, or cannot be parsed."""


def check_limits(text: str) -> None:
    """Unreadable for a text that is too long or too deeply nested, or has invalid digits."""
    if len(text) > LONGEST or re.search(rf"[0-9]{{{MOST_DIGITS + 1}}}", text) or "\x00" in text:
        raise Unreadable("too long, or not text")
    if not text.isascii():
        text = ascii_text(text)
        if any(character.isdigit() and not character.isascii() for character in text):
            raise Unreadable("digits that are not ASCII")
    depth = 0
    for bracket in _BRACKET.findall(text):
        depth += 1 if bracket in _OPENING else -1
        if depth > DEEPEST:
            raise Unreadable("nested too deep")


def ascii_text(text: str) -> str:
    """Unicode mathematics as LaTeX, full-width characters as ASCII; other characters stay."""
    text = _RAISED.sub(_as_exponent, text)
    text = _ROOT_OF_NUMBER.sub(r"\\sqrt{\1}", text)
    text = _LOWERED.sub(lambda found: f"_{{{found[0].translate(_SUBSCRIPTS)}}}", text)
    return unicodedata.normalize("NFKC", text.translate(_UNICODE)).translate(_UNICODE)


def _as_exponent(found: re.Match) -> str:
    """x² as x^2: a single character needs no braces, which \\text{cm²} could not hold."""
    exponent = found[0].translate(_SUPERSCRIPTS)
    return f"^{exponent}" if len(exponent) == 1 else f"^{{{exponent}}}"


@functools.lru_cache(maxsize=4096)
def normalise(text: str) -> str:
    r"""The normal form of a LaTeX text.

    No delimiters, colours or spacing commands; \frac{a}{b}; words between NUL characters.
    """
    if not text.isascii():
        text = ascii_text(text)
    text = _without_delimiters(text)
    if "$" in text:
        if len(_DOLLAR.findall(text)) % 2:
            text = _PRICE.sub(r"\1\\$", text)
        text = _DOLLAR.sub(" ", _DOLLAR_COMMA.sub(_list_mark, text))
    if "{,}" in text or "\\" in text:
        # such a mark groups digits and never lists numbers, as a plain comma may
        text = _THOUSANDS.sub("", text)
    if "\\" in text:
        text = _without_styles(text)
    if "%" in text:
        text = _PERCENT.sub("\x00percent\x00", text)
    if any(sign in text for sign in ("=", "**", "+-", "+/-")):
        text = _ASCII_SIGNS.sub(lambda found: _ASCII_NAMES[found[0]], text)
    if _TWO_LETTERS.search(text):
        text = _PLAIN_NAMES.sub(_as_command, text)
    if "\\" in text or "^" in text or "_" in text or "mod" in text:
        text = _canonical_commands(text)
    if "\x00" in text:
        text = _IS.sub(_equals, text)
    return _stripped(text.replace(":=", "="))


def flat(text: str) -> str:
    """The text without white space and word marks; "1 2" stays different from 12."""
    return _FLAT.sub("", text)


def closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one opened before `start`, or -1.

    Intervals may close with the other kind of bracket.
    """
    depth = 1
    for found in _BRACKET.finditer(text, start):
        depth += 1 if found[0] in _OPENING else -1
        if depth == 0:
            return found.start()
    return -1


def split(text: str, separator: re.Pattern) -> list[tuple[str, str]]:
    """Splits at separators outside brackets and environments, into (piece, separator after it)."""
    pieces, depth, begin = [], 0, 0
    for found in separator.finditer(text):
        mark = found[0]
        if mark in ("(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil", r"\begin"):
            depth += 1
        elif mark in (")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil", r"\end"):
            depth -= 1
        elif depth == 0:
            pieces.append((text[begin : found.start()].strip(), mark.strip()))
            begin = found.end()
    return [*pieces, (text[begin:].strip(), "")]


def outside_brackets(*separators: str) -> re.Pattern:
    """A pattern for `split`: the separators, and every bracket."""
    brackets = (
        r"\\(?:[{}]|(?:langle|rangle|lfloor|rfloor|lceil|rceil|begin|end)(?![A-Za-z]))|[()\[\]{}]"
    )
    return re.compile("|".join((brackets, *separators)))


def _list_mark(found: re.Match) -> str:
    """A comma between two formulas; a currency sign after it stays."""
    return r";\$" if found[0].endswith(r"\$") else ";"


def _as_command(found: re.Match) -> str:
    name = found[1]
    return r"\infty " if name.startswith("inf") else f"\\{name} "


def _without_delimiters(text: str) -> str:
    """The text without pairs of delimiters that enclose all of it."""
    text = text.replace("~", " ").strip().rstrip("\\").strip()
    for opens, closes in _DELIMITERS + _MORE_DELIMITERS:
        inner = text[len(opens) : -len(closes)]
        # \$ is a sign of money and no delimiter
        whole = len(text) >= len(opens) + len(closes) and closes not in inner.replace(r"\$", "")
        if whole and text.startswith(opens) and text.endswith(closes) and text[-2:] != r"\$":
            text = inner.strip()
    return text.replace("**", "") if text.startswith("**") else text


def _without_styles(text: str) -> str:
    """Drops commands of formatting, unifies synonyms, and marks words."""
    text = _DROPPED.sub(" ", _EMPTY_DELIMITER.sub(" ", text))
    text = _STYLED_TOKEN.sub(r" \1", _NUMBER_SET.sub(r"\\mathbb{\1}", text))
    text = _COMMAND.sub(_renamed, text)
    # \textbf{\text{A}}: the inner one first
    for _ in range(3):
        if not _TEXT_COMMAND.search(text):
            return text
        text = _TEXT.sub(_marked, _DOUBLE.sub(r"{\1}", text))
    # \textbf{\frac{1}{2}}
    return _TEXT_COMMAND.sub(" ", text)


def _equals(found: re.Match) -> str:
    """Turns words that end in "is" into a name and an equals sign."""
    return f"\x00{found[1]}\x00=" if found[1] else "="


def _renamed(found: re.Match) -> str:
    new = _COMMANDS.get(found[1])
    if new is None:
        return found[0]
    return new + " " if new[:1] == "\\" and new[-1:].isalpha() else new


def _marked(found: re.Match) -> str:
    """The text of a \\text command: words between NUL characters, numbers and signs outside."""
    command, content = found[1], found[2].replace("\x00", "")
    bare = content.strip()
    if command in ("mathrm", "operatorname", "mathup", "text"):
        if bare in FUNCTIONS and bare not in _UNITS_TOO:
            return f"\\{bare} "
        if command != "text" and bare in ("e", "i", "d"):
            return bare
    if _FORMULA_IN_TEXT.search(content) and not _TWO_LETTERS.search(_COMMAND.sub("", content)):
        # \text{x = 5}
        return content
    return _RUN_OF_WORDS.sub(_words, content)


def _words(found: re.Match) -> str:
    pieces = _JOINING.split(found[0])
    return " ".join(f"\x00{piece.strip()}\x00" for piece in pieces if piece.strip())


def _canonical_commands(text: str) -> str:
    r"""\frac{1}{2} for \frac12, x_1 for x_{1}, ^\circ for degrees, ' for primes."""
    text = _DEGREES.sub(r"^\\circ ", text)
    if r"\prime" in text:
        text = _PRIMES.sub(lambda found: "'" * found[0].count("prime"), text)
    if r"\sqrt" in text:
        text = _PLAIN_ROOT.sub(r"\\sqrt{\1}", text)
    if r"\over" in text or r"\choose" in text:
        text = _OVER.sub(_over, text)
    if "mod" in text:
        text = _MODULUS.sub(r"\\pmod{\1}", text)
    if "^" in text and "\x00" in text:
        text = _ORDINAL.sub(r"\1", text)
    return _SINGLE.sub(r"\1\2", _BARE.sub(_braced, text))


def _over(found: re.Match) -> str:
    command = {"over": "frac", "choose": "binom"}[found[2]]
    return f"\\{command}{{{found[1]}}}{{{found[3]}}}"


def _braced(found: re.Match) -> str:
    if found[1]:
        return f"\\frac{{{found[2]}}}{{{found[3]}}}"
    return f"\\sqrt{{{found[5]}}}" if found[4] else f"\\frac{{{found[6]}}}{{"


def _stripped(text: str) -> str:
    """The text without a final point or comma, and without braces around the whole."""
    while True:
        text = text.strip()
        shorter = text.removesuffix(r"\\").rstrip(".,; ")
        if shorter[:1] == "{" and closing(shorter, 1) == len(shorter) - 1:
            shorter = shorter[1:-1]
        if shorter == text:
            return text
        text = shorter
