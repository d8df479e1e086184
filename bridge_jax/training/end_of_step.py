"""The end of a step: evaluation, checkpoint and stop, where one of them is due."""

from __future__ import annotations

import dataclasses
import logging
import time

import jax

from bridge_jax.distributed import multihost
from bridge_jax.rundir import checkpoint
from bridge_jax.training import divergence, saved_state, validation
from bridge_jax.training.interrupt import Interrupt, Stopped
from bridge_jax.training.rollouts import StepSampler
from bridge_jax.training.step_log import Pending, StepLog
from bridge_jax.types import TrainState

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class EndOfStep:
    """Evaluation, checkpoint and stop after an update, and the records that they write."""

    sampler: StepSampler
    store: checkpoint.Checkpoints
    log: StepLog
    interrupt: Interrupt
    end: int  # the last step of this process
    save_due: bool = False  # a periodic save that waits for a finite update

    def evaluation_due(self, number: int) -> bool:
        """Whether an evaluation follows step `number`.

        By `steps` rather than `end`: a run that ends at stop_at logs the same as one that does not.
        """
        s = self.sampler.setup.settings
        return bool(s.eval.every) and (number % s.eval.every == 0 or number == s.steps)

    def due(self, number: int) -> bool:
        """Whether step `number` is followed by an evaluation or a save."""
        every = self.sampler.setup.settings.checkpoint.every
        self.save_due |= bool(every) and number % every == 0
        return self.save_due or number == self.end or self.evaluation_due(number)

    def validate_and_save(
        self, state: TrainState, pending: Pending, cursors: dict[str, int], stopping: bool
    ) -> bool:
        """Waits for the update, evaluates, logs and saves; returns whether the run stops here.

        stopping: a signal came. Then the evaluation stays pending until the run resumes, since the
        sender of SIGTERM may not wait.
        """
        number, log, interrupt = pending.number, self.log, self.interrupt
        with multihost.watchdog(f"update of step {number}"):
            jax.block_until_ready(pending.metrics)
        updated, evaluation_pending, scores = time.monotonic(), False, {}
        if self.evaluation_due(number):
            try:
                scores = self._evaluate(state, number, stopping)
            except Stopped:
                evaluation_pending = True
        log.finish(pending, scores, updated, log=not evaluation_pending)
        divergence.check(log, self.store)
        stopping = stopping or interrupt.stop_requested()
        # the step that a signal from now on would finish
        interrupt.step = number if stopping else min(number + 1, self.end)
        # While updates are skipped the state may be ruined. Then a periodic save waits for the next
        # finite update; a save at the end leaves the last good checkpoint in place.
        if (self.save_due and not log.skipped_in_row) or number == self.end or stopping:
            self.save_due = False
            self._save(state, log.meta(number, cursors, evaluation_pending))
        if stopping:
            multihost.print_on_main(
                f"stopped by a signal after step {number}; saved. The same command goes on from "
                "here"
            )
        elif number == self.end and log.skipped_in_row:
            logger.warning(
                "the run ended while updates were skipped: the state of step %d may be ruined, and "
                "those up to step %d are good",
                number,
                number - log.skipped_in_row - 1,
            )
        return stopping

    def _evaluate(self, state: TrainState, number: int, stopping: bool) -> dict[str, float]:
        """The scores of step `number`; Stopped where a signal came."""
        if stopping:
            raise Stopped
        with self.log.meter.paused():
            return validation.evaluation(self.sampler, state, self.interrupt, self.log.book, number)

    def _save(self, state: TrainState, meta: dict) -> None:
        """Saves a checkpoint, after the records of its steps are on disk."""
        number = meta["step"]
        with self.log.meter.paused():
            self.log.book.sync()
            # the state before the last finite update
            good = number - self.log.skipped_in_row - 1
            with multihost.watchdog(f"checkpoint of step {number}", io_grace=True):
                state, meta = saved_state.to_save(self.sampler.setup, state, meta)
                self.store.save(number, state, meta, good=good)
