r"""Finds the answer that a completion boxes: the content of the last balanced \boxed{...} or \fbox{...}.

Where a text closes its reasoning with </think>, only what follows the last </think> is searched: a box inside the
reasoning is not an answer. A reasoning that was never closed is searched whole. The last box is the one that OPENS
last, so of two nested boxes it is the inner one. Boxes that are never closed do not count. One pass, no recursion:
time is linear in the text. Left out: boxes without braces (`\boxed 5`) and every reading of the content.
"""

from __future__ import annotations

import re

STATED = re.compile(
    r"(?:####|\banswer\s*(?:is|:|=)|\banswer\s+would\s+be)\s*:?\s*(.+)", re.IGNORECASE
)
MATHS = re.compile(
    r"\$(?!\s)([^$\n]{1,200})(?<!\s)\$(?![0-9])|\\\((.{1,200}?)\\\)"
)  # "$5 and $6" is money
NUMBER = re.compile(r"(?<![\w.])-?\$?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?%?")
TAIL = 2000  # characters at the end in which the lenient reading looks
# A box, a backslash pair that does not escape a box (over-escaped output writes \\boxed), an escaped brace, a brace.
PIECE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\\\(?!(?:boxed|fbox)\s*\{)|\\[{}]|[{}]")


def last_boxed(text: str) -> str | None:
    """Content of the last balanced box after the last </think>, as it is written; None where there is none."""
    text = text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text
    opened: list[
        int
    ] = []  # where the content of each open brace starts; negative for a brace that is no box
    start, content = -1, None  # of the last box found so far
    for piece in PIECE.finditer(text):
        kind = piece.group()
        if kind == "{":
            opened.append(-1)
        elif kind == "}":
            begin = opened.pop() if opened else -1
            if begin > start:
                start, content = begin, (begin, piece.start())
        elif kind.endswith("{") and kind != r"\{":
            opened.append(piece.end())
    return None if content is None else text[slice(*content)]


def lenient_answer(text: str) -> str | None:
    r"""For evaluation, beside the strict reading: the last box; else what the text states behind "the answer is" or ####;
    else its last $...$; else what follows = in the last line; else its last number. Never for rewards: a model would learn
    to name numbers instead of reasoning."""
    if (boxed := last_boxed(text)) is not None:
        return boxed
    tail = text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text
    tail = tail[-TAIL:]
    if stated := STATED.findall(tail):
        line = stated[-1].strip().rstrip(".").strip("*").strip()
        found = MATHS.findall(line)
        if found:
            return found[0][0] or found[0][1]
        numbers = NUMBER.findall(line)
        return numbers[0].rstrip(",.") if numbers else line
    if found := MATHS.findall(tail):
        return found[-1][0] or found[-1][1]
    last_line = tail.rstrip().rpartition("\n")[2]
    numbers = NUMBER.findall(last_line.rpartition("=")[2])[:1] if "=" in last_line else []
    numbers = numbers or NUMBER.findall(tail)[-1:]
    return numbers[0].rstrip(",.") if numbers else None
