"""Records of made-up runs for the tests of this room."""

from __future__ import annotations

import numpy as np

from bridge_jax.rundir import run_config
from bridge_jax.rundir.logbook import Logbook

CONFIG = {"seed": 1, "steps": 10, "optim": {"lr": 0.1, "betas": (0.9, 0.99)}, "log": {"every": 1}}
IGNORE = ("steps", "log.")


def open_run(workdir, config: dict, differs: dict, force: bool = False, ignore=()) -> None:
    """Makes the run directory with its config.json, or checks that its run has this config."""
    record = run_config.check_run(workdir, config, differs, force, ignore)
    run_config.write_config(workdir, record)


def make_record(workdir, steps: int) -> None:
    """The record of a run whose steps have rollouts and evaluations; its last batch is stored."""
    open_run(workdir, CONFIG, {})
    with Logbook(workdir, -1) as book:
        book.write(0, {})
        for step in range(1, steps + 1):
            book.write(step, {"a/b": float(step)})
            book.write_solved(step, {"held_out": "01"})
            book.write_rollouts(step, [{"text": str(step)}])
            book.write_rollouts(step, [{"text": str(step)}], "eval")
        book.write_batch(steps, {"x": np.ones(2)})
