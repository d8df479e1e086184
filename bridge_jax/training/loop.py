"""The training loop: sample, grade, update, log, evaluate, save.

A step takes its prompts and demonstrations, a pure function of seed and cursors. The sampling
policies of the method generate in `rollout.calls` parts; each part is graded while the next is
generated. One compiled update is dispatched. While it runs, rollouts are written and the next rows
are padded; its metrics are fetched and logged after the next samples were dispatched.

Random keys are fold_in(seed, step, prompt, sample) and the data order is a function of two cursors,
so that a run that is killed and resumed continues bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from bridge_jax import tasks
from bridge_jax.config import schema
from bridge_jax.data import batches, contamination, traces
from bridge_jax.distributed import consistency, multihost, platforms
from bridge_jax.distributed.compiler import compiler_options
from bridge_jax.filesystem import files, hf_folder
from bridge_jax.grading import selftest
from bridge_jax.grading.pool import Pool
from bridge_jax.models import params
from bridge_jax.rundir import (
    checkpoint,
    finished,
    lock,
    logbook,
    progress,
    run_config,
    state_arrays,
)
from bridge_jax.training import build, rollouts, validation
from bridge_jax.training.build import RunData, Setup
from bridge_jax.training.interrupt import Interrupt, Stopped
from bridge_jax.training.programs import compile_programs
from bridge_jax.training.rollouts import StepSampler
from bridge_jax.training.step_log import Pending, StepLog
from bridge_jax.types import Batch, TrainState

logger = logging.getLogger(__name__)
# keys that may change when a run resumes, since its numbers do not depend on them
CHANGEABLE_KEYS = (
    "steps",
    "eval.",
    "checkpoint.",
    "log.",
    "hosts.",
    "facts.demonstrations.",  # the fingerprint of the demonstrations is compared instead
)


class Diverged(RuntimeError):
    """Too many updates in a row were not finite."""


class GraderFailed(RuntimeError):
    """Too many samples of a step have the outcome timeout or grader_error."""


def restore_or_init(setup: Setup, store: checkpoint.Checkpoints) -> tuple[TrainState, dict]:
    """(state, meta) of the newest readable checkpoint, or an initial state and zeroed counters."""
    abstract = build.abstract_state(setup)
    with multihost.watchdog("reading of the checkpoint", io_grace=True):
        found = store.restore(abstract)
    if found:
        return found
    init = jax.jit(
        setup.method.init,
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
        donate_argnums=0,
        compiler_options=compiler_options(),
    )
    with multihost.watchdog("the initial weights", io_grace=True):
        theta = build.initial_theta(setup)
    # the others may wait long for this host's share of the weights
    multihost.barrier("the initial weights", io_grace=True)
    state = init(theta, jax.random.fold_in(jax.random.key(setup.settings.seed), 1))
    return state, {
        "step": 0,
        "rl": 0,
        "sft": 0,
        "skipped_in_row": 0,
        "totals": {},
        "train_s": 0.0,
        "unlogged": {},
    }


def print_summary(setup: Setup, data: RunData, meta: dict, end: int) -> None:
    """Prints a summary of the run: model, devices, batch table, data, and the steps up to `end`."""
    s, start = setup.settings, meta["step"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params.abstract(setup.cfg)))
    demos = len(data.demos.problems)
    held_out = {name: len(split.problems) for name, split in data.splits.items()}
    template = batches.template_hash(data.tokenizer, data.task.messages)
    further = "raise --config.steps" if start >= s.steps else "raise or leave out --stop_at"
    hosts = f" of {multihost.count()} hosts" if multihost.count() > 1 else ""
    multihost.print_on_main(
        f"{s.method_name} on {s.task_name}: {setup.cfg.family} with {count:,} parameters, compute "
        f"{s.model.dtype}, {setup.mesh.size} device(s) {dict(setup.mesh.shape)}{hosts}\n"
        f"{s.batch.format()}\n"
        f"{len(data.prompts.problems)} prompts, {demos} demonstrations, held out: {held_out}; "
        f"buckets {setup.buckets}, at most {s.rollout.max_new} new tokens; prompt template "
        f"{template}\n"
        + (f"{traces.summary(data.demo_counts)}\n" if data.demo_counts else "")
        + (f"samples end at the first of {data.task.stop}\n" if data.task.stop else "")
        + (f"warning: {meta['restore_warning']}\n" if "restore_warning" in meta else "")
        + (
            f"steps {start + 1} to {end}"
            if start < end
            else f"nothing to do: the run is at step {start} of {s.steps}; {further} to go on"
        )
    )


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


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of `train`."""

    config: ConfigDict
    workdir: str
    stop_at: int | None = None
    force_config: bool = False
    defaults: ConfigDict | None = None
    devices: Any = None

    @property
    def changes(self) -> dict[str, tuple]:
        """{key: (given, default)} of the keys that are not at their default."""
        return schema.diff(self.config, self.defaults) if self.defaults else {}


def train(
    config: ConfigDict,
    workdir: str,
    stop_at: int | None = None,
    force_config: bool = False,
    defaults: ConfigDict | None = None,
    devices=None,
) -> dict[str, Any]:
    """Runs the config in workdir, or resumes the run there, on the given devices (default: all).

    Returns the last line of metrics, with "stopped" true if a signal ended the run early.
    """
    request = Request(config, workdir, stop_at, force_config, defaults, devices)
    with Interrupt() as interrupt:
        try:
            with (
                multihost.joined(config),
                grader(config) as pool,
                contextlib.ExitStack() as resources,
            ):
                return train_with(request, pool, resources, interrupt)
        except Stopped:
            multihost.print_on_main(
                "stopped by a signal before a step was begun; nothing is lost, the same command "
                "goes on"
            )
            return {"stopped": True}


@contextlib.contextmanager
def grader(config: ConfigDict) -> Iterator[Pool | None]:
    """A tested pool for DeferredComparisons; None for a task without them."""
    if not getattr(tasks.load(config.get("task", {}).get("name", "")), "DEFERS_COMPARISONS", False):
        yield None
        return
    with Pool() as pool:
        selftest.check(pool)
        yield pool


def train_with(
    request: Request,
    pool: Pool | None,
    resources: contextlib.ExitStack,
    interrupt: Interrupt,
) -> dict[str, Any]:
    """`train` with its pool; resources: holds the locks of the run directory until the end."""
    if multihost.count() > 1:
        identity = consistency.identity(request.config)
        consistency.check("configs, code and versions", identity)
    with multihost.watchdog("the devices of all hosts"):
        # the hosts exchange their lists of devices
        platforms.devices()
    setup, data = build.build(request.config, request.devices)
    fingerprints = build.fingerprints(data)
    check_hosts(request, setup, fingerprints)
    record = open_run_directory(request, fingerprints, resources)
    write_overviews(request, setup, data)
    end = min(setup.settings.steps, request.stop_at or setup.settings.steps)
    last = multihost.broadcast_from_main(
        "whether anything is left to do",
        lambda: None if request.force_config else finished.last_line(request.workdir, end),
    )
    if last is None:
        last = resume(setup, data, pool, request.workdir, end, interrupt, record)
        if multihost.first() and not last["stopped"]:
            # only after the last checkpoint is complete
            finished.write(request.workdir, last["step"])
        return last
    print_summary(setup, data, last, end)
    if multihost.first():
        logbook.warn_of_flaws(request.workdir, last["step"])
    return {"stopped": False} | last


def check_hosts(request: Request, setup: Setup, fingerprints: dict) -> None:
    """ValueError on every host unless all have the same data, model files and run directory."""
    path = setup.settings.model.path
    # each host has its own copy of a model from the hub
    model_files = (
        consistency.model_files(str(hf_folder.locate(path)))
        if path and multihost.count() > 1
        else {}
    )
    consistency.check(
        "data and devices",
        {"devices of a host": len(jax.local_devices()), "stop_at": request.stop_at}
        | schema.flatten({"facts": fingerprints})
        | {f"model file {name}": digest for name, digest in model_files.items()},
    )
    consistency.check_shared(request.workdir)


def open_run_directory(
    request: Request, fingerprints: dict, resources: contextlib.ExitStack
) -> dict:
    """Locks the run directory for this run and checks what is in it; returns the record to write.

    ValueError where another run owns it, or where it belongs to another config or other data.
    """
    workdir, defaults = request.workdir, request.defaults
    multihost.broadcast_from_main(
        "who writes the run directory", lambda: resources.enter_context(lock.run_lock(workdir))
    )
    if not multihost.first():
        resources.enter_context(lock.shared_run_lock(workdir))
    record = multihost.broadcast_from_main(
        "the run directory",
        lambda: run_config.check_run(
            workdir,
            schema.to_json(request.config),
            request.changes,
            request.force_config,
            CHANGEABLE_KEYS,
            fingerprints,
            schema.to_json(defaults) if defaults else None,
        ),
    )
    multihost.broadcast_from_main(
        "unfinished checkpoints", lambda: checkpoint.remove_unfinished(workdir)
    )
    return record


def write_overviews(request: Request, setup: Setup, data: RunData) -> None:
    """Prints what differs from the defaults and how the data overlap, and keeps it in the run."""
    if changes := request.changes:
        keys = f"{request.workdir}/config.json"
        multihost.print_on_main(f"{schema.format_diff(changes)}\nall keys: {keys}")
    problems = {problem.id: problem for problem in (*data.task.train, *data.task.demos)}
    overlap = contamination.overlap_report(tuple(problems.values()), data.task.splits)
    multihost.print_on_main(overlap)
    if multihost.first():
        batch = setup.settings.batch.format()
        for name, text in (("batch.txt", batch), ("overlap.txt", overlap)):
            files.replace(os.path.join(request.workdir, name), text + "\n")


def resume(
    setup: Setup,
    data: RunData,
    pool: Pool | None,
    workdir: str,
    end: int,
    interrupt: Interrupt,
    record: dict,
) -> dict[str, Any]:
    """Runs up to step `end`: restore or initialize, compile, pending evaluation, loop."""
    s = setup.settings
    with checkpoint.Checkpoints(workdir, s.checkpoint.keep) as store:
        state, meta = restore_or_init(setup, store)
        start, began = meta["step"], time.monotonic()
        if multihost.first():
            same = not store.went_back(start) and not run_config.changed(
                workdir, record, CHANGEABLE_KEYS
            )
            set_aside_later_records(workdir, start, same)
            # written only now, after a checkpoint of another method would have been rejected
            run_config.write_config(workdir, record)
        print_summary(setup, data, meta, end)
        if start >= end and not meta.get("unlogged"):
            if multihost.first():
                logbook.warn_of_flaws(workdir, start)
            return {"step": start, "stopped": False}
        # The line of a pending evaluation is removed too, in case an earlier attempt wrote it and
        # was killed before it saved.
        logged = -1 if not start else start - bool(meta.get("unlogged"))
        with logbook.Logbook(
            workdir, logged, s.log.mirrors, writes=multihost.first(), taken=start
        ) as book:
            demo_logp = bool(data.held_out_demos.problems)
            programs = compile_programs(setup, build.abstract_state(setup), demo_logp)
            sampler = StepSampler(setup, data, programs, pool)
            # a collective of CPU processes waits at most 30 s for the slowest
            multihost.barrier("compiled programs")
            with multihost.watchdog("the first checksums"):
                # compiled now, so that the first save compiles nothing
                state_arrays.checksums(state)
            multihost.print_on_main(f"compiled in {time.monotonic() - began:.1f} s")
            if not start and s.eval.every:
                base = validation.evaluation(sampler, state, interrupt, book, 0)
                book.write(0, base)
                shown = (f"{key} {value:.3f}" for key, value in base.items() if "accuracy" in key)
                multihost.print_on_main("before training: " + "  ".join(shown))
            # the pending evaluation of a step during which a signal came
            if meta.get("unlogged"):
                line = {key: float(text) for key, text in meta["unlogged"].items()}
                book.write(
                    start,
                    line
                    | (
                        validation.evaluation(sampler, state, interrupt, book, start)
                        if s.eval.every
                        else {}
                    ),
                )
            interrupt.starting = False
            interrupt.check()
            return loop(sampler, state, meta, store, book, interrupt, end)


def retreat(store: checkpoint.Checkpoints, finite: int, learning_rate: float) -> str:
    """Goes back to the last good checkpoint; returns a message with its path and how to continue.

    finite: the step of the last finite update. The state after it is in doubt, since a finite
    update may move the weights so far that no later one is finite.
    """
    with multihost.watchdog("the last good checkpoint", io_grace=True):
        good, renamed = store.retreat(finite - 1)
    lower = f"--config.optim.base.learning_rate below {learning_rate:g}"
    longer = "with --config.log.skipped_limit raised"
    if good is None:
        newest = max(store.steps(), default=None)
        there = "there is none" if newest is None else f"that of step {newest} may be ruined"
        return (
            f"No checkpoint is known to be good: {there}. Begin in another --workdir with {lower}, "
            f"or go on here {longer}"
        )
    ruined = f" (later ones may be ruined: now {', '.join(renamed)})" if renamed else ""
    return (
        f"The last good checkpoint is that of step {good}, {store.path(good)}{ruined}; the same "
        f"command goes on from it, with --force_config and {lower}, or {longer}"
    )


def set_aside_later_records(workdir: str, start: int, same: bool) -> None:
    """Moves the records of steps after `start` aside, unless a kill explains them.

    A kill loses up to two checkpoint intervals: one of steps, and one whose save was under way.
    These steps are repeated with the same results, so that their lines can be removed. same: no
    checkpoint was skipped, and the config is unchanged.
    """
    interval, last = run_config.save_interval(workdir), logbook.last_step(workdir)
    killed = start and same and (not interval or last - start <= 2 * interval)
    place = None if killed else logbook.set_aside(workdir, start or -1)
    if place:
        behind = (
            f"its newest checkpoint is that of step {start}: the run resumes from there"
            if start
            else "it has no checkpoint: the run begins again"
        )
        multihost.print_on_main(
            f"warning: the record in {workdir} reaches step {max(0, last)}, but {behind}. What is "
            f"later was set aside, not deleted: {place}. If checkpoints were moved away, stop now "
            "and bring them back"
        )


def loop(
    sampler: StepSampler,
    state: TrainState,
    meta: dict,
    store: checkpoint.Checkpoints,
    book: logbook.Logbook,
    interrupt: Interrupt,
    end: int,
) -> dict[str, Any]:
    """Runs the steps meta["step"] + 1 to end."""
    setup, programs, s = sampler.setup, sampler.programs, sampler.setup.settings
    cursors, pending = {"rl": meta["rl"], "sft": meta["sft"]}, None
    save_due = False
    quiet = not multihost.first()

    with progress.progress(end, meta["step"], s.method_name, quiet=quiet) as show:
        log = StepLog(setup, book, meta, show)

        def finish(pending: Pending | None, *args, **kwargs) -> None:
            log.finish(pending, *args, **kwargs)
            if log.skipped_in_row >= s.log.skipped_limit:
                raise Diverged(diverged(log, store, pending.number))

        for number in range(meta["step"] + 1, end + 1):
            interrupt.step = number
            rows = sampler.rows(number - 1, cursors)
            handles = sampler.start(state.params, rows)
            # waits for the previous update; the samplers are queued after it
            finish(pending, {})
            sampled = sampler.collect(state.params, rows, handles)
            check_grader(sampled.metrics, number, s.log.ungraded_limit)
            batch, dispatched = Batch(rows.demos, sampled.rollouts), time.monotonic()
            with multihost.watchdog(f"the start of update {number}"):
                state, metrics = programs.update[rows.bucket, rows.spec](
                    state, rollouts.on_mesh(setup.mesh, rollouts.pack_batch(s.batch.pack, batch))
                )
            tokens = sampler.sampled_tokens(sampled.groups)
            pending = Pending(number, metrics, sampled.metrics, tokens, batch, dispatched)
            demos_read = s.batch.demos_per_step * rows.spec.demos
            cursors = {"rl": sampled.cursor, "sft": cursors["sft"] + demos_read}
            if s.log.rollouts_every and number % s.log.rollouts_every == 0 and sampled.groups:
                book.write_rollouts(number, sampler.transcript(sampled.groups))
            stopping = interrupt.stop_requested()
            # s.steps rather than `end`: a run that ends at stop_at logs the same as one that does
            # not
            evaluate_due = bool(s.eval.every) and (number % s.eval.every == 0 or number == s.steps)
            save_due |= bool(s.checkpoint.every) and number % s.checkpoint.every == 0
            evaluation_pending = False
            if evaluate_due or save_due or number == end or stopping:
                with multihost.watchdog(f"update of step {number}"):
                    jax.block_until_ready(metrics)
                updated = time.monotonic()
                # the sender of SIGTERM may not wait: the evaluation follows when the run resumes
                evaluation_pending = evaluate_due and stopping
                with log.meter.paused():
                    scores = {}
                    if evaluate_due and not stopping:
                        try:
                            scores = validation.evaluation(sampler, state, interrupt, book, number)
                        except Stopped:
                            evaluation_pending = True
                finish(pending, scores, updated, log=not evaluation_pending)
                pending, stopping = None, stopping or interrupt.stop_requested()
            # the step that a signal from now on would finish
            interrupt.step = number if stopping else min(number + 1, end)
            # While updates are skipped the state may be ruined. Then a periodic save waits for the
            # next finite update; a save at the end leaves the last good checkpoint in place.
            if (save_due and not log.skipped_in_row) or number == end or stopping:
                save_due = False
                with log.meter.paused():
                    save(store, book, log, state, log.meta(number, cursors, evaluation_pending))
            if stopping:
                multihost.print_on_main(
                    f"stopped by a signal after step {number}; saved. The same command goes on "
                    "from here"
                )
                return {"step": number, "stopped": True} | log.last
    if log.skipped_in_row:
        logger.warning(
            "the run ended while updates were skipped: the state of step %d may be ruined, and "
            "those up to step %d are good",
            end,
            end - log.skipped_in_row - 1,
        )
    return {"step": max(end, meta["step"]), "stopped": False} | log.last


def diverged(log: StepLog, store: checkpoint.Checkpoints, number: int) -> str:
    """The message about updates that were not finite, after the retreat to a good checkpoint."""
    count, rate = log.skipped_in_row, log.setup.settings.recipes.base.learning_rate
    return (
        f"{count} updates in a row were not finite, the last at step {number}, and "
        f"were skipped. Their batches are in {log.book.workdir}/batches. "
        + retreat(store, number - count, rate)
    )


def save(
    store: checkpoint.Checkpoints,
    book: logbook.Logbook,
    log: StepLog,
    state: TrainState,
    meta: dict,
) -> None:
    """Saves a checkpoint, after the records of its steps are on disk."""
    book.sync()
    number = meta["step"]
    # the state before the last finite update
    good = number - log.skipped_in_row - 1
    with multihost.watchdog(f"checkpoint of step {number}", io_grace=True):
        store.save(number, state, meta, good=good)
