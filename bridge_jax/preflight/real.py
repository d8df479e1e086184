"""--real: compile the config itself, decode some tokens, take one update, beside the plan.

Prompts and completions are random tokens of full length, and no sample ends early: what is measured
is the most that a step takes. Left out: grading, evaluation, checkpoints.
"""

from __future__ import annotations

import collections
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bridge_jax.distributed import multihost
from bridge_jax.planner import flops
from bridge_jax.preflight import step_programs
from bridge_jax.preflight.record import NOTE, OK, Record, graded
from bridge_jax.preflight.subject import Subject
from bridge_jax.rundir import checkpoint
from bridge_jax.rundir.progress import duration
from bridge_jax.training import build, programs, rollouts, trainer
from bridge_jax.training.build import Setup
from bridge_jax.types import BatchSpec, TrainState

TOKENS = 64
GB = 1e9
# times the roofline above which it is noted; engines take 1.7 to 2.5 times (planner.phases.TYPICAL)
SLOW = 5.0
# a device's peak above this share of the plan's is noted
OVER_PLAN = 1.1


def check(subject: Subject) -> list[Record]:
    """Memory, sampling, update, and the hours of the run."""
    setup = subject.setup
    found = step_programs.compiled(setup)
    with checkpoint.Checkpoints(os.path.join(subject.folder, "real")) as store:
        state, _ = trainer.restore_or_init(setup, store)
    records, rollout_s = [], 0.0
    if setup.method.sampling_policies:
        record, rollout_s = sampling(setup, state, found)
        records.append(record)
    update_records, seconds = updates(setup, state, found)
    records += update_records
    peak = max(program.peak for program in found.values())
    return [memory(setup, peak), *records, hours(setup, rollout_s, seconds)]


def timed(call: Callable) -> tuple[float, Any]:
    """Seconds until the result is ready, and the result."""
    began = time.monotonic()
    with multihost.watchdog("a step of the checks", io_grace=True):
        result = jax.block_until_ready(call())
    return time.monotonic() - began, result


def sampling(
    setup: Setup, state: TrainState, found: dict[str, step_programs.Program]
) -> tuple[Record, float]:
    """The record, and the seconds of a step's samples at rollout.max_new tokens each."""
    s = setup.settings
    prompts, samples = s.batch.prompts_per_step // s.rollout.calls, s.batch.samples_per_prompt
    rows, ids = (
        step_programs.full_rows(setup, prompts, prompts, 1),
        np.arange(prompts, dtype=np.int32),
    )
    keys = programs.trace_keys(setup, prompts, samples).lower().compile()
    given = (
        *rollouts.on_mesh(setup.decode_mesh, (rows.prompt_PS, rows.prompt_len_P)),
        keys(np.int32(0), ids, np.zeros_like(ids)),
    )
    timed(lambda: found["merge"].run(state.params))
    merge_s, phi = timed(lambda: found["merge"].run(state.params))
    tokens = min(TOKENS, s.rollout.max_new)
    decode = lambda limit: found["decode"].run(phi, *given, step_programs.endless(setup, limit))
    timed(lambda: decode(1))
    (first_s, _), (seconds, _) = timed(lambda: decode(1)), timed(lambda: decode(tokens))
    each = (seconds - first_s) / max(1, tokens - 1)
    whole = merge_s + s.rollout.calls * (first_s + (s.rollout.max_new - 1) * each)
    whole *= max(len(spec.sampled_by) for spec in setup.method.step_kinds)
    text = (
        f"{prompts * samples * tokens / seconds:.4g} tokens/s over {tokens} tokens of "
        f"{prompts * samples} rows, {1000 * each:.3g} ms a token; all {s.rollout.max_new} of a "
        f"step: {whole:.3g} s"
    )
    bound = found["decode"].seconds
    return beside_roofline("sampling", text, each, bound and bound / s.rollout.max_new), whole


def beside_roofline(name: str, text: str, seconds: float, bound: float | None) -> Record:
    """The record of a time beside that at the chip's peak rates, where they are known."""
    if bound is None:
        return Record(name, OK, f"{text}; no peaks known")
    way_out = "see the lines matmul, copy and collectives; log.profile=K shows where time goes"
    text = f"{text}; {seconds / bound:.3g} times the roofline"
    return graded(name, text, seconds < SLOW * bound, way_out, NOTE)


def updates(
    setup: Setup, state: TrainState, found: dict[str, step_programs.Program]
) -> tuple[list[Record], dict[BatchSpec, float]]:
    """A record and the seconds of an update of each kind of step; the first warms up."""
    records, seconds = [], {}
    names = [name for name in found if name.startswith("update")]
    for name, spec in zip(names, setup.method.step_kinds):
        batch = rollouts.on_mesh(setup.mesh, step_programs.full_batch(setup, spec))
        _, (state, _) = timed(lambda: found[name].run(state, batch))
        seconds[spec], (state, metrics) = timed(lambda: found[name].run(state, batch))
        text = f"{seconds[spec]:.3g} s for {setup.settings.batch.rollout_rows} rows"
        if not all(np.all(np.isfinite(value)) for value in jax.device_get(metrics).values()):
            records.append(
                Record(name, NOTE, f"{text}; some metrics of random tokens are no numbers")
            )
        else:
            records.append(beside_roofline(name, text, seconds[spec], found[name].seconds))
    return records, seconds


def memory(setup: Setup, planned: int) -> Record:
    """The highest use of memory of this process on a device, beside the plan."""
    stats, name = setup.mesh.local_devices[0].memory_stats() or {}, "memory, real"
    state = flops.chip_bytes(build.abstract_state(setup))
    text = f"planned {planned / GB:.3g} GB a device, {state / GB:.3g} of them the state"
    if "peak_bytes_in_use" not in stats:
        return Record(name, OK, f"{text}; this platform does not tell what was used")
    used = stats["peak_bytes_in_use"]
    text = f"{text}; {used / GB:.3g} were used of {stats.get('bytes_limit', 0) / GB:.3g}"
    way_out = "leave more room than experiments.plan says, by a smaller batch.microbatch_rows"
    return graded(name, text, used <= OVER_PLAN * planned, way_out, NOTE)


def hours(setup: Setup, rollout_s: float, update_s: dict[BatchSpec, float]) -> Record:
    """The most that the run takes, without grading, evaluation and checkpoints."""
    steps = setup.settings.steps
    kinds = collections.Counter(setup.method.batch_spec(step) for step in range(steps))
    total = sum(
        count * (update_s[spec] + (rollout_s if spec.sampled_by else 0.0))
        for spec, count in kinds.items()
    )
    return Record(
        "the run",
        OK,
        f"at most {duration(total)} for {steps} steps, {total / steps:.3g} s each, if no sample "
        "ends early; grading, evaluation and checkpoints not counted",
    )
