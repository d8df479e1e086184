"""Schedules as functions of the step, traced into the update."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from bridge_jax.config.schedule import Schedule


def interpolate(kind: str, start: float, end: float, steps: int) -> Callable:
    """step -> fp32: linear or cosine from start to end over `steps`, then end."""

    def at(step):
        progress = jnp.clip(step / steps, 0.0, 1.0)
        if kind == "cosine":
            progress = (1.0 - jnp.cos(jnp.pi * progress)) / 2.0
        return jnp.float32(start) + (end - start) * progress

    return at


def schedule(start: float, by: Schedule) -> Callable:
    """step -> the weight, fp32.

    by: a valid schedule (config.schedule.check_schedule), not "gain".
    """
    if by.kind == "constant":
        return lambda step: jnp.full((), start, jnp.float32)
    if by.kind == "step":
        levels = jnp.asarray((start, *by.values), jnp.float32)
        return lambda step: levels[jnp.sum(step >= jnp.asarray(by.boundaries, jnp.int32))]
    return interpolate(by.kind, start, by.end, by.steps)
