"""The programs of a config's own step, compiled, and full-length rows of random tokens for them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bridge_jax.distributed import multihost, peaks
from bridge_jax.distributed.peaks import Chip
from bridge_jax.planner import hlo, phases
from bridge_jax.sampling import draw
from bridge_jax.training import build, programs, rollouts
from bridge_jax.training.build import Setup
from bridge_jax.types import Batch, BatchSpec, Rollouts, Sequences

# phases that are compiled and run; the planner's others are parts of these
RUN = ("merge", "decode", "update")


class Program(NamedTuple):
    """A compiled phase of a step, with what is known of it."""

    run: Callable
    peak: int  # bytes of a device, with what lies there besides
    seconds: float | None  # by the roofline; None where the chip is not known


def compiled(setup: Setup) -> dict[str, Program]:
    """The programs of a step, by the names of their phases."""
    found = {}
    for phase in phases.phases(setup, build.abstract_state(setup)):
        if phase.name.split()[0] in RUN:
            traced = phase.trace()
            run = programs.compile_traced(traced, emitters=phase.name == "decode")
            peak = phases.program_memory(run)["peak"] + phase.resident + phase.workspace
            found[phase.name] = Program(run, peak, roofline(setup, phase, traced, run))
    return found


def roofline(setup: Setup, phase: phases.Phase, traced, run) -> float | None:
    """Seconds of the phase at the chip's peak rates; None where the chip is not known."""
    if (chip := peaks.of_device(setup.mesh.devices.flat[0])) is None:
        return None
    work, devices, received = phase.work(traced), setup.mesh.size, {}
    # a jaxlib may not read all that a newer libtpu writes; without it collectives count as nothing
    with contextlib.suppress(Exception):
        received = phases.communication(hlo.parse(run.as_text()), phase)
    cost = {"flops": work.flops / devices, "bytes": work.bytes / devices, "collectives": received}
    target = phases.Target(chip, network_of(chip), devices, setup.settings.model.dtype, "")
    return phases.roofline(cost, target)["seconds"]


def network_of(chip: Chip) -> float:
    """Bytes a second that a chip receives over its links, or from other hosts if less."""
    several = multihost.count() > 1 and chip.network
    return min(chip.link * chip.links, chip.network if several else math.inf)


def full_rows(setup: Setup, prompts: int, rows: int, length: int) -> Sequences:
    """Random tokens, all of them of full length."""
    rng, bucket = np.random.default_rng(0), setup.buckets[-1]
    tokens = lambda *shape: rng.integers(0, setup.cfg.vocab, shape, dtype=np.int32)
    full = lambda count, value: np.full(count, value, np.int32)
    return Sequences(
        tokens(prompts, bucket), full(prompts, bucket), tokens(rows, length), full(rows, length)
    )


def endless(setup: Setup, limit: int) -> draw.Sampling:
    """Settings of sampling under which no token ends a row."""
    how = rollouts.sampling(setup, 1.0)
    return how._replace(eos_E=jnp.full_like(how.eos_E, -1), limit=jnp.int32(limit))


def full_batch(setup: Setup, spec: BatchSpec) -> Batch:
    """The host arrays of an update of full-length rows; every other sample is right."""
    s, B = setup.settings, setup.settings.batch.rollout_rows
    rows = full_rows(setup, s.batch.prompts_per_step, B, s.rollout.max_new)
    reward_B = np.arange(B, dtype=np.float32) % 2
    logp_BT = np.full((B, s.rollout.max_new), -2.0, np.float32)
    samples = Rollouts(rows, logp_BT, reward_B, np.float32(s.rollout.temperature))
    D = s.batch.demos_per_step + s.batch.demo_padding
    demos = full_rows(setup, D, D, s.max_demo) if spec.demos else None
    return rollouts.pack_batch(s.batch.pack, Batch(demos, dict.fromkeys(spec.sampled_by, samples)))
