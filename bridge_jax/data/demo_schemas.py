"""The columns of public data sets of demonstrations, and how each marks its right solutions.

A schema reads one row of a data set as a Row: the problem, its answer, and the solutions that the
source's own flags accept. Cells may be null and lists of flags shorter than the list of solutions:
a flag that is not there confirms nothing. Left out: grading, lengths, duplicates
(demo_selection.py), and where rows come from (demo_sources.py).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bridge_jax.data.traces import THINK, THINK_END
from bridge_jax.grading.extract import last_boxed

# NuminaMath's words for an answer that is not one
NO_ANSWERS = ("proof", "notfound", "not found", "null", "none", "")
# A prompt that is already a rendered conversation, as files for R1-Zero runs have it.
RENDERED = re.compile(r"\bUser:\s*(?P<question>.+?)\s*\n\s*Assistant:", re.DOTALL)
PARTS = ("problem", "solution", "answer")


class Row(NamedTuple):
    """One row of a source; "" and () where it has nothing."""

    problem: str
    answer: str
    # (index in the source, text) of the solutions that the flags accept
    solutions: tuple[tuple[int, str], ...]
    given: int  # solutions before the flags were asked
    excluded: bool = False  # by the source itself: a proof, no mathematics, an invalid problem


class Schema(NamedTuple):
    """The columns of a data set, and the function that reads a row."""

    name: str  # the short name
    required: tuple[str, ...]
    read: Callable[[dict], Row]
    optional: tuple[str, ...] = ()
    hub: str = ""  # repository
    config: str = ""  # configuration of the repository

    def columns_of(self, there: Sequence[str]) -> list[str]:
        """The columns to read of those that are there; ValueError names those that are missing."""
        if missing := [column for column in self.required if column not in there]:
            raise ValueError(
                f"the schema {self.name} needs the columns {', '.join(self.required)}; "
                f"{', '.join(missing)} not found. {name_columns(there)}"
            )
        return [*self.required, *(column for column in self.optional if column in there)]


def name_columns(there: Sequence[str]) -> str:
    """The columns that a source has, and the way out."""
    return (
        f"The source has the columns {', '.join(there)}. Name its own with "
        "--columns=problem:COLUMN,solution:COLUMN,answer:COLUMN, or another --schema"
    )


def text(value: Any) -> str:
    """A cell as text: "" for null, digits for a number, and "" for what is no text."""
    if isinstance(value, str):
        try:
            value.encode()
        # half a character, which no tokenizer takes
        except UnicodeEncodeError:
            return ""
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return str(int(value)) if float(value).is_integer() else str(value)


def listed(value: Any) -> list:
    """A cell as a list: [] for null, one entry for anything that is no list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def spoken(messages: Any, role: str) -> str:
    """The content of the last message of a role; a text is the message itself."""
    if isinstance(messages, str):
        return messages
    said = [
        text(message.get("content"))
        for message in listed(messages)
        if isinstance(message, dict) and message.get("role") == role
    ]
    return said[-1] if said else ""


def flagged(flags: Any, index: int) -> bool:
    """Whether the flag of a solution is there and true."""
    known = listed(flags)
    return index < len(known) and known[index] is True


def numbered(texts: Sequence[Any]) -> tuple[tuple[int, str], ...]:
    """(index, text) of all texts that are not blank."""
    return tuple((i, text(value)) for i, value in enumerate(texts) if text(value).strip())


def plain(problem: Any, answer: Any, *solutions: Any) -> Row:
    """A row whose solutions have no flags."""
    found = numbered(solutions)
    return Row(text(problem), text(answer), found, len(found))


def deepmath(row: dict) -> Row:
    """DeepMath: three solutions of R1, all of them open to our grader."""
    solutions = (row.get(f"r1_solution_{number}") for number in (1, 2, 3))
    return plain(row.get("question"), row.get("final_answer"), *solutions)


def openr1(row: dict) -> Row:
    """OpenR1-Math: flags are lists with an entry for each solution.

    Accepted are complete solutions that Math-Verify found correct; where there is none, those that
    the judge Llama found correct.
    """
    found = numbered(listed(row.get("generations")))
    verified, judged, complete = (
        row.get(column)
        for column in ("correctness_math_verify", "correctness_llama", "is_reasoning_complete")
    )
    right = [one for one in found if flagged(verified, one[0]) and flagged(complete, one[0])]
    right = right or [one for one in found if flagged(judged, one[0])]
    return Row(text(row.get("problem")), text(row.get("answer")), tuple(right), len(found))


def verl(row: dict) -> Row:
    """verl's schema: messages, a ground truth, and a solution in one of several places.

    The problem is the user's last message; of a rendered conversation it is what the user says.
    """
    question = spoken(row.get("prompt"), "user")
    if rendered := RENDERED.search(question):
        question = rendered["question"]
    extra = row.get("extra_info") or {}
    target = spoken(row.get("target"), "assistant")
    places = (row.get("solution"), row.get("answer"), extra.get("solution"), extra.get("answer"))
    first = next((found for found in (target, *map(text, places)) if found.strip()), "")
    truth = (row.get("reward_model") or {}).get("ground_truth")
    if isinstance(truth, dict):
        truth = truth.get("solution_text_format")
    if isinstance(truth, list):
        truth = truth[0] if len(truth) == 1 else None
    # a file without `target` may hold its answer alone in `answer`, which is no solution
    return plain(question, truth, None if first.strip() == text(truth).strip() else first)


def luffy(row: dict) -> Row:
    """LUFFY's file is verl's, with the solution as the assistant's message of `target`."""
    return plain(
        spoken(row.get("prompt"), "user"),
        (row.get("reward_model") or {}).get("ground_truth"),
        spoken(row.get("target"), "assistant"),
    )


def numina(row: dict) -> Row:
    """NuminaMath-1.5: valid problems with a valid solution and an answer, proofs left out."""
    found = plain(row.get("problem"), row.get("answer"), row.get("solution"))
    if found.answer.strip().lower() in NO_ANSWERS:
        found = found._replace(answer="")
    valid = row.get("problem_is_valid") == row.get("solution_is_valid") == "Yes"
    return found._replace(excluded=not valid or row.get("question_type") == "proof")


def limo(row: dict) -> Row:
    """LIMO: every solution is right by its authors' word."""
    return plain(row.get("question"), row.get("answer"), row.get("solution"))


def joined(reasoning: Any, solution: Any) -> str:
    """Reasoning and solution of two columns as one text; "" where one of them is missing."""
    thought, said = text(reasoning).strip(), text(solution).strip()
    return f"{THINK}\n{thought}\n{THINK_END}\n\n{said}" if thought and said else ""


def s1k(row: dict) -> Row:
    """s1K-1.1: mathematics whose attempt by DeepSeek was graded "Yes"."""
    solution = joined(row.get("deepseek_thinking_trajectory"), row.get("deepseek_attempt"))
    gold = text(row.get("solution"))
    found = plain(row.get("question"), last_boxed(gold) or gold.strip(), solution)
    if row.get("deepseek_grade") != "Yes":
        found = found._replace(solutions=())
    return found._replace(excluded=row.get("cot_type") != "math")


def openthoughts(row: dict) -> Row:
    """OpenThoughts: mathematics, whose answer is the last box of the ground truth."""
    solution = joined(row.get("deepseek_reasoning"), row.get("deepseek_solution"))
    gold = last_boxed(text(row.get("ground_truth_solution")))
    found = plain(row.get("problem"), gold, solution)
    return found._replace(excluded=row.get("domain") != "math")


def own(row: dict) -> Row:
    """The columns of a traces file."""
    return plain(row.get("problem"), row.get("answer"), row.get("solution"))


SCHEMAS = (
    Schema(
        "deepmath",
        ("question", "final_answer", "r1_solution_1"),
        deepmath,
        ("r1_solution_2", "r1_solution_3"),
        hub="zwhe99/DeepMath-103K",
    ),
    Schema(
        "openr1",
        (
            "problem",
            "answer",
            "generations",
            "correctness_math_verify",
            "is_reasoning_complete",
        ),
        openr1,
        ("correctness_llama",),
        "open-r1/OpenR1-Math-220k",
        "default",
    ),
    Schema(
        "luffy",
        ("prompt", "target", "reward_model"),
        luffy,
        hub="Elliott/Openr1-Math-46k-8192",
    ),
    Schema(
        "numina",
        (*PARTS, "problem_is_valid", "solution_is_valid", "question_type"),
        numina,
        hub="AI-MO/NuminaMath-1.5",
    ),
    Schema("limo", ("question", "solution", "answer"), limo, hub="GAIR/LIMO"),
    Schema(
        "s1k",
        (
            "question",
            "solution",
            "cot_type",
            "deepseek_thinking_trajectory",
            "deepseek_attempt",
            "deepseek_grade",
        ),
        s1k,
        hub="simplescaling/s1K-1.1",
    ),
    Schema(
        "openthoughts",
        (
            "problem",
            "deepseek_reasoning",
            "deepseek_solution",
            "ground_truth_solution",
            "domain",
        ),
        openthoughts,
        hub="open-thoughts/OpenThoughts-114k",
        config="metadata",
    ),
    Schema(
        "verl",
        ("prompt", "reward_model"),
        verl,
        ("target", "solution", "answer", "extra_info", "data_source"),
    ),
    Schema("traces", PARTS, own),
)


def find(name: str) -> Schema | None:
    """The schema of a short name or of a hub's repository; None where there is none."""
    known = (one for one in SCHEMAS if name and name.lower() in (one.name, one.hub.lower()))
    return next(known, None)


def named(name: str) -> Schema:
    """The schema of a short name or of a hub's repository; ValueError lists all."""
    if schema := find(name):
        return schema
    known = [schema.name for schema in SCHEMAS]
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"schema {name!r} does not exist.{hint} Schemas: {', '.join(known)}")


def recognised(there: Sequence[str]) -> Schema:
    """The schema that these columns have: of several, the one that needs the most columns."""
    fitting = [schema for schema in SCHEMAS if set(schema.required) <= set(there)]
    if not fitting:
        known = "; ".join(f"{s.name}: {', '.join(s.required)}" for s in SCHEMAS)
        raise ValueError(f"no known schema has these columns. {name_columns(there)} ({known})")
    return max(fitting, key=lambda schema: len(schema.required))


def by_columns(given: str) -> Schema:
    """The schema of --columns=problem:A,solution:B,answer:C; ValueError for an invalid flag.

    A column's cells are texts, lists of texts, or lists of messages; A.B is field B of column A.
    Several solution columns, and several texts of a list, are several solutions.
    """
    columns: dict[str, list[str]] = {part: [] for part in PARTS}
    for piece in given.split(","):
        part, colon, column = (word.strip() for word in piece.partition(":"))
        if not colon or not column or part not in columns:
            raise ValueError(
                f"--columns={given}: {piece!r} is invalid; allowed: problem:COLUMN, "
                "solution:COLUMN, answer:COLUMN, with commas between them"
            )
        columns[part].append(column)
    if any(len(columns[part]) != 1 for part in ("problem", "answer")) or not columns["solution"]:
        raise ValueError(
            f"--columns={given}: it must name one problem, one answer and at least one solution"
        )
    every = [column for part in PARTS for column in columns[part]]

    def read(row: dict) -> Row:
        problem, answer = (cell(row, columns[part][0]) for part in ("problem", "answer"))
        solutions: list = []
        for column in columns["solution"]:
            value = cell(row, column)
            texts = all(isinstance(one, str | None) for one in listed(value))
            solutions += listed(value) if texts else [spoken(value, "assistant")]
        answers = listed(answer)
        question = text(problem) or spoken(problem, "user")
        return plain(question, answers[0] if len(answers) == 1 else None, *solutions)

    return Schema("columns", tuple(dict.fromkeys(one.split(".")[0] for one in every)), read)


def cell(row: dict, path: str) -> Any:
    """The value under a column, or under A.B.C the field of a field; None where it is missing."""
    value: Any = row
    for name in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value
