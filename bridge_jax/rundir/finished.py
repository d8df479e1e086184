"""finished.json: the run has nothing left to do, which is known without reading its state.

It is written when a run has ended and its last checkpoint is complete, and has the step and the
size of each file of that checkpoint. It holds as long as this is the newest checkpoint, its files
have these sizes, and the last line of metrics is of this step. Otherwise the checkpoint is read,
and damaged steps are trained again. Left out: flipped bits, which are found when the state is read.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from bridge_jax.filesystem import files
from bridge_jax.rundir import layout, logbook

logger = logging.getLogger(__name__)
NAME = layout.FINISHED


def write(workdir: str, step: int) -> None:
    """Write finished.json. If that fails, the next start reads the checkpoint, that is all."""
    try:
        record = {"step": step, "files": sizes(workdir, step)}
        files.replace(Path(workdir) / NAME, json.dumps(record, indent=1))
    except OSError as error:
        logger.warning("%s was not written to %s: %s", NAME, workdir, error)


def last_line(workdir: str, end: int) -> dict | None:
    """The last line of metrics of a run that has taken step `end`; None where it has more to do."""
    try:
        record = json.loads((Path(workdir) / NAME).read_text())
        step, saved = record["step"], record["files"]
        line = logbook.read(workdir)[-1]
        whole = saved and saved == sizes(workdir, step) and step == newest(workdir)
        known = (Path(workdir) / "config.json").is_file()
        return line if end <= step == line["step"] and whole and known else None
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def newest(workdir: str) -> int:
    """Step of the newest checkpoint, by its name."""
    names = (path.name.removeprefix("step_") for path in checkpoints(workdir).glob("step_*"))
    return max(int(name) for name in names if name.isdigit())


def sizes(workdir: str, step: int) -> dict[str, int]:
    """Bytes of each file of a checkpoint."""
    folder = checkpoints(workdir) / f"step_{step:06d}"
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def checkpoints(workdir: str) -> Path:
    """The directory of the checkpoints."""
    return Path(workdir) / "checkpoints"
