"""Records of made-up runs for the tests of this room."""

from __future__ import annotations

import numpy as np

from bridge_jax.rundir.logbook import Logbook
from bridge_jax.rundir.run_config import open_run

CONFIG = {"seed": 1, "steps": 10, "optim": {"lr": 0.1, "betas": (0.9, 0.99)}, "log": {"every": 1}}
IGNORE = ("steps", "log.")


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
