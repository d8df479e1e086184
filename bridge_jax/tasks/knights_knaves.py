"""Knights and knaves: generated logic puzzles with exactly one solution.

Knights always tell the truth, knaves always lie. A puzzle of level n has n people, each with one
statement about one or two of them; all 2^n assignments are tried, and only puzzles with exactly one
consistent assignment are kept. The demonstration tries assignments in order, says why each fails,
and boxes the one that fits. A hash of the question decides whether it is held out, so that no
training question is in a split, for any sizes and seeds. An answer must name every person with the
word knight or knave, in any order and wording.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import re

from bridge_jax.grading.extract import last_boxed
from bridge_jax.grading.outcome import Outcome
from bridge_jax.tasks import PROMPTS, STOPS, check_rows, question_id
from bridge_jax.types import Problem, Task

NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus")
FEWEST = 3  # people; for two there are only 20 puzzles
HELD_OUT = 5  # one question in five is held out
PATIENCE = 20_000  # tries without a new puzzle after which a level counts as exhausted
KINDS = ("knight", "knave")
INTRODUCTION = (
    "On an island every person is either a knight, who always tells the truth, or a knave, who "
    "always lies. You meet {people}. {statements} Who is a knight and who is a knave?"
)
NAMED_KIND = re.compile(r"\b([A-Z][a-z]+)\b(?:\s+is|\s*[:=])?\s*(?:an?\s+)?\b(knight|knave)\b")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings."""

    levels: tuple[int, ...] = (3, 4)  # people in a puzzle, in equal shares
    hard_levels: tuple[int, ...] = (5, 6)  # of the split "hard"; empty: no such split
    train_size: int = 1000
    demo_size: int = 200
    eval_size: int = 100  # of each split
    prompt: str = "boxed"  # as in the other tasks: boxed, plain or user
    seed: int = 0


def make(cfg: Config) -> Task:
    """The task, with the split "held_out" and, if there are hard levels, "hard"."""
    check(cfg)
    train = puzzles(cfg.levels, max(cfg.train_size, cfg.demo_size), f"train/{cfg.seed}", False)
    splits = {"held_out": puzzles(cfg.levels, cfg.eval_size, "held_out", True)}
    if cfg.hard_levels:
        splits["hard"] = puzzles(cfg.hard_levels, cfg.eval_size, "held_out", True)
    prompts = tuple(problem._replace(solution="") for problem in train[: cfg.train_size])
    demos = check_rows(train[: cfg.demo_size], "knights_knaves demos", demos=True)
    return Task(
        "knights_knaves",
        prompts,
        demos,
        splits,
        PROMPTS[cfg.prompt],
        last_boxed,
        lenient,
        compare,
        stop=STOPS.get(cfg.prompt, ()),
    )


def check(cfg: Config) -> None:
    """ValueError for settings that are invalid."""
    for key in ("levels", "hard_levels"):
        if any(not FEWEST <= level <= len(NAMES) for level in getattr(cfg, key)) or (
            key == "levels" and not cfg.levels
        ):
            raise ValueError(
                f"task.{key}={getattr(cfg, key)}; allowed: numbers of people from {FEWEST} to "
                f"{len(NAMES)}" + (", at least one" if key == "levels" else "")
            )
    for key, least in (("train_size", 1), ("eval_size", 1), ("demo_size", 0)):
        if getattr(cfg, key) < least:
            raise ValueError(f"task.{key}={getattr(cfg, key)}; it must be at least {least}")
    if cfg.prompt not in PROMPTS:
        raise ValueError(f"task.prompt={cfg.prompt!r}; allowed: {', '.join(PROMPTS)}")


def chance(key: str, below: int) -> int:
    """A pseudo-random number in [0, below), a hash of the key: the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % below


def puzzles(levels: tuple[int, ...], count: int, key: str, held_out: bool) -> tuple[Problem, ...]:
    """`count` different puzzles, held out or not, of the levels in turn.

    ValueError where fewer exist.
    """
    shares = [len(range(place, count, len(levels))) for place in range(len(levels))]
    of_levels = []
    for level, share in zip(levels, shares):
        found: dict[int, Problem] = {}
        # `last`: the one that found something
        turn = last = 0
        while len(found) < share and turn - last < PATIENCE:
            problem = puzzle(level, f"{key}/{level}/{turn}")
            if problem and (problem.id % HELD_OUT == 0) == held_out and problem.id not in found:
                found[problem.id], last = problem, turn
            turn += 1
        if len(found) < share:
            raise ValueError(
                f"knights_knaves: {share} puzzles with {level} people were asked for, {len(found)} "
                "could be found; lower the size, or take more people"
            )
        of_levels.append(list(found.values()))
    return tuple(of_levels[i % len(levels)][i // len(levels)] for i in range(count))


def puzzle(level: int, key: str) -> Problem | None:
    """The puzzle of this key, or None where it does not have exactly one solution."""
    statements = [statement(speaker, level, f"{key}/{speaker}") for speaker in range(level)]
    fits = [
        kinds
        for kinds in itertools.product((True, False), repeat=level)
        if consistent(kinds, statements)
    ]
    if len(fits) != 1:
        return None
    people = ", ".join(NAMES[: level - 1]) + f" and {NAMES[level - 1]}"
    quotes = " ".join(f'{NAMES[i]} says: "{text}"' for i, (text, _) in enumerate(statements))
    question = INTRODUCTION.format(people=people, statements=quotes)
    return Problem(
        question_id(question), question, answer_of(fits[0]), solution_of(fits[0], statements), level
    )


def statement(speaker: int, level: int, key: str):
    """(text, truth) of a speaker's statement; truth: function of the tuple of who is a knight."""
    others = [i for i in range(level) if i != speaker]
    first = others[chance(f"{key}/first", len(others))]
    kind = chance(f"{key}/kind", 2)
    if chance(f"{key}/form", 3) == 0:
        if chance(f"{key}/self", 2):
            return (
                f"{NAMES[first]} and I are of the same kind.",
                lambda kinds: kinds[first] == kinds[speaker],
            )
        return f"{NAMES[first]} is a {KINDS[kind]}.", lambda kinds: kinds[first] != bool(kind)
    second = [i for i in range(level) if i != first][chance(f"{key}/second", level - 1)]
    joint = chance(f"{key}/joint", 2)
    who = "I am" if second == speaker else f"{NAMES[second]} is"
    text = f"{NAMES[first]} is a {KINDS[kind]} {('and', 'or')[joint]} {who} a {KINDS[1 - kind]}."
    each = lambda kinds: (kinds[first] != bool(kind), kinds[second] == bool(kind))
    return text, lambda kinds: (any if joint else all)(each(kinds))


def consistent(kinds: tuple[bool, ...], statements) -> bool:
    """Whether exactly the knights tell the truth."""
    return all(truth(kinds) == knight for knight, (_, truth) in zip(kinds, statements))


def answer_of(kinds: tuple[bool, ...]) -> str:
    """ "Ann is a knight, Bob is a knave"."""
    return ", ".join(f"{name} is a {KINDS[not knight]}" for name, knight in zip(NAMES, kinds))


def solution_of(fit: tuple[bool, ...], statements) -> str:
    """Tries assignments in order up to the one that fits.

    A wrong one by its first contradiction.
    """
    lines = []
    for kinds in itertools.product((True, False), repeat=len(fit)):
        if kinds == fit:
            break
        wrong = next(i for i, (_, truth) in enumerate(statements) if truth(kinds) != kinds[i])
        why = "false, but a knight said it" if kinds[wrong] else "true, but a knave said it"
        lines.append(f"Suppose {answer_of(kinds)}. Then what {NAMES[wrong]} says is {why}.")
    lines.append(f"Suppose {answer_of(fit)}. Then all knights tell the truth and all knaves lie.")
    return "\n".join(lines) + f"\nThe answer is \\boxed{{{answer_of(fit)}}}."


def lenient(text: str) -> str | None:
    """The last box, otherwise the last line that calls somebody a knight or a knave."""
    if (boxed := last_boxed(text)) is not None:
        return boxed
    lines = [line for line in text.splitlines() if NAMED_KIND.search(line)]
    return lines[-1] if lines else None


def named_kinds(text: str) -> dict[str, str] | None:
    """Name -> kind; None where nobody is named, or somebody is called both."""
    text = re.sub(r"\\text\{([^{}]*)\}|[\\$]", lambda found: found[1] or " ", text)
    found: dict[str, str] = {}
    for name, kind in NAMED_KIND.findall(text):
        if found.setdefault(name, kind) != kind:
            return None
    return found or None


def compare(problem: Problem, answer: str) -> Outcome:
    """Correct if exactly the persons of the puzzle are named, each with the right kind.

    An answer with a negation or an alternative is a parse_error.
    """
    found = named_kinds(answer)
    if found is None or re.search(r"\b(?:not|either|or|nor)\b|n't", answer):
        return Outcome.parse_error
    return Outcome.correct if found == _gold(problem.answer) else Outcome.wrong


@functools.lru_cache(maxsize=4096)
def _gold(answer: str) -> dict[str, str] | None:
    return named_kinds(answer)
