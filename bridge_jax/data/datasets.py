"""Rows of benchmarks and training sets, read from the hub or from JSONL files, and checked.

Both sources give the same rows {"id", "problem", "answer", "solution", ...} and have the same
checks: no field is missing, no answer is empty, no id occurs twice, and the number of rows and the
hash of problems and answers are those that the task's file declares. Left out: demonstrations
(traces.py), tokenising (batches.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bridge_jax.filesystem import hub, textfile

logger = logging.getLogger(__name__)


class Source(NamedTuple):
    """The origin of a data set, and the declared number and hash of its rows."""

    # JSONL under data_dir, such as "benchmarks/math500.jsonl"; also found without its folder
    file: str
    hub: tuple[str, ...]  # repository, and configuration where it has several
    split: str  # of the hub's data set
    rows: int  # declared number of rows
    digest: str  # declared content_hash
    fields: dict[str, Any] = {}  # our field -> the hub's field, or a function of the hub's row


def read(source: Source, data_dir: str = "", allow_changed: bool = False) -> list[dict]:
    """The checked rows of a source.

    ValueError names the file and the row, or the difference from the declared data.
    """
    where, rows = from_files(source, data_dir) if data_dir else from_hub(source)
    check(rows, where)
    found = len(rows), content_hash(rows)
    logger.info("%s: %d rows, content %s", where, *found)
    if found != (source.rows, source.digest):
        difference = (
            f"{where} has {found[0]} rows with content {found[1]}; declared are {source.rows} with "
            f"{source.digest}"
        )
        if not allow_changed:
            raise ValueError(
                f"{difference}. Scores would not compare with those of others: get the declared "
                "data, or set task.allow_changed_data=True to use this"
            )
        logger.warning("%s; used anyway", difference)
    return rows


def from_files(source: Source, data_dir: str) -> tuple[str, list[dict]]:
    """The path and rows of the JSONL file under data_dir."""
    folder, name = Path(data_dir).expanduser(), Path(source.file).name
    for path in (folder / source.file, folder / name):
        if path.is_file():
            return str(path), jsonl(path)
    if not folder.is_dir():
        raise ValueError(
            f"data_dir={data_dir!r} is no folder; give the folder that holds {name}, or leave "
            "data_dir empty to load from the hub"
        )
    raise ValueError(
        f"no {name} in {data_dir!r}, nor in its folder {Path(source.file).parent}; give the folder "
        "that holds it, or leave data_dir empty to load from the hub"
    )


def jsonl(path: Path) -> list[dict]:
    """The rows of a file with one JSON object per line; ValueError names an invalid row.

    Lines are split at newlines alone, since strings may contain other line ends.
    """
    rows = []
    for number, line in enumerate(textfile.read(path).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
                json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{path}, row {number}: holds a part of a character ({error}), so that it is "
                    "no text; write the row again or remove it"
                ) from None
            except ValueError as error:
                raise ValueError(f"{path}, row {number}: no JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(
                    f"{path}, row {number}: must be an object, is {type(row).__name__}"
                )
            rows.append(row)
    return rows


def from_hub(source: Source) -> tuple[str, list[dict]]:
    """The name of the hub's data set, and its rows with our names of the fields."""
    # slow to import
    import datasets

    name, repository = "/".join((*source.hub, source.split)), source.hub[0]
    refusal = hub.look_up(repository, "dataset")
    no_network = refusal is not None and hub.is_network(refusal)
    try:
        if refusal is not None and hub.is_absent(refusal):
            raise refusal
        with hub.offline(no_network):
            loaded = datasets.load_dataset(*source.hub, split=source.split)
    # of many kinds: no network, no such name, a changed layout
    except Exception as error:
        why = hub.reason(refusal if no_network else error, f"datasets/{repository}")
        raise ValueError(
            f"cannot load data set {name} from the hub: {why}; or set data_dir to a folder with "
            f"{Path(source.file).name} (--config.task.data_dir, evaluate's --data_dir)"
        ) from error
    return name, [
        {"id": str(number)}
        | dict(row)
        | rename_fields(row, source.fields, f"{name}, row {number + 1}")
        for number, row in enumerate(loaded)
    ]


def rename_fields(row: Mapping, fields: Mapping[str, Any], where: str) -> dict:
    """A hub row's values under our names; ValueError names a row that lacks a field."""
    values = {}
    for ours, field in fields.items():
        try:
            values[ours] = field(row) if callable(field) else row.get(field)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{where}: {ours!r} cannot be taken from {dict(row)!r:.300} ({error!r}); the hub's "
                "data has changed or is damaged: set data_dir to a folder with the declared rows"
            ) from None
    return values


def check(rows: list[dict], where: str) -> None:
    """ValueError for the first row (from 1) with a missing or empty field, or a repeated id."""
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        for field in ("id", "problem", "answer"):
            if field not in row or row[field] is None:
                raise ValueError(
                    f"{where}, row {number}: no field {field!r}; it has {', '.join(sorted(row))}"
                )
            if not isinstance(row[field], str) or not row[field].strip():
                raise ValueError(
                    f"{where}, row {number} (id {row['id']!r}): {field} is {row[field]!r}; it must "
                    "be a text that is not empty"
                )
        if row["id"] in seen:
            raise ValueError(
                f"{where}, row {number}: the id {row['id']!r} is that of row {seen[row['id']]}"
            )
        seen[row["id"]] = number
    if not rows:
        raise ValueError(f"{where} has no rows")


def content_hash(rows: Iterable[dict]) -> str:
    """12 hex digits of the SHA-256 of all problems and answers.

    It depends neither on the order of the rows nor on white space.
    """
    plain = sorted(
        json.dumps([" ".join(row["problem"].split()), " ".join(row["answer"].split())])
        for row in rows
    )
    return hashlib.sha256("\n".join(plain).encode()).hexdigest()[:12]
