"""Rows of somebody's own data: a JSONL or parquet file, a folder or pattern of them, a hub name.

`columns` says which column is what. Names in use are found by themselves, as is verl's schema.
Left out: data that does not fit in memory; the declared hashes of known data sets (datasets.py).
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bridge_jax.data import demo_schemas, row_source
from bridge_jax.data.demo_schemas import VERL, cell

# our name -> the columns that are taken for it, the first one that a row has
USUAL = {
    "problem": ("problem", "question", "prompt"),
    "answer": ("answer", "final_answer", "ground_truth"),
    "solution": ("solution",),
}


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


def read(
    given: str,
    where: str,
    split: str = "train",
    columns: str = "",
    columns_key: str = "task.columns",
    as_demos: bool = False,
) -> Table:
    """The rows of a file, folder, pattern or hub name (of its `split`, or of the one in the name).

    ValueError begins with `where`, such as task.train=FILE, and names the key or flag by which
    columns are given. as_demos: there must be a column of solutions, and no key names the columns.
    """
    named = demo_schemas.parse_columns(columns, columns_key)
    rows = list(row_source.open_any(given, where, split).read())
    if not rows:
        raise ValueError(f"{where} has no rows")
    needed = ("problem", "answer", *(("solution",) if as_demos else named))
    way_out = (
        "make a file of its columns with experiments.traces --columns"
        if as_demos
        else f"name the column with {columns_key}=PART:COLUMN"
    )
    chosen = find_columns(rows, named)
    check_columns(rows, {part: chosen[part] for part in needed}, where, way_out)
    found = [demo_schemas.read_columns(row, chosen) for row in rows]
    kept, dropped = complete(found)
    if not kept:
        parts = ("problem", "answer")
        looked = "; ".join(f"{part}: {' or '.join(chosen[part])}" for part in parts)
        raise ValueError(
            f"{where}: none of {len(rows)} rows has a problem and an answer, read from {looked}; "
            f"{way_out}. {columns_there(rows)}"
        )
    return Table(given, tuple(kept), dropped)


def complete(found: Sequence[demo_schemas.Row]) -> tuple[list[dict[str, str]], dict[str, int]]:
    """Rows that have a problem and an answer, and the number of the others by what they lack."""
    kept, dropped = [], collections.Counter()
    for row in found:
        parts = {"problem": row.problem, "answer": row.answer}
        missing = [part for part, text in parts.items() if not text.strip()]
        if missing:
            dropped[f"without {missing[0]}"] += 1
        else:
            solutions = [text for _, text in row.solutions]
            kept.append(parts | {"solution": solutions[0] if solutions else ""})
    return kept, dict(dropped)


def find_columns(
    rows: Sequence[Mapping], named: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Part -> columns to look into, in this order."""
    usual = VERL if demo_schemas.is_verl(rows) else USUAL
    found = {part: named.get(part, usual[part]) for part in USUAL}
    if "answer" in named and "solution" not in named:
        # a column that was called the answer is no solution
        found["solution"] = tuple(p for p in found["solution"] if p not in named["answer"])
    return found


def check_columns(
    rows: Sequence[Mapping], chosen: Mapping[str, Sequence[str]], where: str, way_out: str
) -> None:
    """ValueError for the first part that none of its columns is there for."""
    for part, paths in chosen.items():
        if not has_column(rows, paths):
            raise ValueError(
                f"{where} has no {' or '.join(paths)} for the {part}; {way_out}. "
                f"{columns_there(rows)}"
            )


def has_column(rows: Sequence[Mapping], paths: Sequence[str]) -> bool:
    """Whether there is one of these columns, were it with nulls alone, or of these fields."""
    return any(path in row or cell(row, path) is not None for row in rows for path in paths)


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
