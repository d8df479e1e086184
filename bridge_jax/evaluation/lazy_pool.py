"""The grading pool of an evaluation, which is started only when a task needs it."""

from __future__ import annotations

from collections.abc import Iterable

from bridge_jax import tasks
from bridge_jax.grading import pool, selftest
from bridge_jax.grading.outcome import DeferredComparison, Outcome


class LazyPool:
    """A grading.pool.Pool that `start`, or the first deferred comparison, starts."""

    def __init__(self):
        self.pool = None

    def start(self) -> None:
        """Start the worker processes; RuntimeError where they do not pass the self-test."""
        self.pool = pool.Pool()
        selftest.check(self.pool)

    def grade(self, deferred: list[DeferredComparison]) -> list[Outcome]:
        """One Outcome for each deferred comparison."""
        if self.pool is None:
            self.start()
        return self.pool.grade(deferred)

    def __enter__(self) -> LazyPool:
        return self

    def __exit__(self, *error) -> None:
        if self.pool is not None:
            self.pool.close()


def needs_pool(names: Iterable[str]) -> bool:
    """Whether the file of one of the tasks declares DEFERS_COMPARISONS = True.

    names may have a file behind a colon. Every task is loaded, so that an unknown name raises
    ValueError at once.
    """
    modules = [tasks.load(name.partition(":")[0]) for name in names]
    return any(getattr(module, "DEFERS_COMPARISONS", False) for module in modules)
