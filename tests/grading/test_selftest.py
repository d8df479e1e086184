"""The self-test of the grader: it passes, and names the pair that a broken grader misjudges."""

from __future__ import annotations

import pytest

from bridge_jax.grading import pool as module
from bridge_jax.grading import selftest
from bridge_jax.grading.outcome import Outcome
from bridge_jax.grading.pool import Pool
from tests import errors


@pytest.fixture(scope="module")
def pool():
    with Pool(workers=2, deadline=1.0) as made:
        yield made


def test_selftest_passes_and_names_what_is_broken(pool, monkeypatch):
    """The self-test passes, and names the first pair that a broken grader misjudges."""
    selftest.check(pool)
    assert len(selftest.EQUAL) + len(selftest.DIFFERENT) + len(selftest.OTHERS) >= 50
    monkeypatch.setattr(selftest, "compare", lambda gold, answer, rule: Outcome.wrong)
    with errors.raises(selftest.GraderBroken, "gold '42'", "answer '42'", "wrong", "correct"):
        selftest.check(pool)
    assert module.LONGEST >= 2 * 400
