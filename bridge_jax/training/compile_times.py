"""Compile times of the programs of earlier runs, stored in the directory of compiled programs.

The first compilation of a large model takes minutes without a sign of life; this tells how many.
Without a persistent compilation cache nothing is kept.
"""

from __future__ import annotations

import contextlib
import json
import pathlib

import jax

from bridge_jax.config import schema
from bridge_jax.filesystem import files
from bridge_jax.rundir.progress import duration
from bridge_jax.training.build import Setup

NAME = "compile_seconds.json"


def path() -> pathlib.Path | None:
    """The file with the times; None without a compilation cache in a local folder."""
    folder = jax.config.jax_compilation_cache_dir
    return pathlib.Path(folder) / NAME if folder and "://" not in folder else None


def key(setup: Setup) -> str:
    """A fingerprint of what decides the programs: model, method, sizes, devices."""
    s = setup.settings
    parts = (setup.cfg, s.method_name, s.method, s.model, s.batch, s.rollout, setup.buckets)
    devices = (dict(setup.mesh.shape), setup.mesh.devices.flat[0].device_kind)
    return schema.fingerprint({"programs": repr((parts, devices, s.eval.rows))})


def last(setup: Setup) -> float | None:
    """Seconds of the last compilation of these programs; None where it is not known."""
    return _read().get(key(setup))


def record(setup: Setup, seconds: float) -> None:
    """Keeps the seconds; a folder that cannot be written loses them, that is all."""
    if (file := path()) is None:
        return
    times = _read() | {key(setup): round(seconds, 1)}
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        files.replace(file, json.dumps(times, indent=0))


def _read() -> dict[str, float]:
    file = path()
    try:
        found = json.loads(file.read_text()) if file else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def announcement(setup: Setup) -> str:
    """The line that is shown while the programs compile."""
    s, kinds = setup.settings, len(setup.method.step_kinds)
    names = [
        "the sampler" if setup.method.sampling_policies else "",
        "the evaluation" if s.eval.every else "",
        f"{kinds} updates" if kinds > 1 else "the update",
    ]
    sizes = f" for {len(setup.buckets)} prompt lengths" if len(setup.buckets) > 1 else ""
    seconds = last(setup)
    before = f"; {duration(seconds)} the last time" if seconds is not None else ""
    return f"compiling {', '.join(filter(None, names))} of {s.method_name}{sizes}{before}"
