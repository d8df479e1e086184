"""The files of an evaluation: a manifest that says what its numbers stand for, and transcripts that only grow.

A transcript is a JSONL file, one line for each completion, known by its problem's id and its sample. Every append is on
disk when it returns, or nothing of it is; a line that a kill tore is cut off when the file is opened again. The manifest
keeps rows of another model, prompt or setting from being mixed in. Left out: what a row holds (evaluate.py).
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from bridge_jax import settings, textfile

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"


def open_folder(folder: str | Path, manifest: Mapping[str, Mapping]) -> Path:
    """Makes the folder with manifest.json, or checks that what stands there was made in the same way.

    manifest: {group: {key: value}}; a group that only one side has is no difference and is kept, so that more tasks and
    samples can be added to a folder. ValueError shows what differs, or that the folder cannot be used.
    """
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out={folder}: {error.strerror}; give a folder that can be written"
        ) from None
    path, wanted = folder / MANIFEST, settings.to_json(manifest)
    there = {}
    if path.exists():
        try:
            there = json.loads(textfile.read(path))
            shared = {group: part for group, part in wanted.items() if group in there}
            changes = settings.diff(shared, {group: there[group] for group in shared})
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{path} is no manifest of an evaluation ({error}); give a new --out"
            ) from None
        if changes:
            raise ValueError(
                f"{folder} holds an evaluation that was made otherwise:\n"
                f"{settings.format_diff(changes, 'asked for', 'there')}\nTake another --out, or ask for the same"
            )
    elif found := sorted(file.name for file in folder.glob("*.jsonl")):
        raise ValueError(
            f"{folder} holds {', '.join(found)} but no {MANIFEST}: nobody knows how they were made. Take "
            "another --out"
        )
    write(path, json.dumps(there | wanted, indent=1, sort_keys=True) + "\n")
    return folder


def write(path: Path, text: str) -> None:
    """Writes a file so that a kill or a full disk leaves the old one or the new one, never a part; OSError says which."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except OSError as error:
        os.unlink(temporary)
        raise OSError(
            f"{path} could not be written ({error.strerror}); what stood there before is unchanged. Make room "
            "and run the same command again"
        ) from error


class Transcripts:
    """One growing JSONL file. `rows`: {(id, sample): row} of what is on disk."""

    def __init__(self, path: Path):
        self.path, self.rows = path, {}
        text = path.read_bytes() if path.exists() else b""
        textfile.refuse_mark(text, str(path))
        whole, torn = text[: text.rfind(b"\n") + 1], text[text.rfind(b"\n") + 1 :]
        if torn:
            logger.warning("%s: its last line was torn and is dropped", path)
            os.truncate(path, len(whole))
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            try:
                row = json.loads(line)
                self.rows.setdefault((row["id"], row["sample"]), row)
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{path}: line {number} is no row of a transcript: {line[:80]!r}. Mend or remove the "
                    "line, or take another --out"
                ) from None

    def append(self, rows: Iterable[Mapping]) -> None:
        """Writes the rows that are not there yet; on OSError the file is as it was before."""
        new = {
            (row["id"], row["sample"]): dict(row)
            for row in rows
            if (row["id"], row["sample"]) not in self.rows
        }
        # surrogates cannot be encoded, so that non-ASCII is escaped
        left = memoryview("".join(json.dumps(row) + "\n" for row in new.values()).encode())
        with open(
            self.path, "ab", buffering=0
        ) as file:  # a buffer would be written again when the file is closed
            before = os.fstat(file.fileno()).st_size
            try:
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError as error:
                os.ftruncate(file.fileno(), before)
                raise OSError(
                    f"{self.path} could not be written ({error.strerror}). The {len(self.rows)} rows written "
                    "before are complete; make room and run the same command again, it goes on from "
                    "there"
                ) from error
        self.rows |= new
