"""Names of the files of a run directory, and which of them there are."""

from __future__ import annotations

import json
import os
import re
import tempfile

from bridge_jax.config import renamed
from bridge_jax.filesystem import files, textfile

# files that grow by a line for each step, or evaluation
GROWS = ("metrics.jsonl", "solved.jsonl")
# folders with a file for each step
FOLDERS = ("rollouts", "batches")
OF_STEP = re.compile(r"(?:step|eval)_(\d+)\.\w+")
# in the name of a save that is not complete
UNFINISHED = ".orbax-checkpoint-tmp"
# of finished.py: nothing is left to do
FINISHED = "finished.json"


def make_writable(workdir: str) -> str:
    """Make the directory; ValueError with the system's reason where it cannot hold a new file."""
    try:
        os.makedirs(workdir, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        if files.is_full(error):
            raise files.write_error(workdir, error) from error
        raise ValueError(
            f"cannot write to workdir {workdir!r}: {error.strerror}; take another --workdir."
        ) from None
    return workdir


def read_config(workdir: str) -> dict:
    """The content of config.json under the names of today; ValueError where it is none of a run."""
    path = os.path.join(workdir, "config.json")
    try:
        record = json.loads(textfile.read(path))
        assert isinstance(record["config"], dict)
        return renamed.record(record)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(
            f"{path} is no config of a run ({error!r}): repair it, or take another --workdir."
        ) from None


def names(folder: str) -> list[str]:
    """Names in the folder; [] where there is none."""
    return os.listdir(folder) if os.path.isdir(folder) else []


def begun(workdir: str) -> bool:
    """Whether the directory holds a line or a checkpoint, which another config would not continue.

    An incomplete save of a killed process is no checkpoint.
    """
    metrics, saved = os.path.join(workdir, "metrics.jsonl"), os.path.join(workdir, "checkpoints")
    return (os.path.exists(metrics) and os.path.getsize(metrics) > 0) or any(
        not name.startswith(".") and UNFINISHED not in name for name in names(saved)
    )


def recorded(workdir: str) -> bool:
    """Whether there is a line, or a file of a step, even of an evaluation that was cut off."""
    grown = (os.path.join(workdir, name) for name in GROWS)
    kept = (name for folder in FOLDERS for name in names(os.path.join(workdir, folder)))
    return any(os.path.exists(path) and os.path.getsize(path) for path in grown) or any(
        map(OF_STEP.fullmatch, kept)
    )
