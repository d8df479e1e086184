"""A batch, a recipe and an initial policy whose first update is known by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bridge_jax import methods
from bridge_jax.optim import Recipe, Recipes
from bridge_jax.types import Batch, Rollouts, Sequences
from tests import toys

RATE = 0.1
# theta += RATE / 1000 * G, nearly
PLAIN = Recipes(*[Recipe(learning_rate=RATE, eps=1e3, clip_norm=0.0, b1=0.0)] * 2)
UNIFORM = {"table": jnp.zeros((toys.V, toys.V))}
P_TOKEN = 1 / toys.V
# e[t]: gradient of log pi(t) in the row of the token before it
e = np.eye(toys.V) - P_TOKEN
# of a right sample beside a wrong one: their rewards have an unbiased variance of 1/2
A = 0.5 / 0.5**0.5


def rows(prompts, tokens) -> Sequences:
    """One-token prompts; completions as lists of tokens, those of a prompt contiguous."""
    T, ints = max(map(len, tokens)), lambda x: jnp.asarray(x, jnp.int32)
    padded = [[*row, *[0] * (T - len(row))] for row in tokens]
    return Sequences(
        ints(prompts)[:, None],
        jnp.ones(len(prompts), jnp.int32),
        ints(padded),
        ints([len(row) for row in tokens]),
    )


def batch(prompts=(0,), tokens=((1,), (2,)), reward=(1, 0), asked=(0,), demos=((3,),)) -> Batch:
    """By default prompt 0 with a right sample 1 and a wrong sample 2, and its demo 3; one token
    each.
    """
    seqs = rows(prompts, tokens)
    rolled = Rollouts(
        seqs, jnp.zeros(seqs.tokens_BT.shape), jnp.asarray(reward, jnp.float32), jnp.float32(1.0)
    )
    return Batch(rows(asked, demos), {"theta": rolled})


def made(name: str, recipes=PLAIN, **fields):
    """The method over the bigram policy with these settings."""
    module = methods.load(name)
    return module.make(toys.method_config(name, **fields), toys.bigram(), recipes)


def G_of(name: str, given: Batch = None, theta=UNIFORM, **fields) -> np.ndarray:
    """The direction [V,V] of theta in the first update."""
    method = made(name, **fields)
    spec = method.batch_spec(0)
    given = given or batch()
    given = Batch(given.demos if spec.demos else None, given.rollouts if spec.sampled_by else {})
    state, metrics = jax.jit(method.update)(method.init(theta, jax.random.key(0)), given)
    assert metrics["update/skipped"] == 0
    return (
        (
            np.asarray(state.params.theta["table"], np.float64)
            - np.asarray(theta["table"], np.float64)
        )
        * 1e3
        / RATE
    )


def close(G, first, second=0.0):
    """G has these rows 0 and 1, and nothing else."""
    expected = np.zeros((toys.V, toys.V))
    expected[0], expected[1] = first, second
    np.testing.assert_allclose(G, expected, rtol=3e-3, atol=2e-4)


def run(name: str, steps: int, recipes=toys.recipes(0.1, 0.1), **fields):
    """States after each step on the same batches."""
    method, states = made(name, recipes, **fields), []
    state = method.init(toys.bigram_theta(), jax.random.key(0))
    for step in range(steps):
        spec, given = method.batch_spec(step), toys.batch(step, vocab=toys.V)
        given = Batch(
            given.demos if spec.demos else None,
            {"theta": given.rollouts["theta"]} if spec.sampled_by else {},
        )
        state, _ = jax.jit(method.update)(state, given)
        states.append(state)
    return method, states


def random_batch() -> Batch:
    """Demonstrations, and rollouts of theta alone."""
    given = toys.batch(3, vocab=toys.V)
    return Batch(given.demos, {"theta": given.rollouts["theta"]})
