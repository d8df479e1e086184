"""Run a grid of settings and seeds: `python -m experiments.sweep --sweep=FILE --workdir=DIR
[--launcher=local] [--dry_run]`.

A sweep file, such as configs/sweeps/lam.py, has `get_sweep()`, which returns a dict:

    config    the config file, such as "configs/ladder.py"
    set       {key: value} in all runs; keys as on the command line, "task.corrupt"
    variants  {name: {key: value}}; the key "method" is the name after the config file's colon
    grid      {key: values}: all combinations
    zip       {key: values}, of one length: first with first, second with second
    seeds     the seeds of each

Every run has a directory DIR/NAME.HASH and, when it is done, a line of results.jsonl (--results):
its settings, what it spent, its figures at each evaluation, and which held-out problems it solved.
A run with a line is skipped; a run that was cut off goes on; a run that fails is reported at the
end and does not stop the others. HASH is of the settings and of the weights the run begins with, so
that a changed sweep file never meets the results or directories of another run.

Ctrl-C, SIGTERM, or a terminal that is closed: the runs under way save and end. Runs that finished
on a TPU pod are recorded by the same sweep with --launcher=local over the same DIR.

Exit codes: 0 all done; 1 some failed; 2 the sweep is invalid; 5 some failed because the disk is
full: make room, and the same command goes on; 130 stopped.
"""

from __future__ import annotations

import json
import os
import sys

from absl import flags

from bridge_jax.filesystem import files
from experiments import INTERRUPTED, processes
from experiments.cli import (
    DISK_FULL,
    define_path,
    fail,
    fail_by,
    interrupt_by_signals,
    output_for_a_pipe,
    run_command,
)
from experiments.sweep import launch, plan, results
from experiments.sweep.plan import Run

EXAMPLE = "python -m experiments.sweep --sweep=configs/sweeps/lam.py --workdir=runs/lam"


def main(argv: list[str]) -> None:
    """Plan the sweep, show or run what is not done, report what failed."""
    given = flags.FLAGS
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}")
    try:
        runs = plan.runs_of(plan.load(given.sweep))
        slurm = parameters_of(given.slurm)
        path = given.results or os.path.join(given.workdir, "results.jsonl")
        finished = results.done(path)
    except ValueError as error:
        fail(str(error))
    if given.dry_run:
        show(table(runs, finished, given.workdir))
        return
    left = [run for run in runs if run.identity not in finished]
    counts = f"{len(runs)} runs, {len(runs) - len(left)} done, {len(left)} to do; results in {path}"
    if given.launcher == "tpu":
        # standard output has the commands alone, to be piped
        print(counts, file=sys.stderr)
        show(launch.tpu_commands(left, given.workdir))
        return
    print(counts, flush=True)
    make_folders(given.workdir, path)
    interrupt_by_signals()
    try:
        if given.launcher == "local":
            ended = launch.locally(left, given.workdir, path, shares_of(given.jobs))
        else:
            cluster = given.launcher.replace("submitit_", "")
            ended = launch.by_submitit(left, given.workdir, path, cluster, slurm)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    report(ended, len(runs))


def show(text: str) -> None:
    """Print text that may be piped into a command such as head."""
    with output_for_a_pipe():
        print(text)


def shares_of(jobs: int) -> list[processes.Share]:
    """What each of the jobs here may use; end the program where they are too many."""
    try:
        return processes.shares(jobs)
    except ValueError as error:
        fail(str(error))


def make_folders(workdir: str, path: str) -> None:
    """Make the folders of the runs and the results; end the program where that fails."""
    try:
        os.makedirs(workdir, exist_ok=True)
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    except OSError as error:
        if files.is_full(error):
            fail_by(error)
        fail(f"the results cannot be kept: {error}; choose another --workdir or --results")


def report(ended: list[launch.Result], count: int) -> None:
    """Print which of the `count` runs failed, and end with the exit code."""
    failed = [result for result in ended if result.error]
    for result in failed:
        print(f"failed: {result.run.name}: {result.error}")
    print(
        f"{count - len(failed)} of {count} runs are done"
        + (f", {len(failed)} failed" if failed else "")
    )
    if any(result.full for result in failed):
        sys.exit(DISK_FULL)
    sys.exit(1 if failed else 0)


def table(runs: list[Run], finished: set[tuple[str, str, str]], workdir: str) -> str:
    """The runs, the state of each, and its settings."""
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
    """The parameters of submitit in --slurm; ValueError unless they are a JSON object."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        found = error
    if not isinstance(found, dict):
        raise ValueError(
            f"--slurm={text} is no JSON object ({found}); give one such as "
            "'{\"timeout_min\": 60}'"
        )
    return found


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


def start() -> None:
    """The command, with its flags."""
    define_flags()
    run_command(main, EXAMPLE)
