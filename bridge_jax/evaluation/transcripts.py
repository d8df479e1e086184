"""The files of an evaluation: a manifest of how it was made, and transcripts that only grow.

A transcript is a JSONL file with one line for each completion. The problem's id and the sample
identify a line. An append is on disk completely when it returns, or not at all; an incomplete line
of a killed process is cut off when the file is opened again. The manifest keeps out rows of another
model, prompt or setting; a lock keeps out a second process.
Left out: the content of a row (evaluate.py), how files are written (filesystem/files.py).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bridge_jax.config import schema
from bridge_jax.filesystem import files, textfile

MANIFEST, LOCK = "manifest.json", ".evaluation.lock"


def open_folder(folder: str | Path, manifest: Mapping[str, Mapping]) -> Path:
    """Make the folder with manifest.json, or check that its evaluation was made in the same way.

    manifest: {group: {key: value}}. A group that only one side has is no difference and is kept, so
    that tasks and samples can be added to a folder. ValueError shows what differs, or why the
    folder cannot be used.
    """
    folder = _made(folder)
    path, wanted = folder / MANIFEST, schema.to_json(manifest)
    there = {}
    if path.exists():
        try:
            there = json.loads(textfile.read(path))
            shared = {group: part for group, part in wanted.items() if group in there}
            changes = schema.diff(shared, {group: there[group] for group in shared})
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{path} is no manifest of an evaluation ({error}); give a new --out"
            ) from None
        if changes:
            raise ValueError(
                f"{folder} holds an evaluation that was made otherwise:\n"
                f"{schema.format_diff(changes, 'asked for', 'there')}\nTake another --out, or ask "
                "for the same"
            )
    elif found := sorted(file.name for file in folder.glob("*.jsonl")):
        raise ValueError(
            f"{folder} holds {', '.join(found)} but no {MANIFEST}, so that it is unknown how they "
            "were made. Take another --out"
        )
    files.replace(path, json.dumps(there | wanted, indent=1, sort_keys=True) + "\n")
    return folder


@contextlib.contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Make the folder and lock it for this process; ValueError while another process has it."""
    folder = _made(folder)
    refusal = (
        f"another process evaluates into --out={folder}; wait for it or stop it, or take another "
        "--out"
    )
    with files.file_lock(folder / LOCK, refusal, remove=True):
        files.remove_unfinished(folder)
        yield


def _made(folder: str | Path) -> Path:
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if files.is_full(error):
            raise files.write_error(folder, error) from error
        raise ValueError(
            f"--out={folder}: {error.strerror}; give a folder that can be written"
        ) from None
    return folder


class Transcripts:
    """One growing JSONL file. `rows`: {(id, sample): row} of the lines on disk."""

    def __init__(self, path: Path):
        self.path, self.rows = path, {}
        if not path.exists():
            return
        files.mend(path)
        for number, line in enumerate(files.lines(path), 1):
            try:
                row = json.loads(line)
                self.rows.setdefault((row["id"], row["sample"]), row)
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{path}: line {number} is no row of a transcript: {files.shorten(line)}. "
                    "Repair or remove the line, or take another --out"
                ) from None

    def append(self, rows: Iterable[Mapping]) -> None:
        """Write the rows that are not there yet; on OSError the file is as it was before."""
        new = {
            (row["id"], row["sample"]): dict(row)
            for row in rows
            if (row["id"], row["sample"]) not in self.rows
        }
        # json escapes everything beyond ASCII: UTF-8 cannot encode surrogates
        text = "".join(json.dumps(row) + "\n" for row in new.values())
        kept = f"The {len(self.rows)} rows written before are complete"
        files.append(self.path, text, assurance=kept)
        self.rows |= new
