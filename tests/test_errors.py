"""A name counts only as a word of its own."""

from __future__ import annotations

import pytest

from tests import errors


@pytest.mark.parametrize(
    "message, name, named",
    [
        ("task.seed=3; allowed: at least 4", "task.seed=3", True),
        ("task.seed=30; allowed", "task.seed=3", False),
        ("unknown key seeds", "seed", False),
        ("kind='seed'", "'seed'", True),
        ("from 1.5 upwards", "1", False),
        ("from 1.5 upwards", "5", False),
        ("nearest: 2.", "2", True),
        ("steps [3] are kept", "[3]", True),
        ("--out=/a/b.", "/a/b", True),
    ],
)
def test_names(message, name, named):
    """Keys, values and numbers that only begin alike are others."""
    assert errors.is_named(message, name) == named


def test_another_message_or_type_fails():
    """All names must be there, also those in a tuple."""
    with errors.raises(ValueError, "a.b=1", ("x", 2)):
        raise ValueError("x: a.b=1; allowed: 2")
    with pytest.raises(AssertionError):
        with errors.raises(ValueError, "a.b=1", ("x", 3)):
            raise ValueError("x: a.b=1; allowed: 2")
    with pytest.raises(KeyError):
        with errors.raises(ValueError):
            raise KeyError
