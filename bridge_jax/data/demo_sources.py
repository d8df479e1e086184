"""Rows of data sets of any size: from the hub at a pinned revision, or from parquet and JSONL files.

Rows are streamed, so that memory does not grow with the data. Reading can begin at any row, for a
command that goes on. A source's `origin` says exactly which data these were: the revision's hash on
the hub, the hash of each file. Left out: what the columns mean (demo_schemas.py).
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bridge_jax.filesystem import textfile

SUFFIXES = (".parquet", ".jsonl", ".json")
# rows of a record batch: few, since solutions may have 100,000 characters
BATCH = 64
# Bytes of a column that are read at a time. Without it a whole row group is read at once, and some
# writers make one row group of the whole file.
BUFFER = 1 << 20
# rows of a JSONL file whose keys are its columns: a key may be left out where it is null
FIRST_ROWS = 100


class Source(NamedTuple):
    """Rows that can be read from any one on."""

    name: str  # for messages
    origin: dict[str, Any]  # which data, for the manifest
    columns: tuple[str, ...]
    total: int | None  # rows; None where nobody knows
    read: Callable[[int, Sequence[str]], Iterator[dict]]  # (rows to skip, columns) -> rows


def open_files(given: str) -> Source:
    """The parquet and JSONL files of a folder, of a pattern, or one file; in order of their names.

    ValueError where there is none, and where one cannot be read.
    """
    paths = find_files(given)
    contents = [describe(path) for path in paths]
    columns = dict.fromkeys(column for path in paths for column in columns_of(path))
    total = sum(file.pop("rows") for file in contents)
    if not total:
        raise ValueError(f"{given} has no rows, in {len(paths)} files: {paths[0]}, ...")
    return Source(
        given,
        {"files": contents},
        tuple(columns),
        total,
        lambda skip, wanted: read_files(paths, skip, wanted),
    )


def find_files(given: str) -> list[Path]:
    """The files that a folder, a pattern or a path stands for, sorted."""
    path = Path(given).expanduser()
    if path.is_dir():
        found = (one for one in path.rglob("*") if one.suffix in SUFFIXES)
    else:
        found = (Path(one) for one in glob.glob(str(path), recursive=True))
    hidden = lambda one: any(
        part.startswith(".") for part in one.parts[len(path.parts) * path.is_dir() :]
    )
    files = sorted(one for one in found if one.is_file() and not (path.is_dir() and hidden(one)))
    if not files:
        raise ValueError(
            f"--source={given}: no {', '.join(SUFFIXES)} found; give a folder, a file, or a "
            "pattern in quotes such as 'data/train-*.parquet'"
        )
    if odd := [str(one) for one in files if one.suffix not in SUFFIXES]:
        raise ValueError(f"--source={given}: {odd[0]} is none of {', '.join(SUFFIXES)}")
    return files


def describe(path: Path) -> dict[str, Any]:
    """Name, size, hash and number of rows of a file."""
    digest, newlines, size, last = hashlib.sha256(), 0, 0, b"\n"
    with open(path, "rb") as file:
        while block := file.read(BUFFER):
            digest.update(block)
            newlines, size, last = newlines + block.count(b"\n"), size + len(block), block[-1:]
    rows = newlines + (last != b"\n")
    if path.suffix == ".parquet":
        with open_parquet(path) as table:
            rows = table.metadata.num_rows
    return {"name": path.name, "bytes": size, "sha256": digest.hexdigest(), "rows": rows}


def open_parquet(path: Path):
    """The file as a ParquetFile; ValueError where it is none."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)
    except pyarrow.ArrowException as error:
        with open(path, "rb") as file:
            pointer = file.read(40).startswith(b"version https://git-lfs")
        hint = "; it is a pointer of Git LFS: fetch it with `git lfs pull`" if pointer else ""
        raise ValueError(f"{path} is no parquet file ({one_line(error)}){hint}") from None


def columns_of(path: Path) -> list[str]:
    """The names of a file's columns; of JSONL, the keys of its first rows."""
    if path.suffix == ".parquet":
        with open_parquet(path) as table:
            return table.schema_arrow.names
    rows = itertools.islice(json_rows(path), FIRST_ROWS)
    return list(dict.fromkeys(key for row in rows for key in row))


def read_files(paths: Sequence[Path], skip: int, columns: Sequence[str]) -> Iterator[dict]:
    """The rows of the files from row `skip` on."""
    for path in paths:
        if path.suffix == ".parquet":
            with open_parquet(path) as table:
                rows = table.metadata.num_rows
                if skip < rows:
                    yield from parquet_rows(table, path, skip, columns)
                skip = max(0, skip - rows)
            continue
        for row in json_rows(path):
            if skip:
                skip -= 1
            else:
                yield row


def parquet_rows(table, path: Path, skip: int, columns: Sequence[str]) -> Iterator[dict]:
    """The rows of a parquet file; row groups before row `skip` are not read."""
    import pyarrow

    missing = [column for column in columns if column not in table.schema_arrow.names]
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(missing)}, which other files have; it has "
            f"{', '.join(table.schema_arrow.names)}. Give --source a pattern that leaves it out"
        )
    groups = list(range(table.num_row_groups))
    while groups and skip >= table.metadata.row_group(groups[0]).num_rows:
        skip -= table.metadata.row_group(groups.pop(0)).num_rows
    try:
        for batch in table.iter_batches(BATCH, groups, list(columns)):
            if skip < batch.num_rows:
                yield from batch.slice(skip).to_pylist()
            skip = max(0, skip - batch.num_rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read ({one_line(error)})") from error


def json_rows(path: Path) -> Iterator[dict]:
    """The objects of a JSONL file, blank lines left out; ValueError names an invalid line."""
    with open(path, "rb") as file:
        for number, line in enumerate(textfile.lines(file, str(path)), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number}: no JSON ({error}); the file must have one object a "
                    "line"
                ) from None
            if not isinstance(row, dict):
                raise ValueError(
                    f"{path}, line {number}: must be an object, is {type(row).__name__}; the file "
                    "must have one object a line"
                )
            yield row


def open_hub(name: str, config: str, split: str, revision: str) -> Source:
    """A split of a data set of the hub, at the commit that `revision` now means ("": the newest).

    ValueError where it cannot be had.
    """
    import datasets  # slow to import
    import huggingface_hub

    where = "/".join(filter(None, (name, config, split)))
    try:
        commit = (
            huggingface_hub.HfApi().dataset_info(name, revision=revision or None, timeout=30).sha
        )
    except Exception as error:  # of many kinds: no network, no such name, no such revision
        raise ValueError(
            f"cannot find {name}{f' at revision {revision}' if revision else ''} on the hub "
            f"({type(error).__name__}: {one_line(error)}). Check the name and the network, or give "
            "a copy with --source=FOLDER"
        ) from error
    try:
        rows = datasets.load_dataset(
            name, config or None, split=split, revision=commit, streaming=True
        )
        columns = rows.column_names or list(next(iter(rows), {}))
    except Exception as error:  # no such configuration or split, a changed layout, no network
        raise ValueError(
            f"cannot read {where} from the hub ({type(error).__name__}: {one_line(error)})"
        ) from error
    if not columns:
        raise ValueError(f"{where} has no rows")
    known = (rows.info.splits or {}).get(split)
    origin = {"hub": name, "config": config, "split": split, "revision": commit}
    return Source(
        where,
        origin,
        tuple(columns),
        known.num_examples if known else None,
        lambda skip, wanted: hub_rows(rows, where, skip, wanted),
    )


def hub_rows(rows, where: str, skip: int, columns: Sequence[str]) -> Iterator[dict]:
    """The rows of a streamed data set from row `skip` on."""
    number = skip
    try:
        for row in rows.select_columns(list(columns)).skip(skip):
            yield row
            number += 1
    except Exception as error:  # of many kinds: the network, a damaged file
        raise ValueError(
            f"{where}: row {number} cannot be read ({type(error).__name__}: {one_line(error)}); the "
            "same command goes on from the rows done"
        ) from error


def one_line(error: BaseException) -> str:
    """The text of an error on one line, at most 300 characters."""
    return " ".join(str(error).split())[:300]
