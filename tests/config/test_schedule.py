"""Which schedules of lam and mu are refused, and what they say of themselves."""

from __future__ import annotations

import pytest

from bridge_jax.config.schedule import KINDS, Schedule, check_schedule
from tests import errors

KEY = "method.bridge.lam_schedule"

REFUSED = [
    (1.0, Schedule("exp"), ("lam_schedule.kind='exp'", "constant, linear, cosine, step")),
    (1.0, Schedule("gain", 0.5), "lam_schedule.kind='gain'"),
    (
        1.0,
        Schedule("cosine", 0.0, 0),
        ("lam_schedule.steps=0", "kind='cosine'", "1 or more"),
    ),
    (1.0, Schedule("step", boundaries=(3, 2), values=(0.1, 0.2)), ("lam_schedule", "boundaries")),
    (1.0, Schedule("step", boundaries=(5, 5), values=(0.1, 0.2)), ("lam_schedule", "boundaries")),
    (1.0, Schedule("step", boundaries=(3,), values=(0.1, 0.2)), ("lam_schedule", "value")),
    (1.0, Schedule("step"), ("lam_schedule", "step 1")),
    (1.0, Schedule("step", boundaries=(0,), values=(0.2,)), ("lam_schedule", "step 1")),
    (1.0, Schedule("step", boundaries=(-3, 4), values=(0.1, 0.2)), ("lam_schedule", "step 1")),
    (0.5, Schedule("linear", 0.5, 8), ("lam_schedule", "kind='linear'", "0.5")),
    (0.0, Schedule("cosine", 0.0, 8), ("lam_schedule", "kind='cosine'", "0.0")),
    (0.5, Schedule("step", boundaries=(3, 5), values=(0.5, 0.5)), ("lam_schedule", "start")),
    # a step of fp32 apart is no step
    (1.0, Schedule("linear", 1.0 - 1e-10, 8), ("lam_schedule", "start")),
    (1.5, Schedule(), ("method.bridge.lam=1.5", "0.0", "1.0")),
    (0.5, Schedule("linear", -0.1, 8), "lam_schedule.end=-0.1"),
    (0.5, Schedule("step", boundaries=(3,), values=(2.0,)), "lam_schedule.values=2.0"),
]


@pytest.mark.parametrize("start, by, message", REFUSED)
def test_refused(start, by, message):
    """With the key, what was given and what is allowed."""
    with errors.raises(ValueError, message):
        check_schedule(KEY, start, by)


def test_allowed():
    """What can leave its start, and may come back to it."""
    check_schedule(KEY, 0.5, Schedule())
    check_schedule(KEY, 0.5, Schedule("step", boundaries=(3, 5), values=(1.0, 0.5)))
    check_schedule(KEY, 0.5, Schedule("gain", 0.8), KINDS)
    with errors.raises(ValueError, "lam_schedule.gain=0.0", "above 0"):
        check_schedule(KEY, 0.5, Schedule("gain", 0.8, gain=0.0), KINDS)


def test_milestones_and_fields_that_are_not_read():
    """By when it is at its end, or first moves; what the kind has no use for."""
    assert Schedule("cosine", 0.1, 40).milestones("k") == {"k.steps": 40}
    stepped = Schedule("step", boundaries=(20, 30), values=(0.7, 0.9))
    assert stepped.milestones("k") == {"k.boundaries": 21}
    assert Schedule("constant").milestones("k") == Schedule("gain").milestones("k") == {}
    assert stepped.unread() == ["end", "steps", "gain"]
    assert Schedule("linear").unread() == ["boundaries", "values", "gain"]
    assert Schedule("gain").unread() == ["steps", "boundaries", "values"]
