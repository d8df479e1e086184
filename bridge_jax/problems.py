"""Rows of benchmarks and training sets: from the hub, or from JSONL files, checked against what they must be.

Both ways end in the same rows {"id", "problem", "answer", "solution", ...} and the same checks: no field is missing, no answer
empty, no id twice, the number of rows and a hash of problems and answers are those that the task's file declares. Also here:
expert traces, and the overlap of training problems with benchmarks by word n-grams. Left out: tokenising (data.py).
"""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bridge_jax.types import Problem

logger = logging.getLogger(__name__)
NGRAM = 13  # words
PHRASING = 0.05  # runs of words in a larger share of the training problems are how such problems are put, not what they are


class Source(NamedTuple):
    """Where rows come from, and what they must be."""

    file: str  # JSONL under data_dir, such as "benchmarks/math500.jsonl"; found without its folder too
    hub: tuple[str, ...]  # repository, and configuration where it has several
    split: str  # of the hub's data set
    rows: int  # how many there are
    digest: str  # content_hash of them
    fields: dict[str, Any] = {}  # ours -> the hub's: a name, or a function of the row


def read(source: Source, data_dir: str = "", allow_changed: bool = False) -> list[dict]:
    """The rows of a source, checked; ValueError names file and row, or what differs from the declared data."""
    where, rows = from_files(source, data_dir) if data_dir else from_hub(source)
    check(rows, where)
    found = len(rows), content_hash(rows)
    logger.info("%s: %d rows, content %s", where, *found)
    if found != (source.rows, source.digest):
        told = f"{where} has {found[0]} rows with content {found[1]}; declared are {source.rows} with {source.digest}"
        if not allow_changed:
            raise ValueError(
                f"{told}. Scores would not compare with those of others: get the declared data, or set "
                "task.allow_changed_data=True to use this"
            )
        logger.warning("%s; used all the same", told)
    return rows


def from_files(source: Source, data_dir: str) -> tuple[str, list[dict]]:
    """The path and rows of the JSONL file under data_dir."""
    folder, name = Path(data_dir).expanduser(), Path(source.file).name
    for path in (folder / source.file, folder / name):
        if path.is_file():
            return str(path), jsonl(path)
    raise ValueError(
        f"no {name} in {data_dir!r}, nor in its folder {Path(source.file).parent}; give the folder that holds it, "
        "or leave data_dir empty to load from the hub"
    )


def jsonl(path: Path) -> list[dict]:
    """One object a line; ValueError names the row. Cut at newlines alone: other line ends may stand inside strings."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, row {number}: no JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(
                    f"{path}, row {number}: must be an object, is {type(row).__name__}"
                )
            rows.append(row)
    return rows


def from_hub(source: Source) -> tuple[str, list[dict]]:
    """The hub's name and rows, with our names of the fields."""
    import datasets  # slow to import

    name = "/".join((*source.hub, source.split))
    try:
        loaded = datasets.load_dataset(*source.hub, split=source.split)
    except Exception as error:  # of many kinds: no network, no such name, a changed layout
        raise ValueError(
            f"cannot load {name} from the hub ({type(error).__name__}: {error}); set data_dir to a folder with "
            f"{Path(source.file).name}"
        ) from error
    take = lambda row, field: field(row) if callable(field) else row.get(field)
    return name, [
        {"id": str(number)}
        | dict(row)
        | {ours: take(row, field) for ours, field in source.fields.items()}
        for number, row in enumerate(loaded)
    ]


def check(rows: list[dict], where: str) -> None:
    """ValueError for the first row (from 1) without a field, with an empty answer, or with an id that came before."""
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        for field in ("id", "problem", "answer"):
            if field not in row or row[field] is None:
                raise ValueError(
                    f"{where}, row {number}: no field {field!r}; it has {', '.join(sorted(row))}"
                )
            if not isinstance(row[field], str) or not row[field].strip():
                raise ValueError(
                    f"{where}, row {number} (id {row['id']!r}): {field} is {row[field]!r}; it must be a "
                    "text that is not empty"
                )
        if row["id"] in seen:
            raise ValueError(
                f"{where}, row {number}: the id {row['id']!r} is that of row {seen[row['id']]}"
            )
        seen[row["id"]] = number
    if not rows:
        raise ValueError(f"{where} has no rows")


def content_hash(rows: Iterable[dict]) -> str:
    """12 hex digits of the SHA-256 of all problems and answers, in any order and whatever their white space."""
    plain = sorted(
        json.dumps([" ".join(row["problem"].split()), " ".join(row["answer"].split())])
        for row in rows
    )
    return hashlib.sha256("\n".join(plain).encode()).hexdigest()[:12]


def once(problems: Sequence[Problem], where: str) -> tuple[Problem, ...]:
    """The problems without later ones of the same id, that is of the same text; what is left out is counted."""
    first: dict[int, Problem] = {}
    for problem in problems:
        first.setdefault(problem.id, problem)
    kept = tuple(first.values())
    if len(kept) < len(problems):
        logger.warning(
            "%s: %d of %d problems left out, they stand there twice",
            where,
            len(problems) - len(kept),
            len(problems),
        )
    return kept


def traces(path: str) -> dict[str, dict]:
    """Expert traces of a JSONL file {"problem", "solution", "answer"} by the words of their problem."""
    rows = jsonl(Path(path).expanduser())
    for number, row in enumerate(rows, 1):
        for field in ("problem", "solution", "answer"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise ValueError(
                    f"{path}, row {number}: {field} is {row.get(field)!r}; it must be a text that is not empty"
                )
    return {" ".join(words(row["problem"])): row for row in rows}


def right_solutions(
    problems: Sequence[Problem], right: Callable[[Problem], bool], where: str
) -> tuple[Problem, ...]:
    """The problems with a solution that gives their own answer; the others are counted, by why."""
    with_solution = [problem for problem in problems if problem.solution.strip()]
    kept = tuple(problem for problem in with_solution if right(problem))
    if len(kept) < len(problems):
        logger.warning(
            "%s: %d demonstrations of %d problems; left out: %d without a solution, %d whose own answer is not "
            "correct",
            where,
            len(kept),
            len(problems),
            len(problems) - len(with_solution),
            len(with_solution) - len(kept),
        )
    return kept


def words(text: str) -> list[str]:
    """Lower-case words and numbers, without marks and spacing."""
    return re.findall(r"[a-z]+|[0-9]+", text.lower())


def grams(text: str, n: int = NGRAM) -> set[tuple[str, ...]]:
    """All runs of n words; where it has fewer, the whole text with its marks, which then make all the difference."""
    found = words(text)
    if len(found) < n:
        return {tuple(text.lower().split())}
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def overlap(
    train: Sequence[Problem], benchmark: Sequence[Problem], n: int = NGRAM
) -> list[tuple[int, int]]:
    """(id of the training problem, id of a benchmark's) for each training problem that shares a run of n words with one."""
    known = {gram: problem.id for problem in benchmark for gram in grams(problem.question, n)}
    shared = [
        (problem.id, {gram for gram in grams(problem.question, n) if gram in known})
        for problem in train
    ]
    counts = collections.Counter(gram for _, found in shared for gram in found)
    telling = lambda found: sorted(
        gram for gram in found if counts[gram] <= max(10, PHRASING * len(train))
    )
    return [(id, known[gram]) for id, found in shared for gram in telling(found)[:1]]


def overlap_report(train: Sequence[Problem], splits: dict[str, Sequence[Problem]]) -> str:
    """A line for each held-out split; ValueError where a training problem IS a held-out problem."""
    folded = lambda problem: " ".join(problem.question.lower().split())
    lines, asked = [], {folded(problem) for problem in train}
    for name, problems in splits.items():
        same = [problem.id for problem in problems if folded(problem) in asked]
        if same:
            raise ValueError(
                f"{len(same)} problems of {name} stand in the training set, word for word (ids {same[:5]}); "
                "remove them from one of the two"
            )
        shared = overlap(train, problems)
        told = ", ".join(f"{mine}~{theirs}" for mine, theirs in shared[:5])
        lines.append(
            f"{name}: {len(shared)} of {len(train)} training problems share {NGRAM} words in a row with one of its "
            f"{len(problems)}"
            + (f" (ids {told}{', ...' if len(shared) > 5 else ''})" if shared else "")
        )
    return "\n".join(lines)
