"""last_boxed: hand cases, a slow and obvious reference, and inputs made to hurt."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridge_jax.grading.extract import last_boxed, lenient_answer
from tests.grading.growth import assert_linear

CASES = {
    r"The answer is \boxed{14}.": "14",
    r"\fbox{x}": "x",
    r"\boxed{1} then \fbox{2}": "2",
    r"\fbox{1} then \boxed{2}": "2",
    r"\boxed {3}": "3",
    r"\boxed{\frac{1}{2}}": r"\frac{1}{2}",
    r"\boxed{\left\{1, 2\right\}}": r"\left\{1, 2\right\}",
    r"\boxed{\{}": r"\{",
    r"\boxed{a \\}": r"a \\",  # a line break, then the closing brace
    r"x \\ \boxed{4}": "4",
    r"x \\\boxed{4}": "4",  # a line break, then the box
    r"\\boxed{4}": "4",  # over-escaped
    r"\boxed{5} and \boxed{6": "5",  # the last one is never closed
    r"\boxed{5 and \boxed{6}": "6",
    r"\boxed{1 {2}": None,
    r"\boxed{\fbox{7}}": "7",  # of two nested boxes the one that opens last
    r"\boxed{}": None,  # an empty box is no answer
    r"\boxed{ \, }": None,
    r"\boxed{\text{ }}": None,
    r"\boxed{\boxed{}}": None,
    r"\boxed{...}": None,
    r"So \boxed{42}. I put it within \boxed{}.": "42",  # the instruction echoed
    r"Put your final answer within \boxed{}. It is \boxed{42}.": "42",
    r"\boxed{42}, as \boxed{\text{your answer}}": "42",
    r"\boxed{42} \boxed{final answer here}": "42",
    r"\boxed{\text{answers}}": r"\text{answers}",
    r"\boxed{\{\}}": r"\{\}",  # the empty set is one
    r"<think>\boxed{1}</think> I put it within \boxed{}.": None,
    r"<think>\boxed{}</think> \boxed{2}": "2",
    r"} } \boxed{8}": "8",
    r"{ \boxed{9}": "9",
    r"\boxed 5": None,
    r"\boxedtext{5} boxed{6} \mbox{7}": None,
    "no box": None,
    "": None,
    "\\boxed{1\n2}": "1\n2",
    r"<think>\boxed{1}</think> so \boxed{2}": "2",
    r"<think>\boxed{1}</think> no box here": None,
    r"<think>a</think>\boxed{1}<think>b</think>\boxed{2}": "2",
    r"<think>a</think>\boxed{1}<think>\boxed{2}": "2",
    r"<think> so \boxed{3}": "3",  # cut off while thinking
    r"\boxed{1</think>2}": None,
}


@pytest.mark.parametrize("text", CASES)
def test_hand_cases(text):
    """The last box of each hand-made text is found."""
    assert last_boxed(text) == CASES[text]


def reference(text: str) -> str | None:
    """From the last possible opening to the first, character by character; quadratic."""
    text = text.split("</think>")[-1]
    neutral, i = set(), 0  # positions whose character is escaped
    while i < len(text):
        opens = any(text[i + 1 :].startswith(word) for word in ("boxed{", "fbox{"))
        if (
            text[i] == "\\"
            and not opens
            and text[i + 1 : i + 2] in ("\\", "{", "}")
            and text[i + 1 : i + 2]
        ):
            if not (
                text[i + 1] == "\\"
                and any(text[i + 2 :].startswith(word) for word in ("boxed{", "fbox{"))
            ):
                neutral.add(i + 1)
                i += 1
        i += 1
    for start in range(len(text) - 1, -1, -1):
        for word in ("\\boxed{", "\\fbox{"):
            if text.startswith(word, start) and start not in neutral:
                depth, begin = 1, start + len(word)
                for at in range(begin, len(text)):
                    depth += {"{": 1, "}": -1}.get(text[at], 0) if at not in neutral else 0
                    if depth == 0:
                        # boxes in boxes that hold nothing are nothing
                        if re.sub(r"\\(?:boxed|fbox)(?![A-Za-z])|[{} ]", "", text[begin:at]):
                            return text[begin:at]
                        break
    return None


PIECES = [
    "\\boxed{",
    "\\fbox{",
    "{",
    "}",
    "}",
    "\\{",
    "\\}",
    "\\\\",
    "\\",
    "a",
    "1",
    "boxed{",
    "<think>",
    "</think>",
]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
@example("\\\\boxed{1}")
@example("\\\\\\boxed{1}")
@example("\\\\\\\\boxed{1}")
def test_equals_the_slow_reference(text):
    """last_boxed equals the slow reference on random texts."""
    assert last_boxed(text) == reference(text)


@pytest.mark.parametrize(
    "text, size, found",
    [
        (lambda n: r"\boxed{" + "{" * n + "1" + "}" * n + "}", 100_000, True),
        (lambda n: r"\boxed{" * n + "1" + "}" * n, 100_000, True),
        (lambda n: r"\boxed{" * n, 140_000, False),
        (lambda n: "{" * n, 1_000_000, False),
        (lambda n: "}" * n, 1_000_000, False),
        (lambda n: "\\" * n, 1_000_000, False),
        (lambda n: r"\boxed" + " " * n, 1_000_000, False),
        (lambda n: r"\\boxed" + " " * n, 1_000_000, False),
        (lambda n: "a" * n + r"\boxed{1}", 1_000_000, True),
        (lambda n: "</think>" * n, 120_000, False),
        (lambda n: (r"\boxed{" + " " * 90 + "x}") * n, 10_000, True),
        (lambda n: r"\boxed{" * n + "." * 90 + "}" * n, 5_000, True),
    ],
    ids=[
        "nested braces",
        "nested boxes",
        "open boxes",
        "open braces",
        "closing braces",
        "backslashes",
        "spaces",
        "spaces after two backslashes",
        "long text",
        "closed thoughts",
        "nearly empty boxes",
        "nested boxes of dots",
    ],
)
def test_time_is_linear(text, size, found):
    """A long text is searched in linear time, whatever it nests."""
    assert (last_boxed(text(size)) is not None) == found
    assert_linear(lambda n: last_boxed(text(n)), size)


def test_imports_no_jax():
    """The module imports no jax."""
    code = "import sys, bridge_jax.grading.extract; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"It is 7, so \boxed{9}. The answer is 8.", "9"),
        ("5 and 6. The answer is 12.", "12"),
        ("#### 1,234", "1,234"),
        ("Final answer: $x+1$.", "x+1"),
        ("so we get $y=2$ and $z=3$", "z=3"),
        ("first 3, then 4/5 of it, hence 0.75", "0.75"),
        ("The answer is $18 per day", "$18"),
        ("no number", None),
        ("<think>41</think> none", None),
        ("", None),
        ("The answer is Monday.", "Monday"),
        ("I have $5 and $6 of $20", "$20"),
        ("so $400 + $60 = $460 for the week", "$460"),
        ("9 + 6 = 15 liters out of the 24 liters", "15"),
        ("It costs $17/$8.50 = 2 of them", "2"),
        ("He pays $200+$60=<<200+60=260>>260", "260"),
        ("He pays $200+$48+$60=$<<200+48+60=308>>308", "$308"),
        ("He pays $200+$60=$260 in all.", "$260"),
        ("He pays $200+$48=$ 248", "248"),
        ("The answer is $200+$60=$260", "$260"),
        ("the answer is 2+3=5.", "5"),
        ("It is $20 - $5 = $15 that is left", "$15"),
        ("It is $12 per hour for $3$ hours", "3"),
        ("It is $5 for a toy and $ is a sign", "$5"),
        ("so \\$5 and \\$6", "$6"),
        ("price of $3x$ and $5", "3x"),
        ("$$x=5$$", "x=5"),
        (r"The answer is 42. I put it within \boxed{}.", "42"),
        (r"The answer is 42. My final answer is \boxed{}.", "42"),
        (r"So \boxed{42}. I put it within \boxed{}.", "42"),
        (r"<think>The answer is 41.</think> I put it within \boxed{}.", None),
    ],
)
def test_lenient_answer(text, answer):
    """For evaluation only: box, then what is stated, then the last formula, then the last
    number.
    """
    assert lenient_answer(text) == answer
