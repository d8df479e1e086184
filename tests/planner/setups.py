"""Tiny runs over 8 devices for the planner, and a made-up chip."""

from __future__ import annotations

import jax

from bridge_jax.planner import chips
from bridge_jax.training import build
from tests import tiny_runs

CHIP = chips.Chip(
    flops=100.0,
    fp32_flops=25.0,
    hbm=1000.0,
    memory=10.0,
    link=1.0,
    links=2,
    torus=1,
    source="made up",
)


def config(method: str):
    """16 prompts x 2 samples over 8 devices."""
    made = tiny_runs.config(method)
    made.mesh.fsdp = 8
    made.batch.update(dict(prompts_per_step=16, samples_per_prompt=2, microbatch_rows=2))
    return made


def sketch(method: str):
    return build.make_setup(config(method), jax.devices()[:8])
