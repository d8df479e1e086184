"""Which schedules of lam and mu are refused, and what they say of themselves."""

from __future__ import annotations

import pytest

from bridge_jax.config.schedule import KINDS, Schedule, check_schedule

KEY = "method.bridge.lam_schedule"

REFUSED = [
    (1.0, Schedule("exp"), r"lam_schedule.kind='exp'; allowed: constant, linear, cosine, step$"),
    (1.0, Schedule("gain", 0.5), "lam_schedule.kind='gain'; allowed"),
    (
        1.0,
        Schedule("cosine", 0.0, 0),
        "lam_schedule.steps=0 with kind='cosine'; allowed: 1 or more",
    ),
    (1.0, Schedule("step", boundaries=(3, 2), values=(0.1, 0.2)), "needs rising boundaries"),
    (1.0, Schedule("step", boundaries=(5, 5), values=(0.1, 0.2)), "needs rising boundaries"),
    (1.0, Schedule("step", boundaries=(3,), values=(0.1, 0.2)), "one value for each"),
    (1.0, Schedule("step"), "the first at step 1 or later"),
    (1.0, Schedule("step", boundaries=(0,), values=(0.2,)), "the first at step 1 or later"),
    (1.0, Schedule("step", boundaries=(-3, 4), values=(0.1, 0.2)), "the first at step 1 or later"),
    (0.5, Schedule("linear", 0.5, 8), "kind='linear' from 0.5 to 0.5 never leaves its start"),
    (0.0, Schedule("cosine", 0.0, 8), "kind='cosine' from 0.0 to 0.0 never leaves its start"),
    (0.5, Schedule("step", boundaries=(3, 5), values=(0.5, 0.5)), "never leaves its start"),
    # a step of fp32 apart is no step
    (1.0, Schedule("linear", 1.0 - 1e-10, 8), "never leaves its start"),
    (1.5, Schedule(), r"method.bridge.lam=1.5; allowed: from 0.0 to 1.0"),
    (0.5, Schedule("linear", -0.1, 8), "lam_schedule.end=-0.1; allowed"),
    (0.5, Schedule("step", boundaries=(3,), values=(2.0,)), "lam_schedule.values=2.0; allowed"),
]


@pytest.mark.parametrize("start, by, message", REFUSED)
def test_refused(start, by, message):
    """With the key, what was given and what is allowed."""
    with pytest.raises(ValueError, match=message):
        check_schedule(KEY, start, by)


def test_allowed():
    """What can leave its start, and may come back to it."""
    check_schedule(KEY, 0.5, Schedule())
    check_schedule(KEY, 0.5, Schedule("step", boundaries=(3, 5), values=(1.0, 0.5)))
    check_schedule(KEY, 0.5, Schedule("gain", 0.8), KINDS)
    with pytest.raises(ValueError, match="lam_schedule.gain=0.0; allowed: above 0"):
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
