"""Launch the runs of a sweep: here, by submitit, or as commands for a TPU pod."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import time
from typing import NamedTuple

from bridge_jax.filesystem import files
from bridge_jax.rundir.progress import duration
from experiments import processes
from experiments.cli import DISK_FULL
from experiments.processes import WHOLE, Share
from experiments.sweep.plan import Run
from experiments.sweep.results import record

# training processes under way
_children: set[subprocess.Popen] = set()


class Result(NamedTuple):
    """The end of a run."""

    run: Run
    # "" if it is done
    error: str
    # whether a full disk was the reason
    full: bool = False


def command_of(run: Run, workdir: str) -> list[str]:
    """The training command of one run; running it again resumes the run."""
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


def log_of(run: Run, workdir: str) -> str:
    """The file that the training process of a run prints to."""
    return os.path.join(workdir, run.folder + ".log")


def execute(run: Run, workdir: str, results: str, share: Share = WHOLE) -> Result:
    """Train in a process of its own, then record the result.

    share: of the machine, for the process. Its output goes to DIR/NAME.HASH.log.
    """
    try:
        return train(run, workdir, results, share)
    except Exception as error:
        # an error of this run alone: the others go on, and the sweep reports it at the end
        message = f"{type(error).__name__}: {files.explain(error)}"
        return Result(run, message, files.is_full(error))


def train(run: Run, workdir: str, results: str, share: Share) -> Result:
    """`execute`, whose exceptions are not caught."""
    log = log_of(run, workdir)
    files.mend(log, cut=False)
    with processes.start(command_of(run, workdir), log, share, append=True) as child:
        _children.add(child)
        code = child.wait()
        _children.discard(child)
    if code:
        error = f"exit code {code}: {processes.last_line(log) or 'no output'} (see {log})"
        return Result(run, error, code == DISK_FULL)
    return Result(run, record(run, workdir, results))


def locally(runs: list[Run], workdir: str, results: str, shares: list[Share]) -> list[Result]:
    """As many runs at a time as there are shares of the machine, each on one of them.

    KeyboardInterrupt: the runs under way are asked to save and end, the others are not begun.
    """
    jobs, free, ended = len(shares), list(shares), []

    def one(number: int, run: Run) -> Result:
        share, label, began = free.pop(), f"[{number}/{len(runs)}] {run.name}", time.monotonic()
        print(f"{label} begins; log: {log_of(run, workdir)}", flush=True)
        try:
            result = execute(run, workdir, results, share)
        finally:
            free.append(share)
        took = duration(time.monotonic() - began)
        failed = f"failed after {took}: {result.error}"
        print(f"{label}: {failed if result.error else f'done after {took}'}", flush=True)
        return result

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        try:
            futures = [pool.submit(one, number, run) for number, run in enumerate(runs, 1)]
            for future in concurrent.futures.as_completed(futures):
                ended.append(future.result())
        except KeyboardInterrupt:
            print("stopping: the runs under way save and end", file=sys.stderr, flush=True)
            pool.shutdown(wait=False, cancel_futures=True)
            processes.end(list(_children))
            raise
    return ended


def by_submitit(
    runs: list[Run], workdir: str, results: str, cluster: str, parameters: dict
) -> list[Result]:
    """Each run as a job of submitit (cluster "slurm", or "local" for a trial); waits for all."""
    import submitit

    executor = submitit.AutoExecutor(folder=os.path.join(workdir, "submitit"), cluster=cluster)
    executor.update_parameters(name="bridge_jax", **parameters)
    jobs = []
    for number, run in enumerate(runs, 1):
        jobs.append((run, executor.submit(execute, run, workdir, results)))
        print(f"[{number}/{len(runs)}] {run.name} queued; log: {log_of(run, workdir)}", flush=True)
    ended = []
    for run, job in jobs:
        error = job.exception()
        ended.append(Result(run, str(error)) if error else job.result())
        print(f"[{len(ended)}/{len(runs)}] {run.name}: {ended[-1].error or 'done'}", flush=True)
    return ended


def tpu_commands(runs: list[Run], workdir: str) -> str:
    """A command for each run on a TPU pod, to be copied; the reader sets $TPU and $ZONE.

    See docs/launch.md.
    """
    auto = "--config.hosts.coordinator=auto"
    return "\n".join(processes.on_tpu([*command_of(run, workdir)[1:], auto]) for run in runs)
