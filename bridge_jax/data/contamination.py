"""Contamination check: the overlap of training problems with held-out ones."""

from __future__ import annotations

import collections
import re
import unicodedata
from collections.abc import Mapping, Sequence

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


class HeldOut:
    """Problems of benchmarks, against which problems of a stream are checked one by one.

    A problem is contaminated if it equals a held-out one, or shares an n-gram with one. An n-gram
    that more than COMMON different held-out problems have is common phrasing ("where m and n are
    relatively prime positive integers ...") and shows nothing. `overlap` counts phrasing in the
    training problems instead, which a stream does not know yet.
    """

    COMMON = 2

    def __init__(self, benchmarks: Mapping[str, Sequence[Problem]], n: int = NGRAM):
        self._n = n
        # folded text -> the first benchmark that has it: copies in others are one problem
        self._texts: dict[str, str] = {}
        for name, problems in benchmarks.items():
            for problem in problems:
                self._texts.setdefault(text_key(problem.question).lower(), name)
        found: dict[int, list[str]] = {}
        for text, name in self._texts.items():
            # hashes, since 100,000 tuples of 13 words need much memory
            for gram in {hash(gram) for gram in ngrams(text, n)}:
                found.setdefault(gram, []).append(name)
        self._grams = {gram: names[0] for gram, names in found.items() if len(names) <= self.COMMON}

    def find(self, question: str) -> str:
        """The benchmark that a problem is contaminated by, "" for none."""
        if not self._texts:
            return ""
        if name := self._texts.get(text_key(question).lower()):
            return name
        shared = {self._grams.get(hash(gram)) for gram in ngrams(question, self._n)} - {None}
        return min(shared, default="")
