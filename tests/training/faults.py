"""What befalls a tiny run: a signal in a step, rewards that are NaN, lost files."""

from __future__ import annotations

import os
import signal

import numpy as np

from bridge_jax.rundir import logbook
from bridge_jax.training.rollouts import StepSampler


def signal_at(monkeypatch, step: int, number=signal.SIGTERM) -> None:
    """The process gets a signal while this step's rollouts are written."""
    write = logbook.Logbook.write_rollouts

    def write_rollouts(self, at, rows, kind="step"):
        if at == step and kind == "step":
            os.kill(os.getpid(), number)
        return write(self, at, rows, kind)

    monkeypatch.setattr(logbook.Logbook, "write_rollouts", write_rollouts)


def poison(monkeypatch, steps) -> None:
    """The rewards of these steps are NaN."""
    fetch = StepSampler.fetch

    def poisoned(self, rows, *given):
        rollouts, graded, seconds = fetch(self, rows, *given)
        bad = np.full_like(rollouts.reward_B, np.nan if rows.step + 1 in steps else 1.0)
        return rollouts.replace(reward_B=rollouts.reward_B * bad), graded, seconds

    monkeypatch.setattr(StepSampler, "fetch", poisoned)


def contents(folder) -> dict[str, bytes]:
    """Every file below the folder by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
