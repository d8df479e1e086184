"""What the commands that start other commands share: devices, processes with logs, a TPU's command.

experiments.quickstart, experiments.sweep and experiments.reproduce run each of their parts as an
ordinary command in a process of its own, whose output goes to a file. These processes are no part
of the terminal's foreground: Ctrl-C reaches the command alone, which passes it on once.
"""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

# the variable by which a process sees these GPUs alone, of NVIDIA's and of AMD's software
GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


class Share(NamedTuple):
    """What one of several jobs at a time may use; (): all of them."""

    cores: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()


WHOLE = Share()


def available_cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def available_gpus(environment: Mapping[str, str] = os.environ, devices: str = "/dev") -> list[str]:
    """The NVIDIA GPUs that a process may use, or AMD's where a variable names them.

    Found without jax, which would take their memory. devices: the folder of device files.
    """
    if environment.get("JAX_PLATFORMS", "") == "cpu":
        return []
    for variable in GPU_VARIABLES:
        if variable in environment:
            return [name for name in environment[variable].split(",") if name]
    names = os.listdir(devices) if os.path.isdir(devices) else []
    found = [match[1] for match in map(re.compile(r"nvidia(\d+)").fullmatch, names) if match]
    return sorted(found, key=int)


def shares(jobs: int) -> list[Share]:
    """The cores and GPUs of each of several jobs at a time; [WHOLE] for one, which may use all.

    ValueError where there are fewer GPUs than jobs: jax takes most of a GPU's memory at once.
    """
    if jobs == 1:
        return [WHOLE]
    cores, gpus = available_cores(), available_gpus()
    if 0 < len(gpus) < jobs:
        raise ValueError(
            f"--jobs={jobs}: each job needs a GPU of its own, here are {len(gpus)}; allowed: 1 to "
            f"{len(gpus)}, or on CPUs, with JAX_PLATFORMS=cpu, any number"
        )
    return [Share(part(cores, i, jobs), part(gpus, i, jobs) if gpus else ()) for i in range(jobs)]


def part(items: list, i: int, jobs: int) -> tuple:
    """Equal parts, the i-th of them; jobs share items where there are more jobs."""
    size = max(1, len(items) // jobs)
    first = i * size % len(items)
    return tuple(items[first : first + size])


def start(
    command: Sequence[str],
    log: str | os.PathLike,
    share: Share = WHOLE,
    append: bool = False,
) -> subprocess.Popen:
    """The process of a command, on its share of the machine, with its output in the file `log`.

    It has a session of its own, so that the terminal's signals do not reach it; see `end`.
    """
    pin = None
    if share.cores and hasattr(os, "sched_setaffinity"):
        pin = lambda: os.sched_setaffinity(0, share.cores)
    seen = dict.fromkeys(GPU_VARIABLES, ",".join(share.gpus)) if share.gpus else {}
    with open(log, "a" if append else "w") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=pin,
            env=os.environ | seen,
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
