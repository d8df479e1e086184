"""Contamination check: the overlap of training problems with held-out ones.

A training problem is a copy of a held-out one if they share an n-gram of 13 words and if at least
60% of the held-out problem's words are in the training problem in their order (the longest common
subsequence). The n-gram finds candidates. Alone it also finds phrases, such as "where m and n are
relatively prime positive integers" and the code of drawings: docs/data.md has the figures. The rule
and its two numbers are those of Qwen2.5-Math (arXiv 2409.12122). Left out: translations and
paraphrases, which share no n-gram.
"""

from __future__ import annotations

import collections
import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence

from bridge_jax.data.traces import text_key
from bridge_jax.types import Problem

NGRAM = 13  # words
# share of a held-out problem's words, in their order, that a copy of it has
COPIED = 0.6
RULE = {"words_in_a_row": NGRAM, "share_of_words": COPIED}
# code of a drawing, of which much is the same for every drawing
DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL | re.IGNORECASE)
# a number, a character of a script without spaces between words, or a run of other letters
CHARACTER = r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
WORD = re.compile(rf"[0-9]+|(?P<character>{CHARACTER})|(?:(?!{CHARACTER})[^\W\d_])+")
# n-grams in a larger share of the training problems are common phrasing, not evidence of a copy
PHRASING = 0.05


def normalized(text: str) -> str:
    """A text without case and white space; compatible characters are equal."""
    return unicodedata.normalize("NFKC", text_key(text)).lower()


def words(text: str) -> list[str]:
    """The words of a text without its drawings."""
    return [found[0] for found in WORD.finditer(normalized(DRAWING.sub(" ", text)))]


def copied_share(held_out: Sequence[str], training: Sequence[str]) -> float:
    """Length of the longest common subsequence of two lists of words / length of the first.

    1 where the first is empty.
    """
    lengths = [0] * (len(training) + 1)
    for word in held_out:
        diagonal = 0
        for place, other in enumerate(training, 1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1] / len(held_out) if held_out else 1.0


def is_copy(training: str, held_out: str) -> bool:
    """Whether a problem has most of the words of a held-out one, with which it shares an n-gram."""
    return copied_share(words(held_out), words(training)) >= COPIED


def ngrams(text: str, n: int = NGRAM) -> set[tuple[str, ...]]:
    """All n-grams of words, without case, punctuation and spacing; compatible characters are equal.

    Punctuation is kept where it carries the meaning: in an n-gram of formulas alone, and in a text
    of fewer than n words, which is one n-gram. A Chinese or Japanese character counts as a word. x²
    equals x2.
    """
    text = normalized(text)
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
    """Pairs (training id, benchmark id), one for each training problem that copies another one."""
    known: dict[tuple[str, ...], list[Problem]] = {}
    for problem in benchmark:
        for gram in ngrams(problem.question, n):
            known.setdefault(gram, []).append(problem)
    shared = [(one, {gram for gram in ngrams(one.question, n) if gram in known}) for one in train]
    counts = collections.Counter(gram for _, found in shared for gram in found)
    pairs = []
    for one, found in shared:
        telling = sorted(gram for gram in found if counts[gram] <= max(10, PHRASING * len(train)))
        candidates = dict.fromkeys(problem for gram in telling for problem in known[gram])
        copies = (held for held in candidates if is_copy(one.question, held.question))
        pairs += [(one.id, held.id) for held in itertools.islice(copies, 1)]
    return pairs


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
            f"{name}: {len(shared)} of {len(train)} training problems share {NGRAM} words in a "
            f"row, and {COPIED:.0%} of all, with one of its {len(problems)}"
            + (f" (ids {examples}{', ...' if len(shared) > 5 else ''})" if shared else "")
        )
    return "\n".join(lines)


class HeldOut:
    """Problems of benchmarks, against which problems of a stream are checked one by one.

    A problem is contaminated if it equals a held-out one, or is a copy of one. An n-gram that more
    than COMMON different held-out problems have is common phrasing and finds no candidates.
    `overlap` counts phrasing in the training problems instead, which a stream does not know yet.
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
        for text in self._texts:
            # hashes, since 100,000 tuples of 13 words need much memory
            for gram in {hash(gram) for gram in ngrams(text, n)}:
                found.setdefault(gram, []).append(text)
        self._grams = {gram: texts for gram, texts in found.items() if len(texts) <= self.COMMON}

    def find(self, question: str) -> str:
        """The benchmark that a problem is contaminated by, "" for none."""
        if not self._texts:
            return ""
        if name := self._texts.get(text_key(question).lower()):
            return name
        grams = ngrams(question, self._n)
        candidates = {text for gram in grams for text in self._grams.get(hash(gram), ())}
        copied = (self._texts[text] for text in candidates if is_copy(question, text))
        return min(copied, default="")
