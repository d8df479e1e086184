"""The grading pool of an evaluation starts once, when it is needed, and is closed."""

from __future__ import annotations

import pytest

from bridge_jax.evaluation import lazy_pool
from bridge_jax.evaluation.lazy_pool import LazyPool, needs_pool
from bridge_jax.grading.outcome import DeferredComparison, Outcome
from tests import errors


class FakePool:
    """Stands for grading.pool.Pool; finds every answer right."""

    made: list = []

    def __init__(self):
        self.closed = False
        FakePool.made.append(self)

    def grade(self, deferred):
        return [Outcome.correct] * len(deferred)

    def close(self):
        self.closed = True


@pytest.fixture
def pools(monkeypatch):
    monkeypatch.setattr(FakePool, "made", [])
    monkeypatch.setattr(lazy_pool.pool, "Pool", FakePool)
    monkeypatch.setattr(lazy_pool.selftest, "check", lambda pool: None)
    return FakePool.made


def test_the_pool_starts_with_the_first_deferred_comparison(pools):
    """The pool starts once, at the first comparison, and is closed."""
    with LazyPool() as one:
        assert pools == []
        for _ in range(2):
            assert one.grade([DeferredComparison("1", "1")]) == [Outcome.correct]
        assert len(pools) == 1 and not pools[0].closed
    assert pools[0].closed


def test_a_pool_that_is_not_needed_is_never_started(pools):
    """Without a comparison, no pool is started."""
    with LazyPool():
        pass
    assert pools == []


def test_a_task_declares_that_it_needs_the_pool():
    """A list of tasks needs the pool if one of its tasks does."""
    assert not needs_pool(["arithmetic"]) and needs_pool(["arithmetic", "math500"])
    with errors.raises(ValueError, "'arithmetics'"):
        needs_pool(["math500", "arithmetics"])
