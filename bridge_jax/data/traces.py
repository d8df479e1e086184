"""Demonstrations from a file of expert traces, matched to the problems of a task by exact text."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bridge_jax.data.datasets import jsonl, logger
from bridge_jax.types import Problem

THINK, THINK_END = "<think>", "</think>"
# a byte-order mark and zero-width spaces
INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u2060"))
# how a row with a solution was used; stopped: it contains a stop string
ROW_STATES = (
    "used",
    "repeated",
    "wrong",
    "unfinished",
    "too_long",
    "stopped",
    "beyond_demo_size",
    "unmatched",
    "incomplete",
)
# those of them that are a choice, and no loss
INTENDED = ("used", "repeated", "beyond_demo_size")
# a larger share of lost rows is refused
MOST_DROPPED = 0.2


def deduplicate(problems: Sequence[Problem], where: str) -> tuple[Problem, ...]:
    """The problems without later ones of the same id; a warning counts those left out.

    Ids are hashes of the text: an equal id means the same problem or, once in two billion pairs,
    another one.
    """
    first: dict[int, Problem] = {}
    for problem in problems:
        first.setdefault(problem.id, problem)
    kept = tuple(first.values())
    others = [problem.id for problem in problems if problem.question != first[problem.id].question]
    if doubled := len(problems) - len(kept) - len(others):
        logger.warning(
            "%s: %d of %d problems left out, they are repeated", where, doubled, len(problems)
        )
    if others:
        logger.warning(
            "%s: %d of %d problems left out, their ids %s are those of other problems",
            where,
            len(others),
            len(problems),
            others[:5],
        )
    return kept


def text_key(text: str) -> str:
    """A normal form of a text: Unicode NFC, white space folded, invisible characters removed.

    Case, signs and braces still distinguish texts. NFC rather than NFKC, which turns x² into x2.
    """
    return " ".join(unicodedata.normalize("NFC", text.translate(INVISIBLE)).split())


def read_traces(path: str) -> dict[str, list[str]]:
    """Solutions of a JSONL file {"problem", "solution", "answer"} by text_key of the problem."""
    found: dict[str, list[str]] = {}
    for number, row in enumerate(jsonl(Path(path).expanduser()), 1):
        for field in ("problem", "solution", "answer"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise ValueError(
                    f"{path}, row {number}: {field} is {row.get(field)!r}; it must be a text that "
                    "is not empty"
                )
        found.setdefault(text_key(row["problem"]), []).append(row["solution"])
    return found


def unfinished(text: str) -> bool:
    """Whether a text ends inside an open <think>, so that it was cut off during its reasoning."""
    return text.rfind(THINK) > text.rfind(THINK_END)


class Selection(NamedTuple):
    """Demonstrations: each problem with its first correct solution."""

    demos: tuple[Problem, ...]
    others: dict[int, tuple[str, ...]]  # further correct solutions by the id of the problem
    counts: dict[str, int]  # of `count_rows`


def right_solutions(
    problems: Sequence[Problem], given: Mapping[str, Sequence[str]], right: Callable, where: str
) -> Selection:
    """The problems that have a solution with the right answer; a warning counts the others.

    given: text_key of a problem -> solutions. right: list of Problem, each with one solution ->
    list of bool, whether its answer is correct.
    """
    different = {p.id: tuple(dict.fromkeys(given.get(text_key(p.question), ()))) for p in problems}
    finished = [
        problem._replace(solution=solution)
        for problem in problems
        for solution in different[problem.id]
        if not unfinished(solution)
    ]
    accepted: dict[int, tuple[str, ...]] = {}
    for candidate, good in zip(finished, right(finished), strict=True):
        if good:
            accepted[candidate.id] = (*accepted.get(candidate.id, ()), candidate.solution)
    demos = tuple(p._replace(solution=accepted[p.id][0]) for p in problems if p.id in accepted)
    if len(demos) < len(problems):
        without = sum(not solutions for solutions in different.values())
        read = len({candidate.id for candidate in finished})
        logger.warning(
            "%s: %d demonstrations of %d problems; left out: %d without a solution, %d whose own "
            "answer is not correct, %d whose solution ends inside an open %s",
            where,
            len(demos),
            len(problems),
            without,
            read - len(demos),
            len(problems) - without - read,
            THINK,
        )
    asked = {text_key(problem.question) for problem in problems}
    if strange := [text for text in given if text not in asked]:
        logger.warning(
            "%s: %d solutions match no problem of the task exactly; the first: %.200r",
            where,
            sum(len(given[text]) for text in strange),
            strange[0],
        )
    others = {id: solutions[1:] for id, solutions in accepted.items() if solutions[1:]}
    return Selection(demos, others, count_rows(problems, given, accepted))


def count_rows(
    problems: Sequence[Problem],
    given: Mapping[str, Sequence[str]],
    accepted: Mapping[int, Sequence[str]],
) -> dict[str, int]:
    """Numbers of problems, of problems with a solution, of rows, and of rows in each of ROW_STATES.

    Every row has exactly one state. accepted: correct solutions by the id of the problem. The state
    "repeated" covers copies of an earlier row and further correct solutions of its problem.
    """
    counts = dict.fromkeys(("problems", "matched", "rows", *ROW_STATES), 0)
    counts["problems"] = len(problems)
    counts["matched"] = sum(text_key(problem.question) in given for problem in problems)
    # problems whose texts differ in white space alone share their rows
    by_text: dict[str, list[int]] = {}
    for problem in problems:
        by_text.setdefault(text_key(problem.question), []).append(problem.id)
    for text, solutions in given.items():
        counts["rows"] += len(solutions)
        if text not in by_text:
            counts["unmatched"] += len(solutions)
            continue
        different = set(solutions)
        of_each = [accepted[id] for id in by_text[text] if id in accepted]
        used = {right[0] for right in of_each}
        good = {solution for right in of_each for solution in right}
        cut = sum(map(unfinished, different))
        counts["used"] += len(used)
        counts["repeated"] += len(solutions) - len(different) + len(good) - len(used)
        counts["unfinished"] += cut
        counts["wrong"] += len(different) - len(good) - cut
    return counts


def update_counts(
    counts: Mapping[str, int], dropped: Sequence[str], rejected: Sequence[str]
) -> dict[str, int]:
    """The counts after demonstrations were tokenised; the arguments are keys of REJECTION_REASONS.

    dropped: one reason for each problem that lost its demonstration. rejected: one reason for each
    correct solution that did not fit, even where another one of its problem did.
    """
    if not counts:
        return {}
    states = {
        "prompt": "too_long",
        "trace": "too_long",
        "reasoning": "unfinished",
        "stop": "stopped",
    }
    found = dict(counts)
    prompts = [why for why in dropped if why == "prompt"]
    # not below 0: problems that share their rows are dropped one by one
    found["used"] = max(0, found["used"] - len(dropped))
    # all but the first one were counted as repeated
    found["repeated"] -= len(rejected) - (len(dropped) - len(prompts))
    for why in (*prompts, *rejected):
        found[states[why]] += 1
    return found


def check_dropped(counts: Mapping[str, int], where: str) -> None:
    """ValueError where more than MOST_DROPPED of the rows cannot be used."""
    lost = {name: counts[name] for name in ROW_STATES if name not in INTENDED and counts[name]}
    if sum(lost.values()) > MOST_DROPPED * counts["rows"]:
        reasons = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in lost.items())
        raise ValueError(
            f"{where}: {sum(lost.values())} of {counts['rows']} rows cannot be used ({reasons}; "
            f"docs/data.md says what that is), more than {MOST_DROPPED:.0%}; repair them, or take "
            "the others with task.allow_dropped=True"
        )


def summary(counts: Mapping[str, int]) -> str:
    """The counts in one line."""
    states = ", ".join(f"{counts[name]} {name.replace('_', ' ')}" for name in ROW_STATES)
    return (
        f"{counts['rows']} solutions for {counts['matched']} of {counts['problems']} problems: "
        f"{states}"
    )
