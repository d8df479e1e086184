"""What the columns of data sets mean, and how public demonstrations mark their right solutions.

A schema reads one row of a data set as a Row: the problem, its answer, and the solutions that the
source's own flags accept. Cells may be null and lists of flags shorter than the list of solutions:
a flag that is not there confirms nothing. tables.py reads problems of one's own by the same
functions. Left out: grading, lengths, duplicates (demo_selection.py), and where rows come from
(row_source.py).
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bridge_jax.data.traces import THINK, THINK_END
from bridge_jax.grading.extract import last_boxed

# NuminaMath's words for an answer that is not one
NO_ANSWERS = ("proof", "notfound", "not found", "null", "none", "")
# A prompt that is already a rendered conversation, as files for R1-Zero runs have it.
RENDERED = re.compile(r"\bUser:\s*(?P<question>.+?)\s*\n\s*Assistant:", re.DOTALL)
PARTS = ("problem", "solution", "answer")
# the columns of verl's schema by part
VERL = {
    "problem": ("prompt",),
    # the second is that of Knights and Knaves, whose ground truth is a group
    "answer": ("reward_model.ground_truth", "reward_model.ground_truth.solution_text_format"),
    "solution": ("target", "solution", "answer", "extra_info.solution", "extra_info.answer"),
}


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
        # A.B is field B of column A, unless a column has this name
        needed = [path if path in there else path.split(".")[0] for path in self.required]
        if missing := [column for column in needed if column not in there]:
            raise ValueError(
                f"the schema {self.name} needs the columns {', '.join(self.required)}; "
                f"{', '.join(missing)} not found. {name_columns(there)}"
            )
        optional = (column for column in self.optional if column in there)
        return list(dict.fromkeys((*needed, *optional)))


def name_columns(there: Sequence[str]) -> str:
    """The columns that a source has, and the way out."""
    return (
        f"The source has the columns {', '.join(there)}. Name its own with "
        "--columns=problem:COLUMN,solution:COLUMN,answer:COLUMN, or another --schema"
    )


def as_text(value: Any, role: str = "user") -> str:
    """A cell as text: "" for null and for what is no text, digits for a number.

    Of messages it is the last one of the role, of a list with one entry that entry.
    """
    if isinstance(value, list | tuple):
        messages = [one for one in value if isinstance(one, dict)]
        said = [as_text(one.get("content")) for one in messages if one.get("role") == role]
        if messages:
            return said[-1] if said else ""
        return as_text(value[0], role) if len(value) == 1 else ""
    # NaN is how some writers store null
    if value is None or value != value or isinstance(value, dict | bytes):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        str(value).encode()
    # half a character, which no tokenizer takes
    except UnicodeEncodeError:
        return ""
    return str(value)


def listed(value: Any) -> list:
    """A cell as a list: [] for null, one entry for anything that is no list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def cell(row: dict, path: str) -> Any:
    """The value under a column, or under A.B.C the field of a field; None where it is missing."""
    value: Any = row
    # a column may have dots in its own name
    for name in [path] if path in row else path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def flagged(flags: Any, index: int) -> bool:
    """Whether the flag of a solution is there and true; JSON of some writers has 1 for true."""
    known = listed(flags)
    return index < len(known) and isinstance(known[index], bool | int) and known[index] == 1


def numbered(texts: Sequence[Any]) -> tuple[tuple[int, str], ...]:
    """(index, text) of all texts that are not blank."""
    return tuple((i, as_text(value)) for i, value in enumerate(texts) if as_text(value).strip())


def plain(problem: Any, answer: Any, *solutions: Any) -> Row:
    """A row whose solutions have no flags."""
    found = numbered(solutions)
    return Row(as_text(problem), as_text(answer), found, len(found))


def read_columns(row: dict, columns: Mapping[str, Sequence[str]], every: bool = False) -> Row:
    """The row by its columns: of a part's columns the first one that has a text.

    columns: each of PARTS -> columns, A.B for field B of column A; cells are texts, lists of texts,
    or lists of messages. every: all texts of the solution's columns are solutions. The answer alone
    is no solution. Of a rendered conversation the problem is what the user says.
    """
    first = lambda part: next(filter(str.strip, (as_text(cell(row, c)) for c in columns[part])), "")
    problem, answer = first("problem"), first("answer")
    if rendered := RENDERED.search(problem):
        problem = rendered["question"]
    cells = (cell(row, column) for column in columns["solution"])
    solutions = [one for value in cells for one in solutions_of(value)]
    if not every:
        solutions = [one for one in solutions if as_text(one).strip()][:1]
        solutions = [one for one in solutions if as_text(one).strip() != answer.strip()]
    return plain(problem, answer, *solutions)


def solutions_of(value: Any) -> list:
    """The solutions in a cell: a list of texts is several, a list of messages is one."""
    texts = all(isinstance(one, str | None) for one in listed(value))
    return listed(value) if texts else [as_text(value, "assistant")]


def by_parts(every: bool = False, **columns: str | tuple[str, ...]) -> Callable[[dict], Row]:
    """The function that reads rows by these columns."""
    found = {part: (given,) if isinstance(given, str) else given for part, given in columns.items()}
    return functools.partial(read_columns, columns=found, every=every)


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
    return Row(as_text(row.get("problem")), as_text(row.get("answer")), tuple(right), len(found))


def is_verl(rows: Sequence[dict]) -> bool:
    """Whether rows have verl's schema."""
    return any("prompt" in row and isinstance(row.get("reward_model"), dict) for row in rows)


def verl(row: dict) -> Row:
    """verl's schema: messages, a ground truth, and a solution in the first of several places."""
    if not isinstance(row.get("reward_model"), dict | None):
        raise TypeError("reward_model has no fields")
    return read_columns(row, VERL)


def numina(row: dict) -> Row:
    """NuminaMath-1.5: valid problems with a valid solution and an answer, proofs left out."""
    found = plain(row.get("problem"), row.get("answer"), row.get("solution"))
    if found.answer.strip().lower() in NO_ANSWERS:
        found = found._replace(answer="")
    valid = row.get("problem_is_valid") == row.get("solution_is_valid") == "Yes"
    return found._replace(excluded=not valid or row.get("question_type") == "proof")


def joined(reasoning: Any, solution: Any) -> str:
    """Reasoning and solution of two columns as one text; "" where one of them is missing."""
    thought, said = as_text(reasoning).strip(), as_text(solution).strip()
    return f"{THINK}\n{thought}\n{THINK_END}\n\n{said}" if thought and said else ""


def s1k(row: dict) -> Row:
    """s1K-1.1: mathematics whose attempt by DeepSeek was graded "Yes"."""
    solution = joined(row.get("deepseek_thinking_trajectory"), row.get("deepseek_attempt"))
    gold = as_text(row.get("solution"))
    found = plain(row.get("question"), last_boxed(gold) or gold.strip(), solution)
    if row.get("deepseek_grade") != "Yes":
        found = found._replace(solutions=())
    return found._replace(excluded=row.get("cot_type") != "math")


def openthoughts(row: dict) -> Row:
    """OpenThoughts: mathematics, whose answer is the last box of the ground truth."""
    solution = joined(row.get("deepseek_reasoning"), row.get("deepseek_solution"))
    gold = last_boxed(as_text(row.get("ground_truth_solution")))
    found = plain(row.get("problem"), gold, solution)
    return found._replace(excluded=row.get("domain") != "math")


SCHEMAS = (
    Schema(
        "deepmath",
        ("question", "final_answer", "r1_solution_1"),
        by_parts(
            # three solutions of R1, all of them open to our grader
            every=True,
            problem="question",
            answer="final_answer",
            solution=("r1_solution_1", "r1_solution_2", "r1_solution_3"),
        ),
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
        by_parts(problem="prompt", answer="reward_model.ground_truth", solution="target"),
        hub="Elliott/Openr1-Math-46k-8192",
    ),
    Schema(
        "numina",
        (*PARTS, "problem_is_valid", "solution_is_valid", "question_type"),
        numina,
        hub="AI-MO/NuminaMath-1.5",
    ),
    Schema(
        "limo",
        ("question", "solution", "answer"),
        # every solution is right by its authors' word
        by_parts(problem="question", answer="answer", solution="solution"),
        hub="GAIR/LIMO",
    ),
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
    Schema("traces", PARTS, by_parts(**{part: part for part in PARTS})),
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
        known = ", ".join(schema.name for schema in SCHEMAS)
        raise ValueError(f"no known schema has these columns. {name_columns(there)} of {known}")
    return max(fitting, key=lambda schema: len(schema.required))


def parse_columns(given: str, key: str) -> dict[str, tuple[str, ...]]:
    """problem:A,solution:B,solution:C.D -> {"problem": ("A",), "solution": ("B", "C.D")}.

    ValueError names the key or flag that they were given by.
    """
    columns: dict[str, tuple[str, ...]] = {}
    for piece in filter(None, (part.strip() for part in given.split(","))):
        part, colon, column = (word.strip() for word in piece.partition(":"))
        # the other way round is as natural: COLUMN:problem cannot be told apart, so it is refused
        if not colon or not column or part not in PARTS:
            raise ValueError(
                f"{key}={given}: {piece!r} is invalid; allowed: problem:COLUMN, solution:COLUMN, "
                "answer:COLUMN, with commas between them, and A.B for field B of column A"
            )
        columns[part] = (*columns.get(part, ()), column)
    return columns


def by_columns(given: str) -> Schema:
    """The schema of --columns=problem:A,solution:B,answer:C; ValueError for an invalid flag.

    Several solution columns, and several texts of a list, are several solutions.
    """
    columns = parse_columns(given, "--columns")
    numbers = [len(columns.get(part, ())) for part in ("problem", "answer")]
    if numbers != [1, 1] or "solution" not in columns:
        raise ValueError(
            f"--columns={given}: it must name one problem, one answer and at least one solution"
        )
    every = dict.fromkeys(column for part in PARTS for column in columns[part])
    return Schema("columns", tuple(every), by_parts(every=True, **columns))
