"""Made-up answers to grade, for measurements without a data set."""

from __future__ import annotations

import random


def made_up(count: int) -> list[tuple[str, str]]:
    """(gold, text) of answers in about MATH's proportions.

    Two thirds are whole numbers; the others are fractions, roots and expressions.
    """
    draw = random.Random(0)
    number = lambda: draw.randint(2, 99)
    kinds = (
        (66, lambda: f"{number()}"),
        (14, lambda: rf"\frac{{{number()}}}{{{number()}}}"),
        (6, lambda: rf"{number()}\sqrt{{{number()}}}"),
        (5, lambda: f"({number()},{number()})"),
        (4, lambda: f"{number()}.{number()}"),
        (3, lambda: rf"\text{{{draw.choice('ABCDE')}}}"),
        (2, lambda: f"{number()}x^2+{number()}"),
    )
    golds = [
        kind()
        for kind in draw.choices(
            [kind for _, kind in kinds], [share for share, _ in kinds], k=count
        )
    ]
    return [
        (
            gold,
            f"Working it out step by step gives {number()} and then more. "
            f"So it is \\boxed{{{gold}}}.",
        )
        for gold in golds
    ]
