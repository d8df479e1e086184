r"""Demonstrations from public data: `python -m experiments.traces --from=NAME --out=demos.jsonl`.

Reads a data set of the hub (--from=deepmath, or any repository) or files (--source=FOLDER), chooses
the right solutions, and writes JSONL of {"problem", "solution", "answer", ...}, which task.traces
reads, with a manifest of the source and of every row that was dropped (docs/data.md). Rows are
streamed. After an interruption the same command goes on from the rows done.

Exit codes: 0 done; 2 a flag or the data are at fault; 3 the grader fails its self-test; 5 the disk
is full; 130 interrupted.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from absl import flags

from bridge_jax.data import contamination, demo_schemas, row_source
from bridge_jax.data.contamination import HeldOut
from bridge_jax.data.demo_file import DemoFile, fill, pinned_revision
from bridge_jax.data.demo_schemas import Schema
from bridge_jax.data.demo_selection import Criteria
from bridge_jax.data.row_source import RowSource
from bridge_jax.data.tokenizers import HFTokenizer
from bridge_jax.evaluation.lazy_pool import LazyPool
from bridge_jax.filesystem import files
from bridge_jax.grading import selftest
from bridge_jax.grading.pool import PoolError
from bridge_jax.rundir.progress import progress
from experiments.cli import define_path, fail, fail_by, log_to_stderr, run_command
from experiments.traces import criteria

logger = logging.getLogger(__name__)


def given_schema() -> Schema | None:
    """The schema of --columns or --schema; None where neither is given."""
    columns, name = flags.FLAGS.columns, flags.FLAGS.schema
    if columns and name:
        raise ValueError("give one of --columns and --schema")
    if columns:
        return demo_schemas.by_columns(columns)
    return demo_schemas.named(name) if name else None


def open_source(out: str) -> tuple[RowSource, Schema]:
    """The source of --from or --source, and its schema."""
    hub, local, given = flags.FLAGS["from"].value, flags.FLAGS.source, given_schema()
    if bool(hub) == bool(local):
        known = ", ".join(schema.name for schema in demo_schemas.SCHEMAS if schema.hub)
        raise ValueError(
            f"give one of --from=NAME ({known}, or a repository of the hub) and "
            "--source=FOLDER_OR_FILE"
        )
    if hub:
        source, named = open_repository(hub, out)
        return source, given or named or demo_schemas.recognised(source.columns)
    for flag in ("subset", "revision"):
        if getattr(flags.FLAGS, flag):
            raise ValueError(f"--{flag} belongs to --from, not to --source")
    where = f"--source={local}"
    paths = row_source.find_files(local, where)
    if not paths:
        raise ValueError(
            f"{where}: no {', '.join(row_source.SUFFIXES)} found; give a folder, a file, or a "
            "pattern in quotes such as 'data/train-*.parquet'"
        )
    source = row_source.open_files(paths, where)
    return source, given or demo_schemas.recognised(source.columns)


def open_repository(hub: str, out: str) -> tuple[RowSource, Schema | None]:
    """The source of --from, and its schema where the repository is a known one."""
    schema = demo_schemas.find(hub)
    if schema is None and "/" not in hub:
        # a repository has an owner: this is a short name with a typo
        demo_schemas.named(hub)
    if schema and not schema.hub:
        raise ValueError(f"--from={hub} is a schema; give its files with --source")
    name = schema.hub if schema else hub
    config = flags.FLAGS.subset or (schema.config if schema else "")
    revision = flags.FLAGS.revision or pinned_revision(out, name)
    try:
        source = row_source.open_hub(name, config, flags.FLAGS.split, revision, streaming=True)
    except ValueError as error:
        raise ValueError(
            f"{error}. Check --from, --subset and --split, or give a copy with --source=FOLDER"
        ) from error
    return source, schema


def measure():
    """The function of the lengths of texts in tokens, and what names the tokenizer.

    Without a tokenizer lengths are in characters.
    """
    folder = flags.FLAGS.tokenizer
    if not folder:
        if flags.FLAGS.max_tokens:
            raise ValueError("--max_tokens counts tokens: give the model's --tokenizer=FOLDER")
        return lambda texts: [len(text) for text in texts], ""
    tokenizer = HFTokenizer(folder)
    file = Path(folder) / "tokenizer.json"
    name = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else folder
    # the end-of-sequence token of a demonstration counts
    return lambda texts: [count + 1 for count in tokenizer.count(texts)], name


def make(out: str) -> dict[str, Any]:
    """Write the demonstrations and their manifest, which is returned; {} where they are there."""
    for flag in ("max_tokens", "limit"):
        if getattr(flags.FLAGS, flag) < 0:
            raise ValueError(f"--{flag}={getattr(flags.FLAGS, flag)}; it must be at least 0")
    data_dir = flags.FLAGS.data_dir
    if data_dir and not Path(data_dir).is_dir():
        raise ValueError(f"--data_dir={data_dir} is no folder; leave it out to read from the hub")
    grader = criteria.grader(flags.FLAGS.grader)
    lengths, tokenizer = measure()
    source, schema = open_source(out)
    columns = schema.columns_of(source.columns)
    logger.info("%s: %s rows, schema %s", source.name, source.total, schema.name)
    names = ("split", "columns", "max_tokens", "match", "decontaminate", "limit", "grader", "box")
    arguments = {name: getattr(flags.FLAGS, name) for name in names}
    arguments |= {"schema": schema.name, "tokenizer": tokenizer}
    match = None
    if flags.FLAGS.match:
        match = criteria.problems_to_match(flags.FLAGS.match, data_dir)
    held_out, missing = criteria.benchmarks(flags.FLAGS.decontaminate, data_dir)
    sizes = {name: len(problems) for name, problems in held_out.items()}
    made_by = {
        "source": source.origin,
        "arguments": arguments,
        "benchmarks": {"used": sizes, "not_loaded": missing, "copies": contamination.RULE},
        "task": {"problems_to_match": None if match is None else len(match)},
    }
    output = DemoFile(out, made_by)
    if output.complete:
        print(f"{out} is there already: {output.summary()}")
        return {}
    if output.rows:
        logger.info("going on from row %d (%s)", output.rows, output.summary())
    with LazyPool() as pool:
        wanted = Criteria(
            grader,
            pool.grade,
            lengths,
            flags.FLAGS.max_tokens,
            HeldOut(held_out),
            match,
            flags.FLAGS.box,
        )
        rows = source.read(output.rows, columns)
        with progress(source.total, output.rows, "traces", unit="row") as show:
            failure = fill(output, rows, schema, wanted, flags.FLAGS.limit, show)
    return output.finish(failure, flags.FLAGS.allow_none)


def main(argv: list[str]) -> None:
    """Make the file, and turn errors into one line and an exit code."""
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}")
    log_to_stderr()
    out = flags.FLAGS.out
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        busy = f"another command is writing {out}; wait for it, or give another --out"
        with files.file_lock(f"{out}.lock", busy, remove=True):
            manifest = make(out)
    except (selftest.GraderBroken, PoolError) as error:
        fail(str(error), code=3)
    except (ValueError, OSError) as error:
        fail_by(error)
    if manifest:
        tokens = manifest["tokens"]
        unit = "tokens" if manifest["arguments"]["tokenizer"] else "characters"
        counts = ", ".join(
            f"{count} {state.replace('_', ' ')}"
            for state, count in manifest["states"].items()
            if count
        )
        print(
            f"{out}: {manifest['rows']} rows read: {counts}; {unit}: median {tokens['median']}, "
            f"95% {tokens['p95']}, max {tokens['max']}"
        )


def define_flags() -> None:
    """The flags of this command."""
    known = ", ".join(schema.name for schema in demo_schemas.SCHEMAS if schema.hub)
    flags.DEFINE_string("from", "", f"data set of the hub: {known}, or a repository")
    define_path("source", "", "instead: a folder, file or pattern of parquet and JSONL")
    define_path("out", None, "the JSONL to write", required=True)
    flags.DEFINE_string("subset", "", "configuration of the repository, such as extended")
    flags.DEFINE_string("split", "train", "split of the repository")
    flags.DEFINE_string(
        "revision", "", "commit, branch or tag of the repository; empty: the newest"
    )
    flags.DEFINE_string("schema", "", "how the columns are read; empty: by the name or the columns")
    flags.DEFINE_string(
        "columns", "", "instead of a schema: problem:COLUMN,solution:COLUMN,answer:COLUMN"
    )
    define_path("tokenizer", "", "folder or hub name of the model whose tokens are counted")
    flags.DEFINE_integer("max_tokens", 0, "longest solution, end of sequence counted; 0: no limit")
    flags.DEFINE_string("match", "", "keep only the training problems of this task, such as limr")
    flags.DEFINE_string(
        "decontaminate", "all", "drop problems of these tasks; all: every benchmark; none"
    )
    define_path("data_dir", "", "folder of the rows of --match and --decontaminate; empty: the hub")
    flags.DEFINE_integer("limit", 0, "stop after so many demonstrations; 0: read every row")
    flags.DEFINE_bool("allow_none", False, "an empty file is no error: no row became one")
    flags.DEFINE_string("grader", "math", "math, a task with an own grader, or none")
    flags.DEFINE_bool("box", False, "state the answer in a box where the solution has none")


def start() -> None:
    """The command, with its flags."""
    define_flags()
    run_command(main)
