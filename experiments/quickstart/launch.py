"""Trains several methods side by side, and shows how far each is."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import NamedTuple

from bridge_jax.filesystem import streams
from configs import quickstart
from experiments import processes
from experiments.cli import DISK_FULL
from experiments.processes import WHOLE, Share, available_cores, available_gpus, shares

# between two looks at the runs, and between two lines where there is no terminal
LOOK_S, LINE_S = 0.5, 5.0
UNKNOWN_WIDTH = 80


# exit code of a training whose request cannot be fulfilled, which is true of the others too
INVALID = 2


class Failure(NamedTuple):
    """A run that failed, with the last line of its log."""

    method: str
    code: int
    reason: str
    log: pathlib.Path


@dataclasses.dataclass
class Run:
    """One method's training, in a process of its own once it is started."""

    method: str
    folder: pathlib.Path
    process: subprocess.Popen | None = None
    share: Share = WHOLE

    @property
    def log(self) -> pathlib.Path:
        """The file of the process's output."""
        return self.folder.with_suffix(".log")

    @property
    def under_way(self) -> bool:
        """Whether the process is started and has not ended."""
        return self.process is not None and self.process.poll() is None

    @property
    def code(self) -> int | None:
        """The exit code; None where the process has not ended."""
        return self.process.poll() if self.process is not None else None

    def start(self, share: Share) -> None:
        """Train on a share of the machine."""
        self.share = share
        self.process = processes.start(command_of(self.method, self.folder), self.log, share)

    def last_line(self) -> str:
        """The last line of the log that is not empty."""
        return processes.last_line(self.log)

    def status(self) -> str:
        """Where the run is, in a few words."""
        if self.process is None:
            return f"{self.method} waits"
        metrics = last_metrics(self.folder)
        if not self.under_way:
            return f"{self.method} {'failed' if self.process.returncode else 'done'}"
        if metrics is None:
            compiling = self.last_line().startswith("compiling")
            return f"{self.method} {'compiles' if compiling else 'starts'}"
        reward = f" reward {metrics['reward/mean']:.0%}" if "reward/mean" in metrics else ""
        return f"{self.method} {metrics['step']}/{quickstart.STEPS}{reward}"


def command_of(method: str, folder: pathlib.Path) -> list[str]:
    """The training command, as one would type it."""
    return [
        sys.executable,
        "-m",
        "experiments.train",
        f"--config=configs/quickstart.py:{method}",
        f"--workdir={folder}",
    ]


def last_metrics(folder: pathlib.Path) -> dict | None:
    """The last complete line of metrics.jsonl; None where there is none."""
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    complete = text.rpartition("\n")[0].rpartition("\n")[2]
    return json.loads(complete) if complete else None


class Display:
    """One line that is rewritten on a terminal; elsewhere a line every few seconds."""

    def __init__(self):
        self.terminal, self.shown = streams.has_terminal(2), 0.0

    def show(self, text: str) -> None:
        """Shows the text, on a terminal in place of the one before."""
        if self.terminal:
            # 0 columns: the terminal does not know its size
            width = os.get_terminal_size(2).columns or UNKNOWN_WIDTH
            sys.stderr.write(f"\r{text[: width - 1]:<{width - 1}}")
            sys.stderr.flush()
        elif time.monotonic() - self.shown >= LINE_S:
            self.shown = time.monotonic()
            streams.write_line(text, descriptor=2)

    def close(self) -> None:
        """Ends the line."""
        if self.terminal:
            streams.write_line("", descriptor=2)


def train(methods: tuple[str, ...], out: pathlib.Path) -> list[Failure]:
    """Trains the methods in the given order, as many at a time as there are cores and GPUs.

    Returns what failed; no run is started after one whose request is invalid. Where it is
    interrupted or fails itself, the runs under way save and end.
    """
    runs = [Run(method, out / method) for method in methods]
    jobs = min(len(runs), len(available_cores()), len(available_gpus()) or len(runs))
    waiting, free, began = list(runs), shares(jobs), time.monotonic()
    display = Display()
    try:
        while waiting or any(run.under_way for run in runs):
            if any(run.code == INVALID for run in runs):
                waiting.clear()
            in_use = [run.share for run in runs if run.under_way]
            free_now = [share for share in free if share not in in_use]
            while waiting and free_now:
                waiting.pop(0).start(free_now.pop(0))
            # at most 79 characters, so that it fits the narrowest usual terminal
            states = "  ".join(run.status() for run in runs)
            display.show(f"{time.monotonic() - began:.0f} s  {states}")
            time.sleep(LOOK_S)
    finally:
        display.close()
        # nobody waits for them where this process was interrupted or failed
        processes.end(run.process for run in runs if run.under_way)
    return [Failure(run.method, run.code, run.last_line(), run.log) for run in runs if run.code]


def explain(failures: list[Failure]) -> tuple[str, int]:
    """One message for all failures, and the exit code of the command."""
    by_reason: dict[str, list[Failure]] = {}
    for one in failures:
        by_reason.setdefault(one.reason.removeprefix("error: "), []).append(one)
    texts = [
        f"{', '.join(one.method for one in same)} ended with exit code {same[0].code}: {reason} "
        f"(see {same[0].log})"
        for reason, same in by_reason.items()
    ]
    codes = {one.code for one in failures}
    code = DISK_FULL if DISK_FULL in codes else INVALID if codes == {INVALID} else 1
    return "; ".join(texts), code
