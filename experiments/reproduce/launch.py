"""Runs jobs in processes of their own, as many at a time as asked for.

A job that fails loses no other: those that need it wait for the next command, the others go on.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from bridge_jax.rundir.progress import duration
from experiments import processes
from experiments.cli import DISK_FULL
from experiments.reproduce.jobs import Job

# between two looks at the processes
LOOK_S = 0.2
# exit code of a training
DIVERGED = 3


class Failure(NamedTuple):
    """A job that is not done."""

    job: Job
    reason: str
    # exit code; None where it was not begun
    code: int | None = None


class Running(NamedTuple):
    """A job under way."""

    job: Job
    process: subprocess.Popen
    share: processes.Share
    began: float
    label: str


def log_of(logs: Path, job: Job) -> Path:
    """The file of a job's output."""
    return logs / f"{job.stage}.{job.name}.log"


def run(
    jobs: Sequence[Job], is_done: Callable[[Job], bool], at_a_time: int, logs: Path
) -> list[Failure]:
    """Run the jobs that are not done, and return those that failed or could not begin.

    is_done is asked before and after each job. KeyboardInterrupt: the jobs under way are asked to
    save and end, and have ended when it leaves.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = [job for job in jobs if not is_done(job)]
    total, free = len(waiting), processes.shares(at_a_time)
    under_way: list[Running] = []
    failures: list[Failure] = []
    try:
        while waiting or under_way:
            for job in [job for job in waiting if all(map(is_done, job.needs))][: len(free)]:
                waiting.remove(job)
                number = total - len(waiting)
                label = f"[{number}/{total}] {job.title}"
                under_way.append(begin(job, free.pop(0), label, logs))
            if not under_way:
                # what there is nothing to evaluate of, since its run diverged, is done by now
                failures += [blocked(job, is_done) for job in waiting if not is_done(job)]
                break
            for one in wait_for_one(under_way):
                under_way.remove(one)
                free.append(one.share)
                failures += end(one, is_done, logs)
    finally:
        processes.end(one.process for one in under_way)
    return failures


def begin(job: Job, share: processes.Share, label: str, logs: Path) -> Running:
    """Start the job's process."""
    log = log_of(logs, job)
    print(f"{label} begins; log: {log}", flush=True)
    process = processes.start(job.command, log, share)
    return Running(job, process, share, time.monotonic(), label)


def wait_for_one(under_way: list[Running]) -> list[Running]:
    """The jobs that have ended, once one has."""
    while not (ended := [one for one in under_way if one.process.poll() is not None]):
        time.sleep(LOOK_S)
    return ended


def end(one: Running, is_done: Callable[[Job], bool], logs: Path) -> list[Failure]:
    """Say how a job ended; its failure, if it is one."""
    code, took = one.process.returncode, duration(time.monotonic() - one.began)
    if code == 0 and is_done(one.job):
        print(f"{one.label}: done after {took}", flush=True)
        return []
    if code == DIVERGED and is_done(one.job):
        print(f"{one.label}: diverged after {took}, which is an outcome", flush=True)
        return []
    reason = processes.last_line(log_of(logs, one.job)).removeprefix("error: ") or "no output"
    if code == 0:
        reason = f"it ended before it was done ({reason})"
    print(f"{one.label}: failed after {took}: {reason}", flush=True)
    return [Failure(one.job, reason, code)]


def blocked(job: Job, is_done: Callable[[Job], bool]) -> Failure:
    """Why a job could not begin."""
    lacking = ", ".join(f"{one.title}" for one in job.needs if not is_done(one))
    return Failure(job, f"not begun, since it needs {lacking}")


def explain(failure: Failure, logs: Path) -> str:
    """One line: what failed, why, where its log is, and the way out."""
    job = failure.job
    if failure.code is None:
        return f"{job.title}: {failure.reason}"
    return (
        f"{job.title} failed with exit code {failure.code}: {failure.reason} (log: "
        f"{log_of(logs, job)})"
    )


def exit_code(failures: Sequence[Failure]) -> int:
    """0, 5 where the disk was full, else 1."""
    return DISK_FULL if any(one.code == DISK_FULL for one in failures) else int(bool(failures))
