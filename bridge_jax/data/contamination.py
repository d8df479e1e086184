"""Contamination check: the overlap of training problems with held-out ones."""

from __future__ import annotations

import collections
import re
import unicodedata
from collections.abc import Sequence

from bridge_jax.data.traces import text_key
from bridge_jax.types import Problem

NGRAM = 13  # words
# a number, a character of a script without spaces between words, or a run of other letters
CHARACTER = r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
WORD = re.compile(rf"[0-9]+|(?P<character>{CHARACTER})|(?:(?!{CHARACTER})[^\W\d_])+")
# n-grams in a larger share of the training problems are common phrasing, not evidence of a copy
PHRASING = 0.05


def ngrams(text: str, n: int = NGRAM) -> set[tuple[str, ...]]:
    """All n-grams of words, without case, punctuation and spacing; compatible characters are equal.

    Punctuation is kept where it carries the meaning: in an n-gram of formulas alone, and in a text
    of fewer than n words, which is one n-gram. A Chinese or Japanese character counts as a word. x²
    equals x2.
    """
    text = unicodedata.normalize("NFKC", text_key(text)).lower()
    found = list(WORD.finditer(text))
    if len(found) < n:
        return {tuple(text.split())}
    prose = [len(word[0]) > 1 and word[0].isalpha() or word["character"] for word in found]
    runs = set()
    for i in range(len(found) - n + 1):
        if any(prose[i : i + n]):
            runs.add(tuple(word[0] for word in found[i : i + n]))
        else:
            formulas = text[found[i].start() : found[i + n - 1].end()]
            runs.add(("".join(formulas.split()),))
    return runs


def overlap(
    train: Sequence[Problem], benchmark: Sequence[Problem], n: int = NGRAM
) -> list[tuple[int, int]]:
    """Pairs (training id, benchmark id), one for each training problem that shares an n-gram."""
    known = {gram: problem.id for problem in benchmark for gram in ngrams(problem.question, n)}
    shared = [
        (problem.id, {gram for gram in ngrams(problem.question, n) if gram in known})
        for problem in train
    ]
    counts = collections.Counter(gram for _, found in shared for gram in found)
    telling = lambda found: sorted(
        gram for gram in found if counts[gram] <= max(10, PHRASING * len(train))
    )
    return [(id, known[gram]) for id, found in shared for gram in telling(found)[:1]]


def overlap_report(train: Sequence[Problem], splits: dict[str, Sequence[Problem]]) -> str:
    """A line for each held-out split; ValueError where a training problem equals a held-out one."""
    folded = lambda problem: text_key(problem.question).lower()
    lines, asked = [], {folded(problem) for problem in train}
    for name, problems in splits.items():
        same = [problem.id for problem in problems if folded(problem) in asked]
        if same:
            raise ValueError(
                f"{len(same)} problems of {name} are also in the training set (ids "
                f"{same[:5]}); remove them from one of the two"
            )
        shared = overlap(train, problems)
        examples = ", ".join(f"{mine}~{theirs}" for mine, theirs in shared[:5])
        lines.append(
            f"{name}: {len(shared)} of {len(train)} training problems share {NGRAM} words in a row "
            f"with one of its {len(problems)}"
            + (f" (ids {examples}{', ...' if len(shared) > 5 else ''})" if shared else "")
        )
    return "\n".join(lines)
