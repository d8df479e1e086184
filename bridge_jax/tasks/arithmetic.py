"""Generated sums and differences, with step-by-step solutions as demonstrations.

    chat     What is 12 + 7 - 5?   ->   12 + 7 = 19 / 19 - 5 = 14 / The answer is \\boxed{14}.
                                        (one line each)
    compact  12+7-5=               ->   12+7=19;19-5=14;#14    (for models of characters: ALPHABET)

A level is a row of LEVELS; all terms have exactly its number of digits. A hash of the question
decides whether it is held out, so that no question of `train` or `demos` is in a split, for any
sizes and seeds. `seed` changes train, demos and the corruption, but not the splits, so that runs
with different seeds are evaluated on the same questions. A larger size keeps all questions of a
smaller one. Demos are drawn from the same list as train, so that they are questions of train while
demo_size <= train_size. Small levels have few questions: where a list is exhausted, it is shorter,
with a warning. Problems of `train` have no solution: demo_size alone sets the number of demos.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import logging
import re
from collections.abc import Iterator

from bridge_jax.grading.extract import last_boxed
from bridge_jax.grading.outcome import Outcome
from bridge_jax.tasks import boxed_messages, check_rows, question_id
from bridge_jax.types import Problem, Task

# -> (digits, terms)
LEVELS = {
    1: (1, 2),
    2: (2, 2),
    3: (1, 3),
    4: (2, 3),
    5: (3, 2),
    6: (3, 3),
    7: (2, 5),
    8: (4, 4),
    9: (1, 5),
}
STYLES = ("chat", "compact")
ALPHABET = "0123456789+-=;#"  # of the compact style
HELD_OUT = 5  # one question in five is held out
SLIPS = (1, -1, 2, -2, 10, -10)  # errors of a corrupted step
SHOTS = ((3, 4), (52, -21, 6))  # terms of the worked examples, which no list contains
NUMBER = re.compile(r"(?<![0-9.,])-?[0-9]+(?:,[0-9]{3})*(?![0-9])")
ANSWER = re.compile(r"[+-]?(?:[0-9]{1,30}|[0-9]{1,3}(?:,[0-9]{3}){1,9})")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings. Sizes are numbers of questions, divided among the levels of the list."""

    levels: tuple[int, ...] = (2, 3)
    # share of each level in every list, any positive scale; empty: equal
    weights: tuple[float, ...] = ()
    # levels of the split "hard", in equal shares; empty: no such split
    hard_levels: tuple[int, ...] = ()
    train_size: int = 1000  # RL prompts
    demo_size: int = 100  # expert demonstrations; 0: none
    eval_size: int = 100  # of each split
    dev_size: int = (
        0  # of the split "dev", held out besides "held_out", for tuning; 0: no such split
    )
    # share of demonstrations with a wrong step and so a wrong answer, in [0, 1]
    corrupt: float = 0.0
    # share of demonstrations that state the answer without the steps, in [0, 1]
    direct: float = 0.0
    negative: bool = False  # whether a partial result may be below 0
    style: str = "compact"
    system: str = ""  # system message of the chat style, "" for none
    shots: int = 0  # worked examples shown as earlier turns of the chat style, at most len(SHOTS)
    seed: int = 0


def make(cfg: Config) -> Task:
    """The task, with the split "held_out" and, if asked for, "dev" and "hard"."""
    check(cfg)
    shots = tuple(example(terms) for terms in SHOTS[: cfg.shots])
    # id -> question over the whole task. Left out: the later of two questions with the same id, and
    # the worked examples.
    named = {question_id(question): "" for question, _ in shots}
    weights = cfg.weights or (1.0,) * len(cfg.levels)
    rows = functools.partial(build_problems, cfg)

    def split(name, levels, weights, size=cfg.eval_size):
        shares = share_out(size, weights)
        return rows(
            name,
            [
                (level, terms)
                for level, count in zip(levels, shares)
                for terms in draw(cfg, level, count, True, named)
            ],
        )

    train_shares, demo_shares = (
        share_out(cfg.train_size, weights),
        share_out(cfg.demo_size, weights),
    )
    pools = [
        draw(cfg, level, max(counts), False, named)
        for level, *counts in zip(cfg.levels, train_shares, demo_shares)
    ]
    train, demos = (
        [
            (level, terms)
            for level, pool, count in zip(cfg.levels, pools, shares)
            for terms in pool[:count]
        ]
        for shares in (train_shares, demo_shares)
    )
    splits = {"held_out": split("held_out", cfg.levels, weights)}
    # drawn after held_out, which is the same with or without it
    if cfg.dev_size:
        splits["dev"] = split("dev", cfg.levels, weights, cfg.dev_size)
    if cfg.hard_levels:
        splits["hard"] = split("hard", cfg.hard_levels, (1.0,) * len(cfg.hard_levels))
    return Task(
        name="arithmetic",
        train=rows("train", train),
        demos=rows("demos", demos) if cfg.demo_size else (),
        splits=splits,
        extract=last_boxed if cfg.style == "chat" else after_mark,
        lenient=last_number,
        compare=compare,
        messages=functools.partial(boxed_messages, system=cfg.system, shots=shots)
        if cfg.style == "chat"
        else plain_message,
    )


def check(cfg: Config) -> None:
    """ValueError for settings that are invalid."""
    for key in ("levels", "hard_levels"):
        unknown = [level for level in getattr(cfg, key) if level not in LEVELS]
        if unknown or len(set(getattr(cfg, key))) < len(getattr(cfg, key)):
            table = ", ".join(
                f"{level} ({digits} digits, {terms} terms)"
                for level, (digits, terms) in LEVELS.items()
            )
            raise ValueError(
                f"task.{key}={getattr(cfg, key)}; allowed: distinct levels out of {table}"
            )
    if not cfg.levels:
        raise ValueError(
            f"task.levels is empty; name at least one of {', '.join(map(str, LEVELS))}"
        )
    if cfg.weights and (len(cfg.weights) != len(cfg.levels) or min(cfg.weights) <= 0):
        raise ValueError(
            f"task.weights={cfg.weights}; allowed: one positive number for each of the levels "
            f"{cfg.levels}, or nothing for equal shares"
        )
    for key, least in (("train_size", 1), ("eval_size", 1), ("demo_size", 0), ("dev_size", 0)):
        if getattr(cfg, key) < least:
            raise ValueError(
                f"task.{key}={getattr(cfg, key)}; it must be at least {least}, or a list would be "
                "empty"
            )
    for key in ("corrupt", "direct"):
        if not 0 <= getattr(cfg, key) <= 1:
            raise ValueError(
                f"task.{key}={getattr(cfg, key)}; it is a share of the demonstrations, allowed: 0 "
                "to 1"
            )
    if cfg.style not in STYLES:
        raise ValueError(f"task.style={cfg.style!r}; allowed: {', '.join(STYLES)}")
    if not 0 <= cfg.shots <= len(SHOTS):
        raise ValueError(f"task.shots={cfg.shots}; allowed: 0 to {len(SHOTS)}")
    if (cfg.system or cfg.shots) and cfg.style == "compact":
        raise ValueError(
            f"task.system={cfg.system!r} and task.shots={cfg.shots} would never be read: the "
            "compact style has no other messages. Empty them, or take task.style='chat'"
        )


def share_out(size: int, weights: tuple[float, ...]) -> list[int]:
    """Divides `size` by the weights; no share shrinks when size grows."""
    counts, total = [0] * len(weights), sum(weights)
    for given in range(1, size + 1):
        counts[max(range(len(weights)), key=lambda i: given * weights[i] / total - counts[i])] += 1
    return counts


def chance(key: str) -> int:
    """A pseudo-random 64-bit number, a hash of the key: the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


@functools.lru_cache(maxsize=16)
def whole_order(size: int, key: str) -> tuple[int, ...]:
    """All numbers of range(size) in the order of their hashes; a task that is made again has it."""
    return tuple(sorted(range(size), key=lambda number: chance(f"{key}/{number}")))


def shuffled(size: int, key: str) -> Iterator[int]:
    """Distinct numbers of range(size) in an order given by the key; all of them up to size 2^16."""
    if size <= 2**16:
        yield from whole_order(size, key)
        return
    seen: set[int] = set()
    for turn in range(4 * size):
        number = chance(f"{key}/{turn}") % size
        if number not in seen:
            seen.add(number)
            yield number


def terms_at(level: int, number: int) -> tuple[int, ...]:
    """Signed terms of the level's expression with this number, such as (12, 7, -5)."""
    digits, count = LEVELS[level]
    low, choices = 10 ** (digits - 1), 9 * 10 ** (digits - 1)
    number, first = divmod(number, choices)
    terms = [low + first]
    for _ in range(count - 1):
        number, (minus, rest) = number // (2 * choices), divmod(number % (2 * choices), choices)
        terms.append(-(low + rest) if minus else low + rest)
    return tuple(terms)


def draw(
    cfg: Config, level: int, count: int, held_out: bool, named: dict[int, str]
) -> list[tuple[int, ...]]:
    """`count` expressions of a level, held out or not; fewer, with a warning, where no more exist.

    named: id -> question of the task; the new questions are added to it.
    """
    digits, terms_count = LEVELS[level]
    size = (9 * 10 ** (digits - 1)) ** terms_count * 2 ** (terms_count - 1)
    found: list[tuple[int, ...]] = []
    for number in shuffled(size, f"held_out/{level}" if held_out else f"{cfg.seed}/{level}"):
        if len(found) == count:
            break
        terms = terms_at(level, number)
        question = question_of(terms, cfg.style)
        id = question_id(question)
        fits = cfg.negative or min(itertools.accumulate(terms)) >= 0
        if fits and is_held_out(id) == held_out and named.setdefault(id, question) == question:
            found.append(terms)
    if len(found) < count:
        logging.getLogger(__name__).warning(
            "arithmetic, level %d: %d %s questions asked, %d exist; the list is that much shorter",
            level,
            count,
            "held-out" if held_out else "training",
            len(found),
        )
    return found


def is_held_out(id: int) -> bool:
    """Whether the question of this id belongs to the splits rather than to train and demos."""
    return id % HELD_OUT == 0


def build_problems(
    cfg: Config, name: str, expressions: list[tuple[int, tuple[int, ...]]]
) -> tuple[Problem, ...]:
    """Checked Problems from (level, terms), sorted by id, which mixes the levels."""
    if not expressions:
        raise ValueError(
            f"arithmetic: {name} would be empty; raise its size or add levels "
            f"(task.levels={cfg.levels}, task.hard_levels={cfg.hard_levels})"
        )
    rows = []
    for level, terms in expressions:
        question = question_of(terms, cfg.style)
        solution = "" if name == "train" else solution_of(terms, cfg.style)
        rows.append(
            (Problem(question_id(question), question, str(sum(terms)), solution, level), terms)
        )
    if name == "demos":
        rows.sort(key=lambda row: chance(f"{cfg.seed}/corrupt/{row[0].id}"))
        wrong = int(cfg.corrupt * len(rows) + 0.5)
        rows[:wrong] = [
            (problem._replace(solution=corrupted(cfg, terms, problem.id)), terms)
            for problem, terms in rows[:wrong]
        ]
        rows.sort(key=lambda row: chance(f"{cfg.seed}/direct/{row[0].id}"))
        short = int(cfg.direct * len(rows) + 0.5)
        rows[:short] = [
            (problem._replace(solution=without_steps(problem.solution, cfg.style)), terms)
            for problem, terms in rows[:short]
        ]
    problems = sorted((problem for problem, _ in rows), key=lambda problem: problem.id)
    return check_rows(problems, f"arithmetic {name}", demos=name != "train")


def question_of(terms: tuple[int, ...], style: str) -> str:
    """The expression as a question of the style."""
    text = str(terms[0]) + "".join(f" {'-' if term < 0 else '+'} {abs(term)}" for term in terms[1:])
    return f"What is {text}?" if style == "chat" else text.replace(" ", "") + "="


def solution_of(terms: tuple[int, ...], style: str, wrong_step: int = 0, slip: int = 0) -> str:
    """The sum computed from left to right.

    The result of step `wrong_step` (from 1; 0: none) and all later ones are off by `slip`.
    """
    total, steps = terms[0], []
    for step, term in enumerate(terms[1:], 1):
        result = total + term + (slip if step == wrong_step else 0)
        steps.append(f"{total} {'-' if term < 0 else '+'} {abs(term)} = {result}")
        total = result
    if style == "chat":
        return "\n".join(steps) + f"\nThe answer is \\boxed{{{total}}}."
    return ";".join(steps).replace(" ", "") + f";#{total}"


def without_steps(solution: str, style: str) -> str:
    """The last part of a solution, its answer, correct or not."""
    return solution.rpartition("\n" if style == "chat" else ";")[2]


def example(terms: tuple[int, ...]) -> tuple[str, str]:
    """A worked example: question and solution of the chat style."""
    return question_of(terms, "chat"), solution_of(terms, "chat")


def corrupted(cfg: Config, terms: tuple[int, ...], id: int) -> str:
    """A solution with one wrong step; partial results stay at 0 or above unless cfg.negative."""
    key = f"{cfg.seed}/slip/{id}"
    wrong_step = 1 + chance(key + "/step") % (len(terms) - 1)
    lowest = min(list(itertools.accumulate(terms))[wrong_step:])
    slips = [slip for slip in SLIPS if cfg.negative or lowest + slip >= 0]
    return solution_of(terms, cfg.style, wrong_step, slips[chance(key + "/size") % len(slips)])


def plain_message(problem: Problem) -> list[dict[str, str]]:
    """The question alone, as the compact style asks it."""
    return [{"role": "user", "content": problem.question}]


def after_mark(text: str) -> str | None:
    """The text after the last '#', the answer of the compact style."""
    _, mark, answer = text.rpartition("#")
    return answer if mark else None


def last_number(text: str) -> str | None:
    """The last whole number of the text: the lenient reading of both styles."""
    found = NUMBER.findall(text)
    return found[-1] if found else None


def compare(problem: Problem, answer: str) -> Outcome:
    """Exact comparison of two integers.

    The answer may carry spaces, $, a +, a final point and thousands commas.
    """
    answer = answer.strip(" \t\n$").removesuffix(".").rstrip(" \t\n$")
    if not ANSWER.fullmatch(answer):
        return Outcome.parse_error
    return Outcome.correct if int(answer.replace(",", "")) == int(problem.answer) else Outcome.wrong
