"""BRIDGE on a table of bigrams: its update, batches and states."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from bridge_jax.methods import bridge
from bridge_jax.types import Batch
from tests import toys


@functools.cache
def bigram_method(recipes=toys.recipes(3e-2, 3e-2), **fields):
    """BRIDGE on the table, and its compiled update."""
    method = bridge.make(
        toys.method_config("bridge", **toys.LAM_BY_STEP | fields), toys.bigram(), recipes
    )
    return method, jax.jit(method.update)


def bigram_batch(seed: int) -> Batch:
    """Random rows of the table's vocabulary."""
    return toys.batch(seed, vocab=toys.V)


def start(method, theta, lam: float, seed: int = 0):
    """The state at step 0, or at the step where this lam holds."""
    return method.init(theta, jax.random.key(seed)).replace(step=jnp.int32(toys.LAM[lam]))


def advanced(update, state, steps: int, make_batch=bigram_batch, first: int = 0) -> list:
    """States after each of some steps on different batches."""
    states = []
    for seed in range(first, first + steps):
        state, metrics = update(state, make_batch(seed))
        assert metrics["update/skipped"] == 0
        states.append(state)
    return states
