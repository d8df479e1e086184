"""Run a sweep: `python -m experiments.sweep --sweep=configs/sweeps/NAME.py --workdir=DIR [--launcher=local] [--dry_run]`.

A sweep file has `get_sweep()`, which returns a dict:

    config    the config file, such as "configs/ladder.py"
    set       {key: value} in all runs; keys as on the command line, "task.corrupt"
    variants  {name: {key: value}}; the key "method" is what stands behind the config's name
    grid      {key: values}: all combinations
    zip       {key: values}, of one length: first with first, second with second
    seeds     the seeds of each

Every run is a directory DIR/NAME.HASH and, when it is done, one line of results.jsonl (--results): its settings, what it spent,
its figures at each evaluation, and which held-out problems it solved. What stands there is skipped; a run that was cut off goes
on; a run that fails is told of at the end and does not stop the others. HASH is of the settings and of the weights it begins
from: a sweep whose file has changed finds neither its results nor its directories taken.
Ctrl-C, SIGTERM, or a terminal that is closed: the runs under way save and end. What finished on a TPU pod is recorded when the sweep is run once more with
--launcher=local over the same DIR: each run is found at its end there.
Exit codes: 0 all done, 1 some failed, 2 the sweep is invalid, 5 some failed because the disk is full: make room, and the
same command goes on; 130 stopped.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from typing import NamedTuple

from absl import flags

from bridge_jax.filesystem import files, textfile
from experiments import INTERRUPTED
from experiments.cli import (
    DISK_FULL,
    check_output,
    define_path,
    fail,
    fail_by,
    interrupt_by_signals,
    run_command,
)
from experiments.sweep_plan import Run, load, runs_of, weights_of

MEANS = (
    "reward/mean",
    "reward/outcome_correct",
    "grad/cos_sft_rl",
    "bridge/gain",
    "bridge/ess",
    "bridge/kl_hat",
    "sft/logp",
    "rollout/entropy",
    "rollout/length",
    "bridge/lam",
)  # kept as means since the evaluation before
KEPT = re.compile(
    r"eval/.*_accuracy|coop/(gain(_stderr|_low|_high)?|expert_logp)|budget/.*|memory/.*"
    r"|time/(wall|cpu|train|device)_s"
)


class Result(NamedTuple):
    """How a run ended."""

    run: Run
    error: str  # "" if it is done
    full: bool = False  # whether a full disk was the reason


def command_of(run: Run, workdir: str) -> list[str]:
    """The command of one run; running it again resumes."""
    write = lambda value: value if isinstance(value, str) else repr(value)
    given = [f"--config.{key}={write(value)}" for key, value in run.settings.items()]
    return [
        sys.executable,
        "-m",
        "experiments.train",
        f"--config={run.config}",
        f"--workdir={os.path.join(workdir, run.folder)}",
        f"--config.seed={run.seed}",
        *given,
    ]


def done(results: str) -> set[tuple[str, str, str]]:
    """Run.identity of the runs whose line stands in the results; ValueError for a file that is not of results."""
    if not os.path.exists(results):
        return set()
    found, number = set(), 0
    try:
        lines = files.lines(results)
    except OSError as error:
        raise ValueError(f"--results={results} cannot be read: {error}") from None
    try:
        for number, text in enumerate(lines, 1):
            line = json.loads(text)
            found.add((line["name"], line["fingerprint"], line["weights"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{results}, line {number}, is no result ({error!r}); mend or remove the line: its run is then "
            "looked at again"
        ) from None
    return found


def summary(run: Run, workdir: str) -> dict:
    """The line of a finished run; ValueError if the run directory is not at its last step."""
    from bridge_jax.rundir import logbook

    folder = os.path.join(workdir, run.folder)
    lines = logbook.read(folder)
    config = json.loads(textfile.read(os.path.join(folder, "config.json")))["config"]
    steps = config["steps"]
    if not lines or lines[-1]["step"] < steps:
        raise ValueError(f"it stands at step {lines[-1]['step'] if lines else 0} of {steps}")
    curve, since = [], []
    for line in lines:
        since.append(line)
        if any(key.startswith("eval/") for key in line) or line["step"] == steps:
            means = {key: [row[key] for row in since if row.get(key) is not None] for key in MEANS}
            point = {"step": line["step"]} | {
                key: sum(values) / len(values) for key, values in means.items() if values
            }
            point |= {
                key: value
                for key, value in line.items()
                if KEPT.fullmatch(key) and value is not None
            }
            curve.append({key: float(f"{value:.5g}") for key, value in point.items()})
            since = []
    last = logbook.read_solved(folder)
    solved = {
        key: f"{int('1' + bits, 2):x}" for key, bits in last.items() if key in ("held_out", "dev")
    }
    solved |= {key: counts for key, counts in last.items() if key == "held_out_sampled"}
    return {
        "name": run.name,
        "variant": run.variant,
        "seed": run.seed,
        "config": run.config,
        "settings": run.settings,
        "fingerprint": run.fingerprint,
        "weights": weights_of(config["model"]["path"]),
        "steps": steps,
        "skipped": sum(line.get("update/skipped", 0) for line in lines),
        "curve": curve,
        "solved": solved,
    }


_writing, _children = threading.Lock(), set()


def record(run: Run, workdir: str, results: str) -> str:
    """Append the run's line; "" or what is wrong with the run. OSError where the results cannot be written."""
    try:
        text = json.dumps(summary(run, workdir)) + "\n"
    except (ValueError, OSError) as error:
        return files.explain(error)
    with _writing:
        files.append(results, text)  # another sweep may share the file
    return ""


def execute(run: Run, workdir: str, results: str, cores: tuple[int, ...] = ()) -> Result:
    """Train in a process of its own, on these cores if any, its output in DIR/NAME.HASH.log; then record it."""
    try:
        return trained(run, workdir, results, cores)
    except Exception as error:  # of this run alone: the others go on, and it is told of at the end
        told = files.explain(error)
        return Result(run, f"{type(error).__name__}: {told}", files.is_full(error))


def trained(run: Run, workdir: str, results: str, cores: tuple[int, ...]) -> Result:
    """execute, without its safety net."""
    log = os.path.join(workdir, run.folder + ".log")
    pin = (
        (lambda: os.sched_setaffinity(0, cores))
        if cores and hasattr(os, "sched_setaffinity")
        else None
    )
    files.mend(log, cut=False)
    with (
        open(log, "a") as file,
        subprocess.Popen(
            command_of(run, workdir), stdout=file, stderr=subprocess.STDOUT, preexec_fn=pin
        ) as child,
    ):
        _children.add(child)
        code = child.wait()
        _children.discard(child)
    if code:
        with open(log, errors="replace") as file:
            told = [line for line in file.read().splitlines() if line.strip()]
        error = f"exit code {code}: {told[-1] if told else 'no output'} (see {log})"
        return Result(run, error, code == DISK_FULL)
    return Result(run, record(run, workdir, results))


def locally(runs: list[Run], workdir: str, results: str, jobs: int) -> list[Result]:
    """`jobs` runs at a time; each has its own share of the processor's cores, so that runs do not slow each other down.

    KeyboardInterrupt: those under way are asked to save and end, those to come are not begun.
    """
    there = (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else list(range(os.cpu_count() or 1))
    )
    share = max(1, len(there) // jobs)
    free = (
        [tuple(there[i * share % len(there) : i * share % len(there) + share]) for i in range(jobs)]
        if jobs > 1
        else [()]
    )
    ended = []

    def one(run: Run) -> Result:
        cores = free.pop()
        try:
            return execute(run, workdir, results, cores)
        finally:
            free.append(cores)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        try:
            for future in concurrent.futures.as_completed([pool.submit(one, run) for run in runs]):
                ended.append(future.result())
                told = f"failed: {ended[-1].error}" if ended[-1].error else "done"
                print(f"[{len(ended)}/{len(runs)}] {ended[-1].run.name}: {told}", flush=True)
        except KeyboardInterrupt:
            print("stopping: the runs under way save and end", file=sys.stderr, flush=True)
            pool.shutdown(wait=False, cancel_futures=True)
            for child in list(_children):
                child.terminate()
            raise
    return ended


def by_submitit(
    runs: list[Run], workdir: str, results: str, cluster: str, parameters: dict
) -> list[Result]:
    """Each run as a job of submitit (cluster "slurm", or "local" to try); waits for all of them."""
    import submitit

    executor = submitit.AutoExecutor(folder=os.path.join(workdir, "submitit"), cluster=cluster)
    executor.update_parameters(name="bridge_jax", **parameters)
    jobs = [(run, executor.submit(execute, run, workdir, results)) for run in runs]
    ended = []
    for run, job in jobs:
        error = job.exception()
        ended.append(Result(run, str(error)) if error else job.result())
        print(f"[{len(ended)}/{len(runs)}] {run.name}: {ended[-1].error or 'done'}", flush=True)
    return ended


def tpu_commands(runs: list[Run], workdir: str) -> str:
    """One command a run for TPU pods, to be copied; $TPU and $ZONE are the reader's (docs/launch.md)."""
    shell = lambda run: (
        "cd bridge_jax && "
        + shlex.join(
            [".venv/bin/python", *command_of(run, workdir)[1:], "--config.hosts.coordinator=auto"]
        )
    )
    return "\n".join(
        f"gcloud compute tpus tpu-vm ssh $TPU --zone=$ZONE --worker=all --command={shlex.quote(shell(run))}"
        for run in runs
    )


def table(runs: list[Run], finished: set[tuple[str, str, str]], workdir: str) -> str:
    """The runs, what each sets, and where it stands."""
    rows = [("run directory", "state", "config", "settings")]
    for run in runs:
        began = os.path.exists(os.path.join(workdir, run.folder, "metrics.jsonl"))
        state = "done" if run.identity in finished else "cut off" if began else "to do"
        rows.append(
            (
                run.folder,
                state,
                run.config,
                " ".join(f"{key}={value}" for key, value in run.settings.items()),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def parameters_of(text: str) -> dict:
    """What --slurm gives to submitit; ValueError unless it is a JSON object."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        found = error
    if not isinstance(found, dict):
        raise ValueError(
            f"--slurm={text} is no JSON object ({found}); give one such as '{{\"timeout_min\": 60}}'"
        )
    return found


def main(argv: list[str]) -> None:
    """Plan, run what is left, say what failed."""
    given = flags.FLAGS
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}")
    try:
        runs = runs_of(load(given.sweep))
        slurm = parameters_of(given.slurm)
        results = given.results or os.path.join(given.workdir, "results.jsonl")
        finished = done(results)
    except ValueError as error:
        fail(str(error))
    if given.dry_run or given.launcher == "tpu":  # to be read, or piped into head
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if given.dry_run:
        print(table(runs, finished, given.workdir))
        return check_output()
    left = [run for run in runs if run.identity not in finished]
    told = (
        f"{len(runs)} runs, {len(runs) - len(left)} done, {len(left)} to do; results in {results}"
    )
    if given.launcher == "tpu":  # commands alone, to be piped; nothing is made here
        print(told, file=sys.stderr)
        print(tpu_commands(left, given.workdir))
        return check_output()
    print(told, flush=True)
    try:
        os.makedirs(given.workdir, exist_ok=True)
        os.makedirs(os.path.dirname(os.path.abspath(results)), exist_ok=True)
    except OSError as error:
        if files.is_full(error):
            fail_by(error)
        fail(f"the results cannot be kept: {error}; choose another --workdir or --results")
    interrupt_by_signals()
    try:
        if given.launcher == "local":
            ended = locally(left, given.workdir, results, given.jobs)
        else:
            ended = by_submitit(
                left, given.workdir, results, given.launcher.replace("submitit_", ""), slurm
            )
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    failed = [result for result in ended if result.error]
    for result in failed:
        print(f"failed: {result.run.name}: {result.error}")
    print(
        f"{len(runs) - len(failed)} of {len(runs)} runs are done"
        + (f", {len(failed)} failed" if failed else "")
    )
    if any(result.full for result in failed):
        sys.exit(DISK_FULL)
    sys.exit(1 if failed else 0)


def define_flags() -> None:
    """The flags of this command."""
    define_path("sweep", None, "a file of configs/sweeps/")
    define_path("workdir", None, "where the runs go")
    define_path("results", "", "the file of finished runs; default: results.jsonl in the workdir")
    flags.DEFINE_enum(
        "launcher",
        "local",
        ["local", "slurm", "submitit_local", "tpu"],
        "here; by submitit, on Slurm or here; or print commands for a TPU pod",
    )
    flags.DEFINE_integer("jobs", 1, "local: runs at a time", lower_bound=1)
    flags.DEFINE_string(
        "slurm", '{"timeout_min": 1440}', "parameters of submitit's executor, as JSON"
    )
    flags.DEFINE_bool("dry_run", False, "print the table of runs alone")
    flags.mark_flags_as_required(["sweep", "workdir"])


if __name__ == "__main__":
    define_flags()
    run_command(main)
