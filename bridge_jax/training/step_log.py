"""Deferred logging of a step after its update, and the metadata of checkpoints."""

from __future__ import annotations

import collections
import logging
import math
import time
from collections.abc import Callable
from typing import NamedTuple

from bridge_jax.distributed import arrays, peaks
from bridge_jax.rundir import logbook
from bridge_jax.training import budget
from bridge_jax.training.build import Setup
from bridge_jax.training.profile import Profile
from bridge_jax.training.programs import compile_count
from bridge_jax.types import Batch

logger = logging.getLogger(__name__)
PROGRESS_KEYS = {
    "reward": "reward/mean",
    "J_SFT": "sft/logp",
    "gain": "bridge/gain",
    "held out": "eval/held_out_accuracy",
}


class Pending(NamedTuple):
    """A step whose update was dispatched, with its deferred metrics."""

    number: int  # 1 for the first
    metrics: dict  # device scalars, not fetched
    host_metrics: dict[str, float]
    sampled: dict[str, float]  # token counts of sampling, including samples that were replaced
    batch: Batch  # held until the update is known to be finite
    dispatched: float  # time of dispatch, time.monotonic()


class StepLog:
    """Writes a line per step, accumulates the budget, and counts skipped updates.

    meta: from the checkpoint that the run resumes from. show(step, text): shows progress.
    """

    def __init__(self, setup: Setup, book: logbook.Logbook, meta: dict, show: Callable):
        self.setup, self.book, self.show = setup, book, show
        self.totals = collections.Counter(meta["totals"])
        self.skipped_in_row = meta["skipped_in_row"]
        self.meter = budget.Meter(meta.get("times", {}))
        # the line of the last step
        self.last: dict[str, float] = {}
        # the last step whose update is known to be over
        self.number = meta["step"]
        self._trained, self._since = meta["train_s"], time.monotonic()
        self._profile = Profile(book.workdir, setup.settings.log.profile)

    def begin(self, number: int) -> None:
        """Starts the profiler where step `number` is the one of log.profile."""
        self._profile.start(number)

    def rollouts_due(self, number: int) -> bool:
        """Whether the samples of step `number` are written."""
        every = self.setup.settings.log.rollouts_every
        return bool(every) and number % every == 0

    def finish(
        self,
        step: Pending | None,
        scores: dict[str, float] | None = None,
        updated: float = 0.0,
        log: bool = True,
    ) -> None:
        """Fetches the metrics of a step, which waits for its update, and logs them.

        scores: of its evaluation. updated: time of the update's end, if known. log: whether
        the line is written now.
        """
        if step is None:
            return
        fetched = arrays.device_get(f"update of step {step.number}", step.metrics)
        self._profile.stop(step.number)
        metrics = {key: float(value) for key, value in fetched.items()}
        for key in self.setup.method.not_in_every_step:
            if math.isnan(metrics[key]):
                del metrics[key]
        metrics["time/update_s"] = (updated or time.monotonic()) - step.dispatched
        metrics |= self._spent(step, metrics)
        self.last = (
            metrics | step.host_metrics | (scores or {}) | self.meter.read() | budget.peak_memory()
        )
        self.last |= {"compile/count": compile_count(), "time/train_s": self.trained()}
        if log:
            self.book.write(step.number, self.last)
        shown = [
            f"{name} {self.last[key]:.3f}"
            for name, key in PROGRESS_KEYS.items()
            if key in self.last
        ]
        self.show(step.number, "  ".join(shown))
        self.number = step.number
        self.skipped_in_row = self.skipped_in_row + 1 if metrics["update/skipped"] else 0
        if metrics["update/skipped"]:
            logger.warning(
                "step %d: gradient or objective not finite, update skipped; batch in %s",
                step.number,
                self.book.write_batch(step.number, step.batch),
            )

    def _spent(self, step: Pending, metrics: dict[str, float]) -> dict[str, float]:
        """Token rates of this step, and the totals of the run."""
        counted = {key: value for key, value in metrics.items() if key.startswith("budget/")}
        spent = counted | step.sampled
        lengths = budget.mean_lengths(step.batch)
        spent["budget/flops"] = budget.step_flops(self.setup.cfg, spent, *lengths)
        rollout_s, update_s = step.host_metrics["time/rollout_s"], metrics["time/update_s"]
        # as measured by the host
        spent["time/device_s"] = update_s + rollout_s
        rates = budget.token_rates(spent, rollout_s, update_s)
        devices = list(self.setup.mesh.devices.flat)
        mfu = peaks.utilization(spent["budget/flops"], update_s + rollout_s, devices)
        self.totals.update(spent)
        return rates | ({} if mfu is None else {"time/mfu": mfu}) | self.totals

    def trained(self) -> float:
        """Seconds of training, including those of earlier processes."""
        return self._trained + time.monotonic() - self._since

    def meta(self, number: int, cursors: dict[str, int], pending_evaluation: bool) -> dict:
        """Metadata of a checkpoint; "deferred_line": the last line, if not evaluated yet."""
        line = {key: repr(value) for key, value in self.last.items()} if pending_evaluation else {}
        return {
            **cursors,
            "step": number,
            "skipped_in_row": self.skipped_in_row,
            "totals": dict(self.totals),
            "seed": self.setup.settings.seed,
            "train_s": self.trained(),
            "times": self.meter.read(),
            "deferred_line": line,
        }
