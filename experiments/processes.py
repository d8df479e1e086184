"""What the commands that start other commands share: cores, processes with logs, a TPU's command.

experiments.quickstart, experiments.sweep and experiments.reproduce run each of their parts as an
ordinary command in a process of its own, whose output goes to a file. These processes are no part
of the terminal's foreground: Ctrl-C reaches the command alone, which passes it on once.
"""

from __future__ import annotations

import os
import pathlib
import shlex
import signal
import subprocess
from collections.abc import Iterable, Sequence


def available_cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def core_shares(jobs: int) -> list[tuple[int, ...]]:
    """The cores of each of several jobs; [()] for a single job, which may use all."""
    if jobs == 1:
        return [()]
    cores = available_cores()
    size = max(1, len(cores) // jobs)
    firsts = [i * size % len(cores) for i in range(jobs)]
    return [tuple(cores[first : first + size]) for first in firsts]


def start(
    command: Sequence[str],
    log: str | os.PathLike,
    cores: tuple[int, ...] = (),
    append: bool = False,
) -> subprocess.Popen:
    """The process of a command, on these cores ((): all), with its output in the file `log`.

    It has a session of its own, so that the terminal's signals do not reach it; see `end`.
    """
    pin = None
    if cores and hasattr(os, "sched_setaffinity"):
        pin = lambda: os.sched_setaffinity(0, cores)
    with open(log, "a" if append else "w") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=pin,
            start_new_session=True,
        )


def end(under_way: Iterable[subprocess.Popen]) -> None:
    """Ask the processes to save and end, each by one SIGTERM, and wait until they have.

    A KeyboardInterrupt meanwhile, of a second Ctrl-C, is passed on as SIGINT, which ends a training
    at once, and leaves when they have ended.
    """
    under_way = list(under_way)
    try:
        for process in under_way:
            process.terminate()
        for process in under_way:
            process.wait()
    except KeyboardInterrupt:
        for process in under_way:
            process.send_signal(signal.SIGINT)
        for process in under_way:
            process.wait()
        raise


def last_line(log: str | os.PathLike) -> str:
    """The last line of a log that is not empty; "" where there is none."""
    path = pathlib.Path(log)
    text = path.read_text(errors="replace") if path.exists() else ""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def on_tpu(arguments: Sequence[str]) -> str:
    """A shell command that runs `python ARGUMENTS` on all hosts of a TPU slice.

    The reader sets $TPU and $ZONE; see docs/launch.md.
    """
    shell = "cd bridge_jax && " + shlex.join([".venv/bin/python", *arguments])
    return (
        f"gcloud compute tpus tpu-vm ssh $TPU --zone=$ZONE --worker=all "
        f"--command={shlex.quote(shell)}"
    )
