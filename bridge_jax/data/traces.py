"""Demonstrations read from a file and matched to the problems of a task."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bridge_jax.data.datasets import jsonl, logger
from bridge_jax.types import Problem

THINK, THINK_END = "<think>", "</think>"
# a byte-order mark and spaces of no width
INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u2060"))
# what can become of a row with a solution; stopped: it holds a stop string
FATES = (
    "used",
    "repeated",
    "wrong",
    "unfinished",
    "too_long",
    "stopped",
    "beyond_demo_size",
    "unmatched",
)


def once(problems: Sequence[Problem], where: str) -> tuple[Problem, ...]:
    """The problems without later ones of the same id; what is left out is counted, by why.

    Ids come from the text: the same id is the same problem, or, once in two billion pairs, another
    one.
    """
    first: dict[int, Problem] = {}
    for problem in problems:
        first.setdefault(problem.id, problem)
    kept = tuple(first.values())
    others = [problem.id for problem in problems if problem.question != first[problem.id].question]
    if doubled := len(problems) - len(kept) - len(others):
        logger.warning(
            "%s: %d of %d problems left out, they stand there twice", where, doubled, len(problems)
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


def exact(text: str) -> str:
    """A key that is equal for equal texts: Unicode composed (NFC), white space folded, invisible
    marks left out.

    Everything else tells problems apart: case, signs, braces. NFC and not NFKC, which makes x² the
    text x2.
    """
    return " ".join(unicodedata.normalize("NFC", text.translate(INVISIBLE)).split())


def traces(path: str) -> dict[str, list[str]]:
    """Expert solutions of a JSONL file {"problem", "solution", "answer"} by the exact text of their
    problem, in order.
    """
    found: dict[str, list[str]] = {}
    for number, row in enumerate(jsonl(Path(path).expanduser()), 1):
        for field in ("problem", "solution", "answer"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise ValueError(
                    f"{path}, row {number}: {field} is {row.get(field)!r}; it must be a text that "
                    "is not empty"
                )
        found.setdefault(exact(row["problem"]), []).append(row["solution"])
    return found


def unfinished(text: str) -> bool:
    """Whether a text ends inside an open <think>: it was cut before it said anything outside of its
    reasoning.
    """
    return text.rfind(THINK) > text.rfind(THINK_END)


class Chosen(NamedTuple):
    """Demonstrations: of each problem its first right solution."""

    demos: tuple[Problem, ...]
    others: dict[int, tuple[str, ...]]  # further right solutions by the id of the problem
    counts: dict[str, int]  # of `count_rows`


def right_solutions(
    problems: Sequence[Problem], given: Mapping[str, Sequence[str]], right: Callable, where: str
) -> Chosen:
    """The problems with a solution that gives their own answer.

    A warning counts the others, by why.

    given: solutions by the exact text of their problem. right(list of Problem, each with one
    solution) -> list of bool.
    """
    different = {p.id: tuple(dict.fromkeys(given.get(exact(p.question), ()))) for p in problems}
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
    asked = {exact(problem.question) for problem in problems}
    if strange := [text for text in given if text not in asked]:
        logger.warning(
            "%s: the problems of %d solutions are not asked, word for word; the first: %.200r",
            where,
            sum(len(given[text]) for text in strange),
            strange[0],
        )
    others = {id: solutions[1:] for id, solutions in accepted.items() if solutions[1:]}
    return Chosen(demos, others, count_rows(problems, given, accepted))


def count_rows(
    problems: Sequence[Problem],
    given: Mapping[str, Sequence[str]],
    accepted: Mapping[int, Sequence[str]],
) -> dict[str, int]:
    """How many rows there are, for how many of the problems, and how many met each of FATES, which
    add up to the rows.

    accepted: the right solutions by the id of the problem. repeated: a row that says the same as an
    earlier one, or a further right solution of its problem.
    """
    counts = dict.fromkeys(("problems", "matched", "rows", *FATES), 0)
    counts["problems"] = len(problems)
    counts["matched"] = sum(exact(problem.question) in given for problem in problems)
    # problems whose texts differ in white space alone share their rows
    by_text: dict[str, list[int]] = {}
    for problem in problems:
        by_text.setdefault(exact(problem.question), []).append(problem.id)
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


def recount(
    counts: Mapping[str, int], dropped: Sequence[str], refused: Sequence[str]
) -> dict[str, int]:
    """The counts once demonstrations are tokenised.

    dropped: of each problem that has no demonstration then, why; refused: of each right solution
    that did not fit, why, also where another one of its problem did (both: keys of batches.WHY).
    """
    if not counts:
        return {}
    fates = {
        "prompt": "too_long",
        "trace": "too_long",
        "reasoning": "unfinished",
        "stop": "stopped",
    }
    found = dict(counts)
    prompts = [why for why in dropped if why == "prompt"]
    # not below 0: problems that share their rows are dropped one by one
    found["used"] = max(0, found["used"] - len(dropped))
    # those behind the first one were counted as repeated
    found["repeated"] -= len(refused) - (len(dropped) - len(prompts))
    for why in (*prompts, *refused):
        found[fates[why]] += 1
    return found


def told(counts: Mapping[str, int]) -> str:
    """What became of the rows that demonstrations were chosen from, in one line."""
    fates = ", ".join(f"{counts[name]} {name.replace('_', ' ')}" for name in FATES)
    return f"{counts['rows']} solutions for {counts['matched']} of {counts['problems']} problems: {fates}"
