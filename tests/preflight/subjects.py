"""The tiny run as a subject of the checks."""

from __future__ import annotations

import jax

from bridge_jax.preflight import subject
from bridge_jax.preflight.subject import Subject
from tests import tiny_runs


def make(folder="", devices: int = 1, method: str = "grpo", **given) -> Subject:
    """A run of tests/tiny_runs.py on simulated devices."""
    config = tiny_runs.config(method, **given)
    return subject.make(config, str(folder), jax.devices()[:devices])
