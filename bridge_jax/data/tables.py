"""Rows of somebody's own data: a JSONL or parquet file, a folder or pattern of them, a hub name.

`columns` says which column is what. Names in use are found by themselves, as is verl's schema.
Left out: data that does not fit in memory; the declared hashes of known data sets (datasets.py).
"""

from __future__ import annotations

import collections
import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bridge_jax.data import datasets

SUFFIXES = (".jsonl", ".json", ".parquet")
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(?:/[\w.-]+)?")
# our name -> the columns that are taken for it, the first one that a row has
KNOWN = {
    "problem": ("problem", "question", "prompt"),
    "answer": ("answer", "final_answer", "ground_truth"),
    "solution": ("solution",),
}
# verl: messages, a ground truth, and a solution in the first of these places that has a text
VERL = ("prompt", "reward_model")
VERL_ANSWERS = (
    "reward_model.ground_truth",
    # of Knights and Knaves, whose ground truth is a group
    "reward_model.ground_truth.solution_text_format",
)
VERL_SOLUTIONS = ("target", "solution", "answer", "extra_info.solution", "extra_info.answer")
# A prompt that is a rendered conversation already, as files for runs from base models have it.
RENDERED = re.compile(r"\bUser:\s*(.+?)\s*\n\s*Assistant:", re.DOTALL)


class Table(NamedTuple):
    """Rows {"problem", "answer", "solution"} that have a problem and an answer, and the others."""

    where: str
    rows: tuple[dict[str, str], ...]
    dropped: dict[str, int]  # why a row was left out -> how many

    @property
    def total(self) -> int:
        """All rows that were read."""
        return len(self.rows) + sum(self.dropped.values())

    def reasons(self) -> str:
        """The numbers of rows left out, and why."""
        return ", ".join(f"{count} {why}" for why, count in self.dropped.items() if count)


def read(given: str, key: str, split: str = "train", columns: str = "") -> Table:
    """The rows of a file, folder, pattern or hub name; ValueError begins with `key`=given."""
    chosen = parse_columns(columns)
    where = f"{key}={given}"
    rows = raw_rows(given, where, split)
    if not rows:
        raise ValueError(f"{where} has no rows")
    chosen = find_columns(rows, chosen, where)
    kept, dropped = [], collections.Counter()
    for row in rows:
        found = {part: as_text(first(row, paths), part) for part, paths in chosen.items()}
        if missing := [part for part in ("problem", "answer") if not found[part].strip()]:
            dropped[f"without {missing[0]}"] += 1
        else:
            if found["solution"].strip() == found["answer"].strip():
                # the answer alone teaches no reasoning
                found["solution"] = ""
            kept.append(found)
    if not kept:
        raise ValueError(
            f"{where}: none of {len(rows)} rows has a problem and an answer, read from "
            + "; ".join(f"{part}: {' or '.join(paths)}" for part, paths in chosen.items())
            + f"; name others with task.columns. {columns_there(rows)}"
        )
    return Table(given, tuple(kept), dict(dropped))


def parse_columns(text: str) -> dict[str, tuple[str, ...]]:
    """problem:A,answer:B.C -> {"problem": ("A",), "answer": ("B.C",)}; ValueError if invalid."""
    found = {}
    for piece in filter(None, (part.strip() for part in text.split(","))):
        ours, colon, theirs = (word.strip() for word in piece.partition(":"))
        # the other way round is as natural: COLUMN:problem cannot be told apart, so it is refused
        if ours not in KNOWN or not colon or not theirs:
            raise ValueError(
                f"task.columns={text!r}: {piece!r} is invalid; allowed: problem:COLUMN, "
                "answer:COLUMN, solution:COLUMN with commas between them, and A.B for field B of "
                "column A"
            )
        found[ours] = (theirs,)
    return found


def find_columns(
    rows: Sequence[Mapping], chosen: Mapping[str, tuple[str, ...]], where: str
) -> dict[str, tuple[str, ...]]:
    """Part -> columns to look into, in this order; ValueError names the columns that are there."""
    usual: Mapping[str, tuple[str, ...]] = KNOWN
    if is_verl(rows):
        usual = {"problem": ("prompt",), "answer": VERL_ANSWERS, "solution": VERL_SOLUTIONS}
    found = {part: chosen.get(part, usual[part]) for part in KNOWN}
    if "answer" in chosen and "solution" not in chosen:
        # a column that was called the answer is no solution
        found["solution"] = tuple(p for p in found["solution"] if p not in chosen["answer"])
    for part, paths in found.items():
        there = any(first(row, paths) is not None for row in rows)
        if not there and (part != "solution" or part in chosen):
            asked = " or ".join(paths)
            raise ValueError(
                f"{where} has no {asked} for the {part}; name the column with "
                f"task.columns={part}:COLUMN. {columns_there(rows)}"
            )
    return found


def is_verl(rows: Sequence[Mapping]) -> bool:
    """Whether the rows have verl's schema."""
    return all(isinstance(rows[0].get(name), kind) for name, kind in zip(VERL, (list, Mapping)))


def columns_there(rows: Sequence[Mapping]) -> str:
    """The columns of the first rows, and the fields of those that are groups."""
    names: dict[str, None] = {}
    for row in rows[:100]:
        names |= dict.fromkeys(dotted(row))
    return f"The columns are {', '.join(names)}"


def dotted(row: Mapping, prefix: str = "") -> list[str]:
    """Names of a row's cells, A.B for field B of column A."""
    found = []
    for name, value in row.items():
        group = isinstance(value, Mapping) and value
        found += dotted(value, f"{prefix}{name}.") if group else [f"{prefix}{name}"]
    return found


def first(row: Mapping, paths: Sequence[str]) -> Any:
    """The first cell of these that is a text, a number or a list; None where there is none."""
    for path in paths:
        value: Any = row
        # a column may have dots in its own name
        for name in [path] if path in row else path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None and not isinstance(value, Mapping):
            return value
    return None


def as_text(value: Any, part: str = "") -> str:
    """A cell as text: "" where it is null; of messages the last one of the user or assistant."""
    if isinstance(value, list | tuple):
        messages = [one for one in value if isinstance(one, Mapping) and "content" in one]
        if messages:
            role = "assistant" if part == "solution" else "user"
            spoken = [one["content"] for one in messages if one.get("role") == role]
            return as_text(spoken[-1] if spoken else None, part)
        value = value[0] if len(value) == 1 else None
    if value is None or isinstance(value, Mapping | list | tuple | bytes):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    if part == "problem" and (rendered := RENDERED.search(text)):
        return rendered[1]
    return text


def raw_rows(given: str, where: str, split: str) -> list[dict]:
    """All rows with their own columns."""
    if paths := find_files(given, where):
        return [row for path in paths for row in file_rows(path)]
    if HUB_NAME.fullmatch(given) and not given.endswith(SUFFIXES):
        repository, _, config = given.partition("/")[2].partition("/")
        name = f"{given.partition('/')[0]}/{repository}"
        source = datasets.Source("", (name, *filter(None, [config])), split, 0, "")
        try:
            _, rows = datasets.from_hub(source)
        except ValueError as error:
            reason = str(error).partition("; or set data_dir")[0]
            raise ValueError(
                f"{where} is no file or folder here, and: {reason}; give a local copy"
            ) from error
        return rows
    raise ValueError(
        f"{where}: no such file or folder; give a {', '.join(SUFFIXES)} file, a folder or pattern "
        "of them, or a hub name such as owner/name (owner/name/config where it has several)"
    )


def find_files(given: str, where: str) -> list[Path]:
    """The files that a path, a folder or a pattern stands for, by name; [] where there are none."""
    path = Path(given).expanduser()
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if one.suffix in SUFFIXES and one.is_file())
        if not files:
            raise ValueError(f"{where}: the folder has no {', '.join(SUFFIXES)} file")
        return files
    files = [Path(one) for one in sorted(glob.glob(str(path)))] or [path] * path.is_file()
    if odd := [str(one) for one in files if one.suffix not in SUFFIXES]:
        raise ValueError(f"{where}: {odd[0]} is none of {', '.join(SUFFIXES)}")
    return files


def file_rows(path: Path) -> list[dict]:
    """The rows of one file; ValueError where it cannot be read."""
    if path.suffix != ".parquet":
        return datasets.jsonl(path)
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is no readable parquet file: {reason}") from None
