"""A tiny run that is built with other settings, and the configs of experiments."""

from __future__ import annotations

import importlib
import inspect
import pathlib

import jax

from bridge_jax.training import build as training_build
from bridge_jax.training.build import RunData, Setup
from configs import base
from tests import tiny_runs

CONFIGS = sorted(
    path.stem for path in pathlib.Path(base.__file__).parent.glob("*.py") if path.stem != "__init__"
)
# the others are parts of these
EXPERIMENTS = [
    name
    for name in CONFIGS
    if name not in ("base", "tasks")
    and list(inspect.signature(importlib.import_module(f"configs.{name}").get_config).parameters)
    == ["method"]
]


def build(**given) -> tuple[Setup, RunData]:
    """Set-up and data of the tiny run on one device."""
    return training_build.build(tiny_runs.config(**given), jax.devices()[:1])
