"""A training run, from its config to its last step: assemble, check, restore, compile, loop.

Every host calls `train`. The run directory is locked by the main host, and all hosts agree on
config, code, versions and data before the first collective. A run that has nothing left to do is
recognised without reading its state. Left out: the steps themselves (loop.py).
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
from bridge_jax.config import renamed, schema
from bridge_jax.data import batches, contamination, traces
from bridge_jax.distributed import consistency, memory_pools, multihost, platforms
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
    mirrors,
    progress,
    run_config,
    state_arrays,
)
from bridge_jax.training import build, compile_times, loop, saved_state, validation
from bridge_jax.training.build import RunData, Setup
from bridge_jax.training.end_of_step import EndOfStep
from bridge_jax.training.interrupt import Interrupt, Stopped
from bridge_jax.training.programs import Programs, compile_programs
from bridge_jax.training.rollouts import StepSampler
from bridge_jax.training.settings import Settings
from bridge_jax.training.step_log import StepLog
from bridge_jax.types import TrainState

logger = logging.getLogger(__name__)
# keys that may change when a run resumes, since its numbers do not depend on them
CHANGEABLE_KEYS = (
    "steps",
    "eval.",
    "checkpoint.",
    "log.",
    "hosts.",
    "fingerprints.demonstrations.",  # the fingerprint of the demonstrations is compared instead
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
    file_config: ConfigDict | None = None

    def end(self, settings: Settings) -> int:
        """The last step that is asked for."""
        return min(settings.steps, self.stop_at or settings.steps)

    @property
    def changes(self) -> dict[str, tuple]:
        """{key: (given, default)} of the keys that are not at their default."""
        return schema.diff(self.config, self.defaults) if self.defaults else {}

    @property
    def overrides(self) -> dict[str, tuple]:
        """{key: (given, in the config file)} of the keys that the command line changes."""
        return schema.diff(self.config, self.file_config) if self.file_config else {}


def train(
    config: ConfigDict,
    workdir: str,
    stop_at: int | None = None,
    force_config: bool = False,
    defaults: ConfigDict | None = None,
    devices=None,
    file_config: ConfigDict | None = None,
) -> dict[str, Any]:
    """Runs the config in workdir, or resumes the run there, on the given devices (default: all).

    defaults: the config of configs/base.py. file_config: the config as its file gives it, if the
    command line may have changed keys. Returns the last line of metrics, with "stopped" true if a
    signal ended the run early.
    """
    request = Request(config, workdir, stop_at, force_config, defaults, devices, file_config)
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
    multihost.broadcast_from_main(
        "the mirrors' packages", lambda: mirrors.check_installed(request.config)
    )
    setup, data = build.build(request.config, request.devices, tuple(request.overrides))
    fingerprints = build.fingerprints(data)
    check_hosts(request, setup, fingerprints)
    record = open_run_directory(request, fingerprints, resources)
    write_overviews(request, setup, data)
    end = request.end(setup.settings)
    last = multihost.broadcast_from_main(
        "whether anything is left to do",
        lambda: None if request.force_config else finished.last_line(request.workdir, end),
    )
    if last is None:
        last = resume(request, setup, data, pool, record, interrupt)
        if multihost.is_main() and not last["stopped"]:
            # only after the last checkpoint is complete
            finished.write(request.workdir, last["step"])
        return last
    print_summary(setup, data, last, end)
    if multihost.is_main():
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
        | schema.flatten({"fingerprints": fingerprints})
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
    if not multihost.is_main():
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
    multihost.print_on_main(format_changes(request))
    problems = {problem.id: problem for problem in (*data.task.train, *data.task.demos)}
    overlap = contamination.overlap_report(tuple(problems.values()), data.task.splits)
    multihost.print_on_main(overlap)
    if multihost.is_main():
        batch = setup.settings.batch.format()
        for name, text in (("batch.txt", batch), ("overlap.txt", overlap)):
            files.replace(os.path.join(request.workdir, name), text + "\n")


def format_changes(request: Request) -> str:
    """Tables of what the command line changes, and then of what the config file changes."""
    overrides, parts = request.overrides, []
    by_file = {key: pair for key, pair in request.changes.items() if key not in overrides}
    if overrides:
        table = schema.format_diff(overrides, theirs="in the config file")
        parts.append(f"set on the command line:\n{table}")
    if by_file:
        table = schema.format_diff(by_file, mine="in the config file")
        parts.append(f"set by the config file:\n{table}")
    return "\n".join([*parts, f"all keys: {request.workdir}/config.json"])


def print_summary(setup: Setup, data: RunData, meta: dict, end: int) -> None:
    """Prints a summary of the run: model, devices, batch table, data, and the steps up to `end`."""
    s, start = setup.settings, meta["step"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params.abstract(setup.cfg)))
    demos = len(data.demos.problems)
    held_out = {name: len(split.problems) for name, split in data.splits.items()}
    template = batches.template_hash(data.tokenizer, data.task.messages)
    further = "raise --config.steps" if start >= s.steps else "raise or leave out --stop_at"
    hosts = f" of {multihost.count()} hosts" if multihost.count() > 1 else ""
    trained = " of the adapter alone" if s.train == "w" else ""
    multihost.print_on_main(
        f"{s.method_name}{trained} on {s.task_name}: {setup.cfg.family} with {count:,} parameters, "
        f"compute {s.model.dtype}, {setup.mesh.size} device(s) {dict(setup.mesh.shape)}{hosts}\n"
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


def resume(
    request: Request,
    setup: Setup,
    data: RunData,
    pool: Pool | None,
    record: dict,
    interrupt: Interrupt,
) -> dict[str, Any]:
    """Runs up to the last step: restore or initialize, compile, pending evaluation, loop.

    record: what config.json shall hold, of open_run_directory.
    """
    s, workdir, end = setup.settings, request.workdir, request.end(setup.settings)
    with checkpoint.Checkpoints(workdir, s.checkpoint.keep) as store:
        state, meta = restore_or_init(setup, store)
        start, pending = meta["step"], meta["deferred_line"]
        if multihost.is_main():
            keep_records(workdir, record, store, start)
        print_summary(setup, data, meta, end)
        if start >= end and not pending:
            if multihost.is_main():
                logbook.warn_of_flaws(workdir, start)
            return {"step": start, "stopped": False}
        # The line of a pending evaluation is removed too, in case an earlier attempt wrote it and
        # was killed before it saved.
        logged, writes = start - bool(pending) if start else -1, multihost.is_main()
        with logbook.Logbook(workdir, logged, s.log.mirrors, writes=writes, taken=start) as book:
            sampler = StepSampler(setup, data, compile_run(setup, data, state), pool)
            if not start or pending:
                log_evaluation(sampler, state, meta, interrupt, book)
            interrupt.starting = False
            interrupt.check()
            with progress.progress(end, start, s.method_name, quiet=not writes) as show:
                log = StepLog(setup, book, meta, show)
                end_of_step = EndOfStep(sampler, store, log, interrupt, end)
                return loop.loop(sampler, state, meta, end_of_step)


def keep_records(workdir: str, record: dict, store: checkpoint.Checkpoints, start: int) -> None:
    """Sets the records of steps after `start` aside and writes config.json."""
    same = not store.went_back(start) and not run_config.changed(workdir, record, CHANGEABLE_KEYS)
    set_aside_later_records(workdir, start, same)
    # written only now, after a checkpoint of another method would have been rejected
    run_config.write_config(workdir, record)


def compile_run(setup: Setup, data: RunData, state: TrainState) -> Programs:
    """All programs of the run, on all hosts, so that no step waits for the compiler."""
    if line := memory_pools.describe(setup.mesh.devices.flat[0]):
        multihost.print_on_main(line)
    multihost.print_on_main(compile_times.announcement(setup))
    began = time.monotonic()
    demo_logp = bool(data.held_out_demos.problems)
    programs = compile_programs(setup, build.abstract_state(setup), demo_logp)
    # a collective of CPU processes waits at most 30 s for the slowest
    multihost.barrier("compiled programs")
    with multihost.watchdog("the first checksums"):
        # compiled now, so that the first save compiles nothing
        state_arrays.checksums(state)
    seconds = time.monotonic() - began
    if multihost.is_main():
        compile_times.record(setup, seconds)
    multihost.print_on_main(f"compiled in {progress.duration(seconds)}")
    return programs


def log_evaluation(
    sampler: StepSampler, state: TrainState, meta: dict, interrupt: Interrupt, book: logbook.Logbook
) -> None:
    """Logs the evaluation before training, or that of a step during which a signal came."""
    step, evaluates = meta["step"], bool(sampler.setup.settings.eval.every)
    scores = validation.evaluation(sampler, state, interrupt, book, step) if evaluates else {}
    if step:
        book.write(step, {key: float(text) for key, text in meta["deferred_line"].items()} | scores)
    elif evaluates:
        book.write(0, scores)
        shown = (f"{key} {value:.3f}" for key, value in scores.items() if "accuracy" in key)
        multihost.print_on_main("before training: " + "  ".join(shown))


def restore_or_init(setup: Setup, store: checkpoint.Checkpoints) -> tuple[TrainState, dict]:
    """(state, meta) of the newest readable checkpoint, or an initial state and zeroed counters."""
    abstract = build.abstract_state(setup)
    with multihost.watchdog("reading of the checkpoint", io_grace=True):
        found = store.restore(saved_state.abstract(setup))
    if found:
        state, meta = found
        with multihost.watchdog("the frozen base", io_grace=True):
            state = state.replace(params=saved_state.with_base(setup, state.params, meta))
        return state, renamed.checkpoint_meta(meta)
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
        "deferred_line": {},
    }


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
