"""Where rows come from: parquet and JSONL files, folders and patterns of them, or the hub.

One reader for whoever reads data: demonstrations (experiments.traces), problems of one's own
(tables.py), declared data sets (datasets.py). Rows are streamed, so that memory does not grow with
the data, from any row on, for a command that goes on. `origin` says exactly which data these were:
the commit on the hub, the hash of each file. Left out: what the columns mean (demo_schemas.py).
"""

from __future__ import annotations

import codecs
import functools
import glob
import hashlib
import itertools
import json
import re
import string
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bridge_jax.filesystem import hub, textfile

SUFFIXES = (".parquet", ".jsonl", ".json")
# owner/name, owner/name/config, each with @REVISION and then #SPLIT behind it or without
HUB_NAME = re.compile(
    r"(?P<name>[\w-][\w.-]*/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?"
    r"(?:#(?P<split>[\w.-]+))?"
)
# what the library says of a split that is not there; the names of the others follow
NO_SPLIT = re.compile(r"(?:Unknown|Bad) split")
# of a line that is no row: white space, and the mark at the beginning of some files
BLANK = string.whitespace.encode() + codecs.BOM_UTF8
# rows of a record batch: few, since solutions may have 100,000 characters
BATCH = 64
# Bytes of a column that are read at a time. Without it a whole row group is read at once, and some
# writers make one row group of the whole file.
BUFFER = 1 << 20
# rows of a JSONL file whose keys are its columns: a key may be left out where it is null
FIRST_ROWS = 100


class RowSource(NamedTuple):
    """Rows that can be read from any one on."""

    name: str  # for messages
    origin: dict[str, Any]  # which data, for a manifest
    columns: tuple[str, ...]
    total: int | None  # rows; None where nobody knows
    # (rows to skip, columns; none: all) -> rows
    read: Callable[..., Iterator[dict]]


def open_any(given: str, where: str, split: str = "train") -> RowSource:
    """The files that `given` stands for or, where there are none, the hub's data set of that name.

    split: of the hub's data set, unless the name has one of its own (NAME#SPLIT). ValueError begins
    with `where`, such as task.train=NAME.
    """
    if paths := find_files(given, where):
        return open_files(paths, where)
    named = HUB_NAME.fullmatch(given)
    if not named or given.partition("#")[0].endswith(SUFFIXES):
        raise ValueError(
            f"{where}: no such file or folder; give a {', '.join(SUFFIXES)} file, a folder or a "
            "pattern of them, or a hub name such as owner/name (owner/name/config where it has "
            "several, owner/name@REVISION for a commit, owner/name#SPLIT for a split)"
        )
    config, revision = named["config"] or "", named["revision"] or ""
    try:
        return open_hub(named["name"], config, named["split"] or split, revision)
    except ValueError as error:
        way_out = "give a local copy"
        if NO_SPLIT.search(str(error)):
            way_out = f"name one of these splits, as {given.partition('#')[0]}#SPLIT"
        raise ValueError(f"{where} is no file or folder here, and: {error}; {way_out}") from error


def find_files(given: str, where: str) -> list[Path]:
    """The files that a path, a folder or a pattern stands for, sorted; [] where there are none.

    Hidden files of a folder do not count. ValueError for files of other kinds.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        found = (one for one in path.rglob("*") if one.suffix in SUFFIXES and one.is_file())
        files = [one for one in found if not is_hidden(one.relative_to(path))]
        if not files:
            raise ValueError(f"{where}: the folder has no {', '.join(SUFFIXES)} file")
        return sorted(files)
    found = (Path(one) for one in glob.glob(str(path), recursive=True))
    # a name may hold the signs of a pattern
    files = sorted(one for one in found if one.is_file()) or [path] * path.is_file()
    if odd := [str(one) for one in files if one.suffix not in SUFFIXES]:
        raise ValueError(f"{where}: {odd[0]} is none of {', '.join(SUFFIXES)}")
    return files


def is_hidden(path: Path) -> bool:
    """Whether a file or one of its folders is hidden."""
    return any(part.startswith(".") for part in path.parts)


def open_files(paths: Sequence[Path], where: str) -> RowSource:
    """The rows of parquet and JSONL files, in this order; ValueError where there are none."""
    contents = [describe(path) for path in paths]
    columns = dict.fromkeys(column for path in paths for column in columns_of(path))
    total = sum(file.pop("rows") for file in contents)
    if not total:
        raise ValueError(f"{where} has no rows" + f", in {len(paths)} files" * (len(paths) > 1))

    def read(skip: int = 0, wanted: Sequence[str] = ()) -> Iterator[dict]:
        return read_files(paths, skip, wanted)

    return RowSource(where, {"files": contents}, tuple(columns), total, read)


def describe(path: Path) -> dict[str, Any]:
    """Name, size, hash and number of rows of a file; blank lines are no rows."""
    digest, rows, size = hashlib.sha256(), 0, 0
    is_parquet = path.suffix == ".parquet"
    with open(path, "rb") as file:
        # what parquet has between two newlines may be the whole file
        pieces = iter(functools.partial(file.read, BUFFER), b"") if is_parquet else file
        for piece in pieces:
            digest.update(piece)
            rows, size = rows + bool(piece.strip(BLANK)), size + len(piece)
    if is_parquet:
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
    return list(dict.fromkeys(key for _, row in rows for key in row))


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
        for _, row in json_rows(path):
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
            f"{', '.join(table.schema_arrow.names)}. Give a pattern that leaves it out"
        )
    groups = list(range(table.num_row_groups))
    while groups and skip >= table.metadata.row_group(groups[0]).num_rows:
        skip -= table.metadata.row_group(groups.pop(0)).num_rows
    try:
        for batch in table.iter_batches(BATCH, groups, list(columns) or None):
            if skip < batch.num_rows:
                yield from batch.slice(skip).to_pylist()
            skip = max(0, skip - batch.num_rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read ({one_line(error)})") from error


def json_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """(number of the line, object) of a JSONL file, blank lines left out.

    ValueError names an invalid line. Lines are split at newlines alone, since strings may contain
    other line ends.
    """
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
            yield number, row


def open_hub(
    name: str, config: str = "", split: str = "train", revision: str = "", streaming: bool = False
) -> RowSource:
    """A split of a data set of the hub, at the commit that `revision` now means ("": the newest).

    streaming: nothing is stored on disk, and the commit must be known; otherwise an earlier
    download is read where there is no network. ValueError where it cannot be had.
    """
    import datasets  # slow to import

    where = "/".join(filter(None, (name, config, split)))
    commit, refusal = hub.look_up(name, "dataset", revision)
    no_network = refusal is not None and hub.is_network(refusal)
    try:
        if refusal is not None and (streaming or hub.is_absent(refusal)):
            raise refusal
        with hub.offline(no_network):
            rows = datasets.load_dataset(
                name, config or None, split=split, revision=commit, streaming=streaming
            )
        columns = rows.column_names or list(next(iter(rows), {}))
    except Exception as error:  # of many kinds: no network, no such name, a changed layout
        why = hub.reason(refusal if no_network else error, f"datasets/{name}", cached=not streaming)
        at = f" at revision {revision}" if revision else ""
        raise ValueError(f"cannot load data set {where}{at} from the hub: {why}") from error
    total = hub_total(rows, split) if streaming else len(rows)
    if not columns or total == 0:
        raise ValueError(f"the data set {where} has no rows")

    def read(skip: int = 0, wanted: Sequence[str] = ()) -> Iterator[dict]:
        return hub_rows(rows, where, skip, wanted)

    origin = {"hub": name, "config": config, "split": split, "revision": commit}
    return RowSource(where, origin, tuple(columns), total, read)


def hub_total(rows: Any, split: str) -> int | None:
    """The rows of a streamed data set by its card; None where it does not say."""
    known = (rows.info.splits or {}).get(split)
    return known.num_examples if known else None


def hub_rows(rows: Any, where: str, skip: int, columns: Sequence[str]) -> Iterator[dict]:
    """The rows of a data set of the hub from row `skip` on."""
    number = skip
    try:
        chosen = rows.select_columns(list(columns)) if columns else rows
        for row in chosen.skip(skip) if skip else chosen:
            yield row
            number += 1
    except Exception as error:  # of many kinds: the network, a damaged file
        raise ValueError(
            f"{where}: row {number} cannot be read ({type(error).__name__}: {one_line(error)}); "
            "run the same command again"
        ) from error


def one_line(error: BaseException) -> str:
    """The text of an error on one line, at most 300 characters."""
    return " ".join(str(error).split())[:300]
