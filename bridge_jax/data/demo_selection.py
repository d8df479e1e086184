r"""Which rows of a source become demonstrations, and why the others do not.

Every row gets exactly one state of STATES. The demonstration of a row is the shortest of its
solutions that the source's flags accept, that has its reasoning within one pair of <think> and
</think> (or has none), that our grader finds correct, and that fits. A problem's first row with
such a solution is kept, later ones are `repeated`. So the result does not depend on how rows are
grouped.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bridge_jax.data.contamination import HeldOut
from bridge_jax.data.demo_schemas import Row
from bridge_jax.data.traces import THINK, THINK_END, text_key
from bridge_jax.grading.extract import last_boxed
from bridge_jax.grading.outcome import DeferredComparison, Outcome
from bridge_jax.types import Problem

# What became of a row. From `flagged` on they are the fates of a solution, in the order of the
# checks: a row has the furthest that one of its solutions came to.
STATES = {
    "kept": "it is a demonstration",
    "no_problem": "the problem is null or blank",
    "excluded": "the source says that it is no valid mathematical problem with an answer",
    "unmatched": "it is not a problem of the task of --match",
    "no_answer": "the answer is null, blank, or no text",
    "no_solution": "all solutions are null or blank",
    "contaminated": "the problem is one of a benchmark, or a copy (contamination.py)",
    "repeated": "an earlier row of the same problem was kept",
    "flagged": "the source's own flags accept no solution, or are missing",
    "unfinished": "the reasoning is never closed, or nothing comes after it",
    "malformed": "more than one pair of <think> and </think>, or text before it",
    "no_box": "the solution states no answer where the grader looks for it",
    "unreadable": "the grader cannot read the answer",
    "timeout": "the comparison took too long",
    "grader_error": "the grader failed",
    "wrong": "the answer is not the problem's",
    "too_long": "the right solutions have more tokens than --max_tokens",
}
OUTCOMES = {
    Outcome.no_answer: "no_box",
    Outcome.parse_error: "unreadable",
    Outcome.timeout: "timeout",
    Outcome.grader_error: "grader_error",
    Outcome.wrong: "wrong",
}
# states of rows that the grader judged
GRADED = ("kept", *OUTCOMES.values(), "too_long")
ORDER = {state: place for place, state in enumerate(STATES)}
TAGGED = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)


class Grader(NamedTuple):
    """How a solution's answer is found and compared."""

    extract: Callable[[str], str | None]  # solution -> its answer
    # (Problem, answer) -> Outcome, or a DeferredComparison for `judge`
    compare: Callable[[Problem, str], Outcome | DeferredComparison]


@dataclasses.dataclass(frozen=True)
class Criteria:
    """What a demonstration must be."""

    grader: Grader | None  # None: the source's flags alone decide
    # deferred comparisons -> their outcomes, by grading.pool
    judge: Callable[[list[DeferredComparison]], list[Outcome]]
    # solutions -> the number of tokens of each, the end-of-sequence token counted
    lengths: Callable[[list[str]], list[int]]
    max_tokens: int = 0  # 0: no limit
    held_out: HeldOut = HeldOut({})
    match: Mapping[str, Problem] | None = None  # text_key -> the task's problem; None: any problem
    box: bool = False  # state the answer in a box where the solution has none


class Decision(NamedTuple):
    """The state of a row, with its demonstration or the benchmark that contaminates it."""

    state: str
    demo: dict[str, Any] | None = None
    benchmark: str = ""


class Candidate(NamedTuple):
    """A solution of a row that goes to the grader."""

    index: int  # among the solutions of the source's row
    text: str
    outcome: Outcome | DeferredComparison


def tagged_answer(text: str) -> str | None:
    """Content of the last <answer> </answer>, otherwise of the last box; None without both."""
    found = TAGGED.findall(text)
    return found[-1] if found else last_boxed(text)


def one_reasoning(text: str) -> tuple[str, str]:
    """(the text with its reasoning within one <think> </think>, "") or ("", the state of a fault).

    A missing opening tag, which many prompts already end with, is put on. A text without both tags
    stays as it is.
    """
    text = text.strip()
    before, opened, after = text.partition(THINK)
    thought, closed, answer = (after if opened else text).partition(THINK_END)
    if not opened and not closed:
        return text, ""
    if not closed or not answer.strip():
        return "", "unfinished"
    if opened and before.strip() or any(tag in thought + answer for tag in (THINK, THINK_END)):
        return "", "malformed"
    return f"{THINK}\n{thought.strip()}\n{THINK_END}\n\n{answer.strip()}", ""


def with_box(text: str, answer: str) -> str:
    r"""The solution with its answer in \boxed{}: what stands in <answer>, else a last line.

    Lines of an answer are joined with commas.
    """
    if last_boxed(text) is not None:
        return text
    found = list(TAGGED.finditer(text))
    stated = found[-1][1] if found else answer
    box = f"\\boxed{{{', '.join(line.strip() for line in stated.splitlines() if line.strip())}}}"
    if found:
        return text[: found[-1].start()] + box + text[found[-1].end() :]
    return f"{text}\nThe answer is {box}."


def select(rows: Sequence[Row], criteria: Criteria, kept: set[int]) -> list[Decision]:
    """The decision on each row, in order.

    kept: problem_hash of all problems that have a demonstration so far; it is added to.
    """
    decided = [check_problem(row, criteria, kept) for row in rows]
    found: list[list[Candidate]] = []
    faults: list[list[str]] = []
    for row, decision in zip(rows, decided, strict=True):
        candidates, states = ([], []) if decision else read_solutions(row, criteria)
        found.append(candidates)
        faults.append(states)
    deferred = list(
        dict.fromkeys(
            candidate.outcome
            for candidates in found
            for candidate in candidates
            if isinstance(candidate.outcome, DeferredComparison)
        )
    )
    judged = dict(zip(deferred, criteria.judge(deferred), strict=True)) if deferred else {}
    graded = [
        [one._replace(outcome=judged.get(one.outcome, one.outcome)) for one in candidates]
        for candidates in found
    ]
    right = [
        one.text for candidates in graded for one in candidates if one.outcome == Outcome.correct
    ]
    tokens = dict(zip(right, criteria.lengths(right), strict=True)) if right else {}
    return [
        decision or choose(row, candidates, states, tokens, criteria, kept)
        for row, decision, candidates, states in zip(rows, decided, graded, faults, strict=True)
    ]


def check_problem(row: Row, criteria: Criteria, kept: set[int]) -> Decision | None:
    """The decision where the problem alone decides, else None."""
    if not row.problem.strip():
        return Decision("no_problem")
    if row.excluded:
        return Decision("excluded")
    if criteria.match is not None and text_key(row.problem) not in criteria.match:
        return Decision("unmatched")
    if criteria.match is None and not row.answer.strip():
        return Decision("no_answer")
    if not row.given:
        return Decision("no_solution")
    if problem_hash(row.problem) in kept:
        return Decision("repeated")
    if name := criteria.held_out.find(row.problem):
        return Decision("contaminated", benchmark=name)
    return None if row.solutions else Decision("flagged")


def read_solutions(row: Row, criteria: Criteria) -> tuple[list[Candidate], list[str]]:
    """The solutions that can be graded, and the states of those that cannot."""
    problem, candidates, states = gold(row, criteria), [], []
    for index, solution in row.solutions:
        text, fault = one_reasoning(solution)
        if fault:
            states.append(fault)
            continue
        outcome: Outcome | DeferredComparison = Outcome.correct
        if criteria.grader:
            answer = criteria.grader.extract(text)
            outcome = (
                Outcome.no_answer if answer is None else criteria.grader.compare(problem, answer)
            )
        text = with_box(text, problem.answer) if criteria.box else text
        candidates.append(Candidate(index, text, outcome))
    return candidates, states


def gold(row: Row, criteria: Criteria) -> Problem:
    """The problem that a row's solutions are graded by: the task's own where there is one."""
    if criteria.match is not None:
        return criteria.match[text_key(row.problem)]
    return Problem(0, row.problem.strip(), row.answer.strip(), "", 0)


def choose(
    row: Row,
    candidates: Sequence[Candidate],
    states: Sequence[str],
    tokens: Mapping[str, int],
    criteria: Criteria,
    kept: set[int],
) -> Decision:
    """The decision on a row whose solutions were graded; tokens: of the right ones, by text."""
    # an earlier row of the same group may have been kept since
    if problem_hash(row.problem) in kept:
        return Decision("repeated")
    problem, states = gold(row, criteria), list(states)
    best: Candidate | None = None
    for candidate in candidates:
        if candidate.outcome != Outcome.correct:
            states.append(OUTCOMES[candidate.outcome])
        elif criteria.max_tokens and tokens[candidate.text] > criteria.max_tokens:
            states.append("too_long")
        elif best is None or tokens[candidate.text] < tokens[best.text]:
            best = candidate
    if best is None:
        return Decision(max(states, key=ORDER.__getitem__))
    kept.add(problem_hash(row.problem))
    demo = {
        "problem": problem.question,
        "solution": best.text,
        "answer": problem.answer,
        "tokens": tokens[best.text],
        "generation": best.index,
    }
    return Decision("kept", demo)


def describe_failure(row: Row, criteria: Criteria) -> str:
    """The first answer of a row that did not grade, beside the problem's own."""
    problem = gold(row, criteria)
    texts = [one_reasoning(solution)[0] for _, solution in row.solutions]
    answers = [criteria.grader.extract(text) for text in texts if text] if criteria.grader else []
    stated = next((answer for answer in answers if answer is not None), None)
    return f"the problem's answer is {problem.answer!r:.100}, the solution's {stated!r:.100}"


def problem_hash(problem: str) -> int:
    """A hash of a problem's text_key, so that millions of problems fit into memory."""
    return hash(text_key(problem))
