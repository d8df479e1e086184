"""The training loop, read top to bottom: sample, grade, update, log, evaluate, save. One method, one run directory.

Order of one step: prompts and demonstrations of the step (a pure function of seed and cursors) - the method's actors
sample, in `rollout.calls` parts, each graded while the next is generated - one compiled update, dispatched and not
waited for - meanwhile rollouts are written and the next step's rows are padded - then the metrics of this step are
fetched and logged while the next samples are already under way.
Randomness is fold_in(seed, step, prompt, sample), data order a function of two cursors: a run that is killed and
resumed goes on bit for bit. This is the only module that sees a ConfigDict, a mesh and a clock.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from bridge_jax import tasks
from bridge_jax.config import schema
from bridge_jax.data import batches, contamination, traces
from bridge_jax.distributed import consistency, multihost, platforms
from bridge_jax.evaluation import evaluate
from bridge_jax.filesystem import files, hf_folder
from bridge_jax.grading import selftest
from bridge_jax.grading.pool import Pool
from bridge_jax.models import params
from bridge_jax.rundir import checkpoint, finished, logbook
from bridge_jax.training import budget, build, validation
from bridge_jax.training import rollouts as step_rollouts
from bridge_jax.training.build import Run
from bridge_jax.training.interrupt import Interrupt, Stopped
from bridge_jax.training.programs import Programs, compile_count, compile_programs, compiler_options
from bridge_jax.types import Batch, TrainState

logger = logging.getLogger(__name__)
FREE_KEYS = (
    "steps",
    "eval.",
    "checkpoint.",
    "log.",
    "hosts.",
    "facts.demonstrations.",  # the fingerprint of the demonstrations decides
)  # may change when a run resumes: they do not decide its numbers


class Diverged(RuntimeError):
    """Too many updates in a row were not finite."""


class GraderFailed(RuntimeError):
    """Too many samples of a step ended as timeout or grader_error: its rewards say nothing of the model."""


class Step(NamedTuple):
    """What the host knows of a step whose update is under way."""

    number: int  # 1 for the first
    metrics: dict  # device scalars, not fetched
    facts: dict[str, float]  # host scalars
    sampled: dict[str, float]  # tokens that sampling took, whether the update read them or not
    batch: Batch  # kept until the update is known to be finite
    dispatched: float  # clock


def restore_or_begin(run: Run, store: checkpoint.Checkpoints) -> tuple[TrainState, dict]:
    """The newest readable checkpoint of the run directory, or a fresh state and zeroed counters."""
    abstract = build.abstract_state(run)
    with multihost.waiting("reading of the checkpoint"):
        found = store.restore(abstract)
    if found:
        return found
    init = jax.jit(
        run.method.init,
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
        donate_argnums=0,
        compiler_options=compiler_options(),
    )
    with multihost.storing():  # others may wait for this host's share of the weights
        theta = build.initial_theta(run)
    state = init(theta, jax.random.fold_in(jax.random.key(run.settings.seed), 1))
    return state, {
        "step": 0,
        "rl": 0,
        "sft": 0,
        "skipped_in_row": 0,
        "totals": {},
        "train_s": 0.0,
        "unlogged": {},
    }


def announce(run: Run, meta: dict, end: int) -> None:
    """The derived batch table and the facts one checks before leaving a run alone, which shall go to step `end`."""
    s, start = run.settings, meta["step"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params.abstract(run.cfg)))
    demos, held_out = (
        len(run.demos.problems) if run.demos else 0,
        {k: len(v.problems) for k, v in run.splits.items()},
    )
    template = batches.template_hash(run.tokenizer, run.task.messages)
    further = "raise --config.steps" if start >= s.steps else "raise or leave out --stop_at"
    hosts_told = f" of {multihost.count()} hosts" if multihost.count() > 1 else ""
    multihost.say(
        f"{s.method_name} on {s.task_name}: {run.cfg.family} with {count:,} parameters, compute {s.model.dtype}, "
        f"{run.mesh.size} device(s) {dict(run.mesh.shape)}{hosts_told}\n{s.batch.format()}\n"
        f"{len(run.prompts.problems)} prompts, {demos} demonstrations, held out: {held_out}; buckets {run.buckets}, "
        f"at most {s.rollout.max_new} new tokens; prompt template {template}\n"
        + (f"{traces.told(run.demo_counts)}\n" if run.demo_counts else "")
        + (f"samples end at the first of {run.task.stop}\n" if run.task.stop else "")
        + (f"warning: {meta['restore_warning']}\n" if "restore_warning" in meta else "")
        + (
            f"steps {start + 1} to {end}"
            if start < end
            else f"nothing to do: the run stands at step {start} of {s.steps}; {further} to go on"
        )
    )


def check_grader(facts: dict[str, float], step: int, limit: float) -> None:
    """GraderFailed if the grader gave up on more than this share of the step's samples."""
    shares = {name: facts[f"reward/outcome_{name}"] for name in ("timeout", "grader_error")}
    if sum(shares.values()) > limit:
        told = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        raise GraderFailed(
            f"step {step}: the grader gave up on too many samples ({told}; allowed together: {limit:.1%}). "
            "Its rewards would teach nothing. Look at their texts in rollouts/ of the last steps, or raise "
            "log.ungraded_limit; start again from the last checkpoint"
        )


def train(
    config: ConfigDict,
    workdir: str,
    stop_at: int | None = None,
    force_config: bool = False,
    defaults: ConfigDict | None = None,
    devices=None,
) -> dict[str, Any]:
    """Run the config in workdir, resuming what stands there, on the given (default: all) devices.

    Returns the last line of metrics that was written, with "stopped" true if a signal cut the run short.
    """
    with Interrupt() as interrupt:
        try:
            with (
                multihost.joined(config),
                grader(config) as pool,
                contextlib.ExitStack() as held,
            ):  # before anything touches a device
                return train_with(
                    pool, held, config, workdir, stop_at, force_config, defaults, devices, interrupt
                )
        except Stopped:
            multihost.say(
                "stopped by a signal before a step was begun; nothing is lost, the same command goes on"
            )
            return {"stopped": True}


@contextlib.contextmanager
def grader(config: ConfigDict) -> Iterator[Pool | None]:
    """The processes that judge Claims, self-tested; None for a task that makes none."""
    if not getattr(tasks.load(config.get("task", {}).get("name", "")), "CLAIMS", False):
        yield None
        return
    with Pool() as pool:
        selftest.check(pool)
        yield pool


def train_with(
    pool: Pool | None,
    held: contextlib.ExitStack,
    config: ConfigDict,
    workdir: str,
    stop_at: int | None,
    force_config: bool,
    defaults: ConfigDict | None,
    devices,
    interrupt: Interrupt,
) -> dict[str, Any]:
    """train, with its grader running; held: keeps the run directory for this run until the end."""
    with multihost.waiting("the devices of all hosts"):
        platforms.devices()  # hosts tell each other of theirs
    run = build.build(config, devices)._replace(pool=pool)
    s, changes = run.settings, schema.diff(config, defaults) if defaults else {}
    facts = build.facts(run)
    model_files = (
        consistency.model_files(str(hf_folder.locate(s.model.path)))
        if s.model.path and multihost.count() > 1
        else {}
    )
    multihost.agree(
        "data and devices",
        {"devices of a host": len(jax.local_devices()), "stop_at": stop_at}
        | schema.flatten({"facts": facts})
        | {f"model file {name}": said for name, said in model_files.items()},
    )  # a hub's: each host has its own copy
    multihost.check_shared(workdir)
    usual = schema.to_json(defaults) if defaults else None
    multihost.decided(
        "who writes the run directory", lambda: held.enter_context(logbook.claimed(workdir))
    )
    if not multihost.first():
        held.enter_context(logbook.attended(workdir))
    record = multihost.decided(
        "the run directory",
        lambda: logbook.check_run(
            workdir, schema.to_json(config), changes, force_config, FREE_KEYS, facts, usual
        ),
    )
    multihost.decided("unfinished checkpoints", lambda: checkpoint.remove_unfinished(workdir))
    if changes:
        multihost.say(f"{schema.format_diff(changes)}\nall keys: {workdir}/config.json")
    seen = {problem.id: problem for problem in (*run.task.train, *run.task.demos)}.values()
    overlap = contamination.overlap_report(tuple(seen), run.task.splits)
    multihost.say(overlap)
    for name, text in (
        (("batch.txt", s.batch.format()), ("overlap.txt", overlap)) if multihost.first() else ()
    ):
        files.replace(os.path.join(workdir, name), text + "\n")
    end = min(s.steps, stop_at or s.steps)
    last = multihost.decided(
        "whether anything is left to do",
        lambda: None if force_config else finished.last_line(workdir, end),
    )
    if last is None:
        last = resume(run, workdir, end, interrupt, record)
        if multihost.first() and not last["stopped"]:
            finished.write(workdir, last["step"])  # now that the last checkpoint is whole
        return last
    announce(run, last, end)
    if multihost.first():
        logbook.warn_of_flaws(workdir, last["step"])
    return {"stopped": False} | last


def resume(run: Run, workdir: str, end: int, interrupt: Interrupt, record: dict) -> dict[str, Any]:
    """From where the run directory stands to step `end`: restore or begin, compile, evaluate what is owed, loop."""
    s = run.settings
    with checkpoint.Checkpoints(workdir, s.checkpoint.keep) as store:
        state, meta = restore_or_begin(run, store)
        start, began = meta["step"], time.monotonic()
        if multihost.first():
            same = not store.went_back(start) and not logbook.changed(workdir, record, FREE_KEYS)
            keep_record(workdir, start, same)
            logbook.write_config(
                workdir, record
            )  # only now: a checkpoint of another method would have been refused
        announce(run, meta, end)
        if start >= end and not meta.get("unlogged"):
            if multihost.first():
                logbook.warn_of_flaws(workdir, start)
            return {"step": start, "stopped": False}
        # a line that is still owed is cut off too, in case an earlier attempt wrote it and was killed before it saved
        kept = -1 if not start else start - bool(meta.get("unlogged"))
        with logbook.Logbook(
            workdir, kept, s.log.mirrors, writes=multihost.first(), taken=start
        ) as book:
            programs = compile_programs(run, build.abstract_state(run))
            multihost.meet(
                "compiled programs"
            )  # a collective of CPU processes waits 30 s for the slowest, and no more
            with multihost.waiting("the first checksums"):
                checkpoint.checksums(
                    state
                )  # its programs too: the first save shall compile nothing
            multihost.say(f"compiled in {time.monotonic() - began:.1f} s")
            if not start and s.eval.every:
                base = validation.evaluation(run, programs, state, interrupt, book, 0)
                book.write(0, base)
                shown = (f"{key} {value:.3f}" for key, value in base.items() if "accuracy" in key)
                multihost.say("before training: " + "  ".join(shown))
            if meta.get("unlogged"):  # a signal came when this step was to be evaluated
                facts = {key: float(text) for key, text in meta["unlogged"].items()}
                book.write(
                    start,
                    facts
                    | (
                        validation.evaluation(run, programs, state, interrupt, book, start)
                        if s.eval.every
                        else {}
                    ),
                )
            interrupt.starting = False
            interrupt.check()
            return loop(run, programs, state, meta, store, book, interrupt, end)


def retreat(store: checkpoint.Checkpoints, finite: int, learning_rate: float) -> str:
    """Goes back to the last good checkpoint; says which that is, and how to go on. finite: the last update that was.

    What that update led to is in doubt: an update that is finite may throw the weights so far that no later one is.
    """
    with multihost.waiting("the last good checkpoint"):
        good, renamed = store.retreat(finite - 1)
    lower = f"--config.optim.base.learning_rate below {learning_rate:g}"
    longer = "with --config.log.skipped_limit raised"
    if good is None:
        newest = max(store.steps(), default=None)
        there = "there is none" if newest is None else f"that of step {newest} may be ruined"
        return (
            f"No checkpoint is known to be good: {there}. Begin in another --workdir with {lower}, or go on here "
            f"{longer}"
        )
    ruined = f" (later ones may be ruined: now {', '.join(renamed)})" if renamed else ""
    return (
        f"The last good checkpoint is that of step {good}, {store.path(good)}{ruined}; the same command goes on "
        f"from it, with --force_config and {lower}, or {longer}"
    )


def keep_record(workdir: str, start: int, same: bool) -> None:
    """Sets the record of later steps aside, unless a kill explains that no checkpoint stands behind them.

    A kill costs up to two intervals between checkpoints: one of steps, and one whose save was under way. What it cost is
    taken again and comes out the same, so that its lines can be cut. same: no checkpoint was passed over, and the config
    is that under which they were written.
    """
    interval, last = logbook.save_interval(workdir), logbook.last_step(workdir)
    killed = start and same and (not interval or last - start <= 2 * interval)
    place = None if killed else logbook.set_aside(workdir, start or -1)
    if place:
        behind = f"the checkpoint of step {start}" if start else "no checkpoint"
        multihost.say(
            f"warning: the record in {workdir} goes on to step {max(0, last)}, and {behind} is all that can be gone on from; "
            f"what is later was set aside, not deleted: {place}"
        )


def loop(
    run: Run,
    programs: Programs,
    state: TrainState,
    meta: dict,
    store,
    book,
    interrupt: Interrupt,
    end: int,
) -> dict[str, Any]:
    """Steps meta["step"] + 1 to end."""
    s, totals = run.settings, collections.Counter(meta["totals"])
    cursors, last, pending = {"rl": meta["rl"], "sft": meta["sft"]}, {}, None
    skipped, clock, meter = (
        meta["skipped_in_row"],
        time.monotonic(),
        budget.Meter(meta.get("times", {})),
    )
    trained = lambda: meta["train_s"] + time.monotonic() - clock
    due = False  # whether a checkpoint is

    def finish(step: Step | None, extra: dict, log: bool = True, updated: float = 0.0) -> None:
        """Fetch the metrics of a step, which waits for its update, and log them; updated: when that ended, if it is known."""
        nonlocal skipped, last
        if step is None:
            return
        metrics = {
            key: float(value)
            for key, value in multihost.fetch(f"update of step {step.number}", step.metrics).items()
        }
        metrics["time/update_s"] = (updated or time.monotonic()) - step.dispatched
        spent = {
            key: value for key, value in metrics.items() if key.startswith("budget/")
        } | step.sampled
        spent["budget/flops"] = budget.step_flops(run.cfg, spent, *budget.mean_lengths(step.batch))
        spent["time/device_s"] = metrics["time/update_s"] + step.facts.get(
            "time/rollout_s", 0.0
        )  # as the host sees it
        totals.update(spent)
        metrics |= budget.token_rates(
            spent, step.facts.get("time/rollout_s", 0.0), metrics["time/update_s"]
        )
        metrics |= totals  # all of them, also those that this kind of step does not spend
        last = metrics | step.facts | extra | meter.read() | budget.peak_memory()
        last |= {"compile/count": compile_count(), "time/train_s": trained()}
        if log:
            book.write(step.number, last)
        shown = {
            "reward": "reward/mean",
            "J_SFT": "sft/logp",
            "gain": "bridge/gain",
            "held out": "eval/held_out_accuracy",
        }
        show(
            step.number,
            "  ".join(f"{name} {last[key]:.3f}" for name, key in shown.items() if key in last),
        )
        skipped = skipped + 1 if metrics["update/skipped"] else 0
        if metrics["update/skipped"]:
            logger.warning(
                "step %d: gradient or objective not finite, update skipped; batch in %s",
                step.number,
                book.write_batch(step.number, step.batch),
            )
        if skipped >= s.log.skipped_limit:
            raise Diverged(
                f"{skipped} updates in a row were not finite, the last at step {step.number}; nothing was "
                f"changed by them. Their batches are in {book.workdir}/batches. "
                + retreat(store, step.number - skipped, s.recipes.base.learning_rate)
            )

    def save(number: int, unlogged: dict) -> None:
        book.sync()  # what the checkpoint says is done
        with multihost.waiting(f"checkpoint of step {number}"):
            store.save(
                number,
                state,
                {
                    **cursors,
                    "step": number,
                    "skipped_in_row": skipped,
                    "totals": dict(totals),
                    "seed": s.seed,
                    "train_s": trained(),
                    "times": meter.read(),
                    "unlogged": unlogged,
                },
                # the last update that was finite began from the state of the step before it
                good=number - skipped - 1,
            )

    with logbook.progress(end, meta["step"], s.method_name, quiet=not multihost.first()) as show:
        for number in range(meta["step"] + 1, end + 1):
            interrupt.step = number
            spec = run.method.batch_spec(number - 1)
            bucket, indices, demos = step_rollouts.rows_of_step(run, spec, cursors)
            policy = lambda actor: programs.policy[actor](state.params)
            under_way = {
                actor: step_rollouts.dispatch(
                    run, programs, policy(actor), number - 1, bucket, indices
                )
                for actor in spec.sampled_by
            }
            finish(
                pending, {}
            )  # the last update is done when this returns; the samplers are already queued behind it
            pending, began, rollouts, written, facts = (
                None,
                time.monotonic(),
                {},
                [],
                {"time/grade_s": 0.0},
            )
            for actor in spec.sampled_by:
                rollouts[actor], graded, grading = step_rollouts.collect(
                    run, under_way.pop(actor), indices, number - 1
                )
                facts["time/grade_s"] += grading
                if actor == "theta":
                    facts |= evaluate.rates([o for part in graded for o in part.outcomes])
                    check_grader(facts, number, s.log.ungraded_limit)
                    length_B = rollouts[actor].seqs.length_B
                    facts |= {
                        "rollout/tokens": int(length_B.sum()),
                        "rollout/length": float(length_B.mean()),
                        "rollout/stopped": float(
                            np.mean([part.samples.stopped_B for part in graded])
                        ),
                    }
                    if run.task.stop:
                        facts["rollout/unread_tokens"] = sum(part.unread for part in graded)
                written.append((actor, indices, graded))
            cursor = cursors["rl"] + len(indices)
            if run.method.resample_rounds:
                facts["reward/mean"] = float(
                    rollouts["theta"].reward_B.mean()
                )  # of all that was asked first
                cursor, rounds, grading = step_rollouts.replace_equal_groups(
                    run, programs, policy("theta"), number - 1, bucket, cursor, rollouts["theta"]
                )
                facts |= {
                    "time/grade_s": facts["time/grade_s"] + grading,
                    "rollout/rounds": 1 + len(rounds),
                }
                written += [("theta", *round) for round in rounds]
            facts["time/rollout_s"] = time.monotonic() - began - facts["time/grade_s"]
            batch = Batch(demos, rollouts)
            dispatched = time.monotonic()
            with multihost.waiting(f"the start of update {number}"):
                state, metrics = programs.update[bucket, spec](
                    state, step_rollouts.on_mesh(run, step_rollouts.packed(run, batch))
                )
            pending = Step(
                number,
                metrics,
                facts,
                step_rollouts.sampled_tokens(run, written),
                batch,
                dispatched,
            )
            cursors = {"rl": cursor, "sft": cursors["sft"] + s.batch.demos_per_step * spec.demos}
            if s.log.rollouts_every and number % s.log.rollouts_every == 0 and written:
                book.write_rollouts(
                    number,
                    [row for group in written for row in step_rollouts.transcript(run, *group)],
                )
            stopping = interrupt.agreed()
            # by the config's last step, not by `end`: a run that is cut at stop_at logs what an unbroken one does
            evaluating = bool(s.eval.every) and (number % s.eval.every == 0 or number == s.steps)
            due = due or bool(s.checkpoint.every and number % s.checkpoint.every == 0)
            saving = due or number == end or stopping
            owed = (
                evaluating and stopping
            )  # who sends SIGTERM may not wait: evaluated when the run goes on
            if evaluating or saving:
                with multihost.waiting(f"update of step {number}"):
                    jax.block_until_ready(metrics)
                updated = time.monotonic()
                with meter.paused():
                    try:
                        seen = (
                            validation.evaluation(run, programs, state, interrupt, book, number)
                            if evaluating and not owed
                            else {}
                        )
                    except Stopped:
                        seen, owed = {}, True
                finish(pending, seen, not owed, updated)
                pending, stopping = None, stopping or interrupt.agreed()
            # of a signal from now on
            interrupt.step = number if stopping else min(number + 1, end)
            # while updates are skipped the state may be ruined: then only what would be lost by ending is saved, beside
            # the last good checkpoint, and what is due is saved once an update was finite
            if (due and not skipped) or number == end or stopping:
                due = False
                with meter.paused():
                    save(number, {key: repr(value) for key, value in last.items()} if owed else {})
            if stopping:
                multihost.say(
                    f"stopped by a signal after step {number}; saved. The same command goes on from here"
                )
                return {"step": number, "stopped": True} | last
    if skipped:
        logger.warning(
            "the run ended while updates were skipped: the state of step %d may be ruined, and those up to "
            "step %d are good",
            end,
            end - skipped - 1,
        )
    return {"step": max(end, meta["step"]), "stopped": False} | last
