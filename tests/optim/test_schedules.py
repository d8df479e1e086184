"""Schedules as functions of a traced step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.config.schedule import Schedule
from bridge_jax.optim import schedule


def at(function, *steps):
    """The values at these steps, read with a traced step."""
    return [float(x) for x in jax.jit(jax.vmap(function))(jnp.asarray(steps, jnp.int32))]


HALF_OF_A_COSINE = (1 - 0.5**0.5) / 2
BY_HAND = [
    (0.5, Schedule("constant", end=9.0), {0: 0.5, 100: 0.5}),
    # from 1 to 0.2 over 8 steps, then flat
    (1.0, Schedule("linear", 0.2, 8), {0: 1.0, 2: 0.8, 4: 0.6, 8: 0.2, 100: 0.2}),
    (
        1.0,
        Schedule("cosine", 0.2, 8),
        {0: 1.0, 2: 1 - 0.8 * HALF_OF_A_COSINE, 4: 0.6, 8: 0.2, 100: 0.2},
    ),
    # a step schedule changes AT its boundary
    (
        0.1,
        Schedule("step", boundaries=(3, 5), values=(0.5, 0.9)),
        {0: 0.1, 2: 0.1, 3: 0.5, 4: 0.5, 5: 0.9, 99: 0.9},
    ),
    # and may come back to its start
    (0.5, Schedule("step", boundaries=(3, 5), values=(1.0, 0.5)), {0: 0.5, 3: 1.0, 5: 0.5}),
]


@pytest.mark.parametrize("start, by, expected", BY_HAND)
def test_by_hand(start, by, expected):
    """Each kind at its corners."""
    found = at(schedule(start, by), *expected)
    np.testing.assert_allclose(found, list(expected.values()), rtol=1e-6)
