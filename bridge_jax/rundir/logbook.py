"""The record of a run: metrics.jsonl, solved.jsonl, rollouts/ and batches/.

metrics.jsonl is append-only, with one JSON object on a line for each step: {"step": 12,
"reward/mean": 0.25}. A run that resumes at step k first cuts the file back to the steps <= k, so
that it agrees with the restored state, and warns of lines that are missing. Steps of which there is
no checkpoint are never cut: `set_aside` moves them. Numbers that JSON does not have (nan, inf) are
written as null, and their keys are listed under "nonfinite".

In a run of several processes, `writes=False` makes a Logbook that accepts everything and writes
nothing. Left out: config.json (run_config.py), checkpoints (checkpoint.py), plots and tables
(experiments/report.py).
"""

from __future__ import annotations

import collections
import io
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from bridge_jax.config import renamed, schema
from bridge_jax.filesystem import files
from bridge_jax.rundir import layout
from bridge_jax.rundir.mirrors import MIRRORS

logger = logging.getLogger(__name__)
# group/name
KEY = re.compile(r"[\w.-]+(/[\w.-]+)+")


class Logbook:
    """The files of a run that is under way.

    start_step: steps that the restored state has taken and logged. mirrors: keys of MIRRORS.
    taken: steps that the state has taken, if the last one is not logged yet; its rollouts are kept.
    """

    def __init__(
        self,
        workdir: str,
        start_step: int,
        mirrors: Iterable[str] = (),
        writes: bool = True,
        taken: int | None = None,
    ):
        self.workdir, self.step, self.writes, self._mirrors = workdir, start_step, writes, {}
        if not writes:
            return
        self._metrics = os.path.join(layout.make_writable(workdir), "metrics.jsonl")
        for folder in ("", *layout.FOLDERS):
            files.remove_unfinished(os.path.join(workdir, folder))
        for name in layout.GROWS:
            _cut_back(os.path.join(workdir, name), start_step)
        warn_of_flaws(workdir, start_step)
        _drop_later(os.path.join(workdir, "rollouts"), start_step if taken is None else taken)
        for name in mirrors:
            if name not in MIRRORS:
                raise ValueError(
                    f"unknown mirror log.mirrors={name!r}: {schema.did_you_mean(name, MIRRORS)}"
                )
            self._mirrors[name] = MIRRORS[name](workdir, start_step)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line. Values are scalars, str, bool or None.

        Fetch device arrays before: one by one, each would wait for the device. ValueError for a key
        that is not group/name, or a value that is no scalar.
        """
        assert step > self.step, f"metrics of step {step} after those of step {self.step}"
        values = {key: _scalar(key, value) for key, value in metrics.items()}
        self.step = step
        if not self.writes:
            return
        nonfinite = [
            key
            for key, value in values.items()
            if isinstance(value, float) and not math.isfinite(value)
        ]
        line = {"step": step} | values | dict.fromkeys(nonfinite)
        if nonfinite:
            line["nonfinite"] = nonfinite
        # the system has the line, so that a killed process loses nothing; `sync` puts it on disk
        files.append(self._metrics, json.dumps(line, allow_nan=False) + "\n", sync=False)
        numbers = {
            key: value
            for key, value in line.items()
            if key != "step" and isinstance(value, (int, float))
        }
        for name, mirror in list(self._mirrors.items()):
            try:
                mirror.write(step, numbers)
            except Exception as error:
                # whatever a service raises, the run goes on
                logger.warning(
                    "mirror %r failed at step %d and is left out from here on: %r",
                    name,
                    step,
                    error,
                )
                del self._mirrors[name]

    def write_rollouts(
        self, step: int, rows: Iterable[Mapping[str, Any]], kind: str = "step"
    ) -> str | None:
        """Write rollouts/{kind}_000012.jsonl, an object for each row; returns its path.

        Arrays become lists; nan and inf become null. kind: "step" or "eval".
        """
        if not self.writes:
            return None
        path = os.path.join(self.workdir, "rollouts", f"{kind}_{step:06d}.jsonl")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        files.replace(
            path,
            "".join(
                json.dumps(_plain(row), allow_nan=False, ensure_ascii=False) + "\n" for row in rows
            ),
        )
        return path

    def write_solved(self, step: int, solved: Mapping[str, str]) -> None:
        """Append to solved.jsonl: split -> a digit for each problem. The last line counts."""
        if self.writes:
            path = os.path.join(self.workdir, "solved.jsonl")
            files.append(path, json.dumps({"step": step, **solved}) + "\n")

    def sync(self) -> None:
        """Return once everything is on disk, before a checkpoint says that these steps are done."""
        if self.writes:
            files.sync_file(self._metrics)
            for folder in ("", *layout.FOLDERS):
                files.sync_folder(os.path.join(self.workdir, folder))

    def write_batch(self, step: int, arrays: Any) -> str | None:
        """Write batches/step_000012.npz; returns its path.

        The names are the paths of the arrays in the pytree, such as "rollouts/theta/logp_BT".
        """
        if not self.writes:
            return None
        path = os.path.join(self.workdir, "batches", f"step_{step:06d}.npz")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        leaves = jax.tree_util.tree_flatten_with_path(arrays)[0]
        named = {
            jax.tree_util.keystr(key, simple=True, separator="/"): _numpy(leaf)
            for key, leaf in leaves
        }
        buffer = io.BytesIO()
        np.savez(buffer, **named)
        files.replace(path, buffer.getvalue())
        return path

    def close(self) -> None:
        """Close the mirrors; may be called twice."""
        for name, mirror in self._mirrors.items():
            try:
                mirror.close()
            except Exception as error:
                logger.warning("mirror %r failed to close: %r", name, error)
        self._mirrors = {}

    def __enter__(self) -> Logbook:
        return self

    def __exit__(self, *error) -> None:
        self.close()


def read(workdir: str) -> list[dict]:
    """The lines of metrics.jsonl, without an incomplete last one; ValueError without the file."""
    path = os.path.join(workdir, "metrics.jsonl")
    if not os.path.exists(path):
        raise ValueError(
            f"no metrics.jsonl in {workdir!r}: give the --workdir of a run that was started."
        )
    return [renamed.metrics(line) for line, _ in _lines(path) if line is not None]


def read_solved(workdir: str, step: int | None = None) -> dict[str, str]:
    """The line of solved.jsonl of this step (None: the last) without its step; {} where none is."""
    path = os.path.join(workdir, "solved.jsonl")
    lines = [line for line, _ in _lines(path) if line is not None] if os.path.exists(path) else []
    lines = [line for line in lines if step in (None, line["step"])]
    return {key: value for key, value in (lines or [{}])[-1].items() if key != "step"}


def last_step(workdir: str) -> int:
    """The last step of metrics.jsonl; -1 where there is none."""
    path = os.path.join(workdir, "metrics.jsonl")
    found = [line["step"] for line, _ in _lines(path) if line] if os.path.exists(path) else []
    return max(found, default=-1)


def set_aside(workdir: str, after: int) -> str | None:
    """Move the record of the steps after `after`, which will be taken again; its new folder.

    after=-1: the whole record. None where there is nothing to move. Nothing is lost: the new folder
    has all the lines and a copy of config.json.
    """
    later = [
        os.path.join(folder, name)
        for folder in layout.FOLDERS
        for name in layout.names(os.path.join(workdir, folder))
        if (match := layout.OF_STEP.fullmatch(name)) and int(match[1]) > after
    ]
    if not (layout.recorded(workdir) if after < 0 else later or last_step(workdir) > after):
        return None
    place = files.free_name(workdir, "set_aside")
    os.makedirs(place)
    config = os.path.join(workdir, "config.json")
    if os.path.exists(config):
        shutil.copy2(config, place)
    # its statement about the checkpoints is no longer true
    if os.path.exists(os.path.join(workdir, layout.FINISHED)):
        later.append(layout.FINISHED)
    for name in later:
        os.makedirs(os.path.join(place, os.path.dirname(name)), exist_ok=True)
        os.rename(os.path.join(workdir, name), os.path.join(place, name))
    # last: without them, what is left is still recognised as a record
    for name in filter(
        lambda name: os.path.exists(os.path.join(workdir, name)), reversed(layout.GROWS)
    ):
        if after < 0:
            os.rename(os.path.join(workdir, name), os.path.join(place, name))
        else:
            shutil.copy2(os.path.join(workdir, name), place)
    return place


def _lines(path: str) -> Iterator[tuple[dict | None, str]]:
    """(object, text) of each line, without an incomplete last one; None for one without a step."""
    for text in files.lines(path):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        known = isinstance(line, dict) and isinstance(line.get("step"), int)
        yield line if known else None, text


def _cut_back(path: str, start_step: int) -> None:
    """Keep the steps <= start_step. The file is not written where these are all."""
    if not os.path.exists(path):
        return
    files.mend(path)
    found = list(_lines(path))
    keeps = [line is not None and line["step"] <= start_step for line, _ in found]
    if all(keeps):
        return
    end = max((n for n, keep in enumerate(keeps, 1) if keep), default=0)
    broken = [(n, text) for n, (line, text) in enumerate(found[:end], 1) if line is None]
    if broken:
        copy = files.free_name(os.path.dirname(path), f"damaged_{os.path.basename(path)}")
        shutil.copy2(path, copy)
        message = "; ".join(
            f"line {n} is none of a step: {files.shorten(text)}" for n, text in broken
        )
        logger.warning("%s: %s. Left out; the file as it was is %s", path, message, copy)
    logger.info("%s: cut back to step %d, %d line(s) dropped", path, start_step, keeps.count(False))
    kept = (text + b"\n" for (_, text), keep in zip(found, keeps) if keep)
    files.replace(path, b"".join(kept))


def warn_of_flaws(workdir: str, start_step: int) -> None:
    """Log a warning for each flaw of metrics.jsonl."""
    path = os.path.join(workdir, "metrics.jsonl")
    for flaw in flaws(path, start_step):
        logger.warning("%s: %s", path, flaw)


def flaws(path: str, start_step: int) -> list[str]:
    """Messages about steps from 1 to start_step that are missing, repeated or out of order."""
    found = [line["step"] for line, _ in _lines(path) if line] if os.path.exists(path) else []
    counts = collections.Counter(found)
    missing = [step for step in range(1, start_step + 1) if not counts[step]]
    repeated = [step for step in sorted(counts) if counts[step] > 1]
    messages = []
    if missing:
        messages.append(f"the line of {_steps(missing)} is missing; the checkpoint has taken them")
    if repeated:
        messages.append(f"{_steps(repeated)}: more than one line of each")
    if not repeated and found != sorted(found):
        messages.append("the steps are not in their order")
    return messages


def _steps(steps: list[int]) -> str:
    """[1, 2, 3, 7] as "steps 1 to 3, 7"."""
    ranges: list[list[int]] = []
    for step in steps:
        if ranges and step == ranges[-1][-1] + 1:
            ranges[-1][1:] = [step]
        else:
            ranges.append([step])
    described = ", ".join(" to ".join(map(str, one)) for one in ranges)
    return f"step{'s' * (len(steps) > 1)} {described}"


def _drop_later(folder: str, start_step: int) -> None:
    """Remove the rollout files of steps that will be taken again."""
    for name in layout.names(folder):
        match = layout.OF_STEP.fullmatch(name)
        if match and int(match[1]) > start_step:
            os.unlink(os.path.join(folder, name))


def _scalar(key: str, value: Any) -> Any:
    if not KEY.fullmatch(key):
        raise ValueError(
            f"metric {key!r}: wanted group/name, of letters, digits and _ . - (such as "
            "reward/mean)."
        )
    if value is None or isinstance(value, str):
        return value
    array = np.asarray(value)
    # V: bfloat16 and similar types
    if array.ndim or array.dtype.kind not in "biufV":
        raise ValueError(
            f"metric {key!r} must be a scalar, got shape {array.shape} of {array.dtype}: reduce "
            "it first."
        )
    return array.item() if array.dtype.kind in "biu" else float(array)


def _numpy(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    # .npz has no bfloat16
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _plain(_numpy(value).tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
