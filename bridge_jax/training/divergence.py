"""The end of a run whose updates are not finite: back to the last good checkpoint."""

from __future__ import annotations

from bridge_jax.distributed import multihost
from bridge_jax.rundir import checkpoint
from bridge_jax.training.settings import Settings
from bridge_jax.training.step_log import StepLog


class Diverged(RuntimeError):
    """Too many updates in a row were not finite."""


def check(log: StepLog, store: checkpoint.Checkpoints) -> None:
    """Diverged, after the retreat to a good checkpoint, if too many updates were skipped."""
    s, count = log.setup.settings, log.skipped_in_row
    if count < s.log.skipped_limit:
        return
    raise Diverged(
        f"{count} updates in a row were not finite, the last at step {log.number}, and "
        f"were skipped. Their batches are in {log.book.workdir}/batches. "
        + retreat(store, log.number - count, *learning_rate(s))
    )


def learning_rate(s: Settings) -> tuple[str, float]:
    """Key and value of the learning rate that a diverged run should go below."""
    label = "lora" if s.train == "w" else "base"
    return f"optim.{label}.learning_rate", getattr(s.recipes, label).learning_rate


def retreat(store: checkpoint.Checkpoints, finite: int, key: str, rate: float) -> str:
    """Goes back to the last good checkpoint; returns a message with its path and how to continue.

    finite: the step of the last finite update. The state after it is in doubt, since a finite
    update may move the weights so far that no later one is finite.
    """
    with multihost.watchdog("the last good checkpoint", io_grace=True):
        good, renamed = store.retreat(finite - 1)
    lower = f"--config.{key} below {rate:g}"
    longer = "with --config.log.skipped_limit raised"
    if good is None:
        newest = max(store.steps(), default=None)
        there = "there is none" if newest is None else f"that of step {newest} may be ruined"
        return (
            f"No checkpoint is known to be good: {there}. Begin in another --workdir with {lower}, "
            f"or go on here {longer}"
        )
    ruined = f" (later ones may be ruined: now {', '.join(renamed)})" if renamed else ""
    return (
        f"The last good checkpoint is that of step {good}, {store.path(good)}{ruined}; the same "
        f"command goes on from it, with --force_config and {lower}, or {longer}"
    )
