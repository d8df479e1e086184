r"""Extraction of a completion's answer: the content of the last balanced \boxed{...} or \fbox{...}.

Where a text closes its reasoning with </think>, only the text after the last </think> is searched,
since a box inside the reasoning is not an answer. Reasoning that was never closed is searched too.
The last box is the one that OPENS last, so of two nested boxes it is the inner one. Boxes that are
never closed are ignored, as are placeholders such as the empty box of the repeated instruction
("within \boxed{}"). One pass without recursion takes time linear in the text. Left out: boxes
without braces (`\boxed 5`), and the meaning of the content.
"""

from __future__ import annotations

import re

STATED = re.compile(
    r"(?:####|\banswer\s*(?:is|:|=)|\banswer\s+would\s+be)\s*:?\s*(.+)", re.IGNORECASE
)
# dollars around a formula: "$5 and $6" and "$200+$60=$260" are money
MATHS = re.compile(
    r"(?<![\\0-9A-Za-z])\$(?!\s)([^$\n]{1,200})(?<![\s\\+\-*/=<>(,])\$(?![0-9<A-Za-z])"
    r"|\\\((.{1,200}?)\\\)"
)
TWO_WORDS = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}\s+[A-Za-z]{2,}")
CALCULATOR = re.compile(r"<<[^<>\n]{0,200}>>")  # marks of GSM8K
NUMBER = re.compile(r"(?<![\w.])-?\$?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?%?")
TAIL = 2000  # characters at the end that the lenient reading searches
# A box, a backslash pair that does not escape a box (over-escaped output writes \\boxed), an
# escaped brace, a brace.
PIECE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\\\(?!(?:boxed|fbox)\s*\{)|\\[{}]|[{}]")
# Content of a box that is no answer: white space, empty commands, dots, words of the instruction.
PLACEHOLDER = re.compile(
    r"(?:[\s{}$~.…_?]|\\(?:boxed|fbox|text|textbf|mathrm|mathbf|q?quad|[ldc]?dots|cdot|square)"
    r"(?![A-Za-z])|\\[,;:! ])*+"
    r"(?:(?:the |your |my )?(?:final )?answer(?: here| goes here)?)?[\s{}$.]*",
    re.IGNORECASE,
)
LONGEST_PLACEHOLDER = 100  # characters; any longer content is an answer


def last_boxed(text: str) -> str | None:
    """Content of the last balanced box after the last </think>, placeholders ignored, or None."""
    text = text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text
    # where the content of each open brace starts; negative for a brace that is no box
    opened: list[int] = []
    # of the last box found so far
    start, content = -1, None
    for piece in PIECE.finditer(text):
        kind = piece.group()
        if kind == "{":
            opened.append(-1)
        elif kind == "}":
            begin = opened.pop() if opened else -1
            if begin > start and not is_placeholder(text, begin, piece.start()):
                start, content = begin, (begin, piece.start())
        elif kind.endswith("{") and kind != r"\{":
            opened.append(piece.end())
    return None if content is None else text[slice(*content)]


def is_placeholder(text: str, begin: int = 0, end: int | None = None) -> bool:
    r"""Whether a part of a text is a placeholder: empty, or words such as "your answer"."""
    end = len(text) if end is None else end
    return (
        end - begin <= LONGEST_PLACEHOLDER and PLACEHOLDER.fullmatch(text, begin, end) is not None
    )


def formulas(text: str) -> list[str]:
    """The formulas between dollar signs or in \\( \\); amounts of money are left out."""
    found = [match[1] or match[2] for match in MATHS.finditer(text)]
    return [
        formula
        for formula in found
        if not TWO_WORDS.search(formula) and formula.count("(") == formula.count(")")
    ]


def lenient_answer(text: str) -> str | None:
    r"""The lenient reading of a completion, which evaluation reports next to the strict one.

    The first of these that exists: the last box; the text after "the answer is" or ####; the last
    $...$; the number after = in the last line; the last number. Never used for rewards, since a
    model would learn to print numbers instead of reasoning.
    """
    if (boxed := last_boxed(text)) is not None:
        return boxed
    tail = text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text
    tail = CALCULATOR.sub("", tail[-TAIL:])
    stated = [line.strip().rstrip(".").strip("*").strip() for line in STATED.findall(tail)]
    stated = [line for line in stated if not is_placeholder(line)]
    if stated:
        found = formulas(stated[-1])
        return found[0] if found else first_number(stated[-1]) or stated[-1]
    if found := formulas(tail):
        return found[-1]
    last_line = tail.rstrip().rpartition("\n")[2]
    numbers = NUMBER.findall(last_line.rpartition("=")[2])[:1] if "=" in last_line else []
    numbers = numbers or NUMBER.findall(tail)[-1:]
    return numbers[0].rstrip(",.") if numbers else None


def first_number(line: str) -> str | None:
    """The first number after the last equals sign, or of the whole line."""
    numbers = NUMBER.findall(line.rpartition("=")[2]) or NUMBER.findall(line)
    return numbers[0].rstrip(",.") if numbers else None
