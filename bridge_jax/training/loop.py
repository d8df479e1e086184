"""The training loop: sample, grade, update, log, evaluate, save.

A step takes its prompts and demonstrations, a pure function of seed and cursors. The sampling
policies of the method generate in `rollout.calls` parts; each part is graded while the next is
generated. One compiled update is dispatched. While it runs, rollouts are written and the next rows
are padded; its metrics are fetched and logged after the next samples were dispatched.

Random keys are fold_in(seed, step, prompt, sample) and the data order is a function of two cursors,
so that a run that is killed and resumed continues bit for bit. Left out: how a run is assembled,
restored and started (trainer.py).
"""

from __future__ import annotations

import time
from typing import Any

from bridge_jax.distributed import multihost
from bridge_jax.training import divergence, rollouts
from bridge_jax.training.end_of_step import EndOfStep
from bridge_jax.training.rollouts import StepRows, StepSampler
from bridge_jax.training.step_log import Pending
from bridge_jax.types import Batch, TrainState


class GraderFailed(RuntimeError):
    """Too many samples of a step have the outcome timeout or grader_error."""


def loop(
    sampler: StepSampler, state: TrainState, meta: dict, end_of_step: EndOfStep
) -> dict[str, Any]:
    """Runs the steps meta["step"] + 1 to end_of_step.end; returns the last line of metrics.

    meta: of the checkpoint that `state` is from, with the two cursors of the data.
    """
    log, interrupt, end = end_of_step.log, end_of_step.interrupt, end_of_step.end
    cursors, pending = {"rl": meta["rl"], "sft": meta["sft"]}, None
    for number in range(meta["step"] + 1, end + 1):
        interrupt.step = number
        log.begin(number)
        rows = sampler.rows(number - 1, cursors)
        handles = sampler.start(state.params, rows)
        # waits for the previous update; the samplers are queued after it
        log.finish(pending)
        divergence.check(log, end_of_step.store)
        sampled = sampler.collect(state.params, rows, handles)
        check_grader(sampled.metrics, number, sampler.setup.settings.log.ungraded_limit)
        batch, dispatched = Batch(rows.demos, sampled.rollouts), time.monotonic()
        state, metrics = update(sampler, state, rows, batch)
        tokens = sampler.sampled_tokens(sampled.groups)
        pending = Pending(number, metrics, sampled.metrics, tokens, batch, dispatched)
        cursors = {"rl": sampled.prompt_cursor, "sft": rows.demo_cursor}
        if sampled.groups and log.rollouts_due(number):
            log.book.write_rollouts(number, sampler.transcript(sampled.groups))
        stopping = interrupt.stop_requested()
        if stopping or end_of_step.due(number):
            stopping = end_of_step.validate_and_save(state, pending, cursors, stopping)
            pending = None
        if stopping:
            return {"step": number, "stopped": True} | log.last
    return {"step": max(end, meta["step"]), "stopped": False} | log.last


def update(
    sampler: StepSampler, state: TrainState, rows: StepRows, batch: Batch
) -> tuple[TrainState, dict]:
    """Dispatches the compiled update of these rows; does not wait for it."""
    setup = sampler.setup
    program = sampler.programs.update[rows.bucket, rows.spec]
    with multihost.watchdog(f"the start of update {rows.step + 1}"):
        packed = rollouts.pack_batch(setup.settings.batch.pack, batch)
        return program(state, rollouts.on_mesh(setup.mesh, packed))


def check_grader(metrics: dict[str, float], step: int, limit: float) -> None:
    """GraderFailed if the grader gave up on more than the share `limit` of the step's samples."""
    names = ("timeout", "grader_error")
    shares = {name: metrics.get(f"reward/outcome_{name}", 0.0) for name in names}
    if sum(shares.values()) > limit:
        reasons = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        raise GraderFailed(
            f"step {step}: the grader gave up on too many samples ({reasons}; allowed together: "
            f"{limit:.1%}). Its rewards would teach nothing. Look at their texts in rollouts/ of "
            "the last steps, or raise log.ungraded_limit; start again from the last checkpoint"
        )
