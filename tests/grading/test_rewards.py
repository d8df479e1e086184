"""Reward functions of the user: names, values, limits in the pool."""

from __future__ import annotations

import math

import pytest

from bridge_jax.grading import rewards
from bridge_jax.grading.outcome import DeferredComparison, Outcome
from bridge_jax.grading.pool import LONGEST, Pool
from tests import errors

FUNCTIONS = """
def score(question, text, gold):
    print("not an outcome")
    if text == "endless":
        while True:
            pass
    if text == "raises":
        raise KeyError(question)
    if text == "eats":
        bytearray(8 << 30)
    if text == "words":
        return "yes"
    return gold in text
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """The path of a file with reward functions, and the folder as the current one."""
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    # the import takes more than the deadline of a comparison below
    (tmp_path / "slow_to_import.py").write_text(
        "import time\nend = time.process_time() + 2\n"
        "while time.process_time() < end: pass\nfrom mine import score\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine.py"


def of(function: str, text: str) -> DeferredComparison:
    return DeferredComparison("7", text, function=function, question="What?")


def test_names():
    """A module or a file, and a function."""
    assert all(map(rewards.is_name, ("mine:score", "a.b:score", "~/some where/mine.py:score")))
    assert not any(map(rewards.is_name, ("math", "mine", "mine:", ":score", "mine:a.b", "1:x")))


@pytest.mark.parametrize(
    "value, outcome",
    [(True, "correct"), (False, "wrong"), (1, "correct"), (0.5, "correct"), (0.49, "wrong")],
)
def test_values(value, outcome):
    """Truths, and numbers from one half on."""
    assert rewards.outcome_of(value) == outcome


@pytest.mark.parametrize("value", [None, "1", math.nan, [True], {}])
def test_values_that_are_no_reward(value):
    """They are named."""
    with errors.raises(TypeError, repr(value)):
        rewards.outcome_of(value)


def test_outcomes_of_the_pool(functions):
    """Deadline, memory, exceptions and output of a function; algebra goes on beside it."""
    texts = ("it is 7", "8", "endless", "raises", "eats", "words")
    with Pool(deadline=1.0) as pool:
        found = pool.grade(
            [*(of("mine:score", text) for text in texts), DeferredComparison("x+1", "1+x")]
        )
        failed = Outcome.grader_error
        assert found == ["correct", "wrong", "timeout", failed, failed, failed, "correct"]


@pytest.mark.slow
def test_outcomes_of_long_and_slow_functions(functions):
    """A missing module, a long text, and an import that takes longer than a deadline."""
    with Pool(deadline=1.0) as pool:
        failed = Outcome.grader_error
        # a whole completion is longer than an answer may be
        assert pool.grade([of("mine:score", "7" + "x" * 2 * LONGEST)]) == ["correct"]
        assert pool.grade([of("nowhere:score", "7")]) == [failed]
        # the time of the import is not that of the comparison, after which the deadline holds
        slow = [of("slow_to_import:score", text) for text in ("7", "8", "endless", "7 again")]
        assert pool.grade(slow) == ["correct", "wrong", "timeout", "correct"]
