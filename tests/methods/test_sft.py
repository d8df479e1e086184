"""SFT: its gradient by hand, padding rows, and what it learns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bridge_jax.methods import sft
from bridge_jax.optim import Recipe, Recipes
from bridge_jax.types import Batch, Sequences
from tests import toys

METHOD = sft.make(sft.Config(), toys.bigram(), toys.recipes(0.1))
UPDATE = jax.jit(METHOD.update)


def demo_batch(prompt, tokens, length) -> Batch:
    """One-token prompts."""
    ints = lambda x: jnp.asarray(x, jnp.int32)
    return Batch(
        Sequences(
            ints(prompt)[:, None], jnp.ones(len(prompt), jnp.int32), ints(tokens), ints(length)
        ),
        {},
    )


def test_first_update_by_hand():
    """3 tokens, uniform policy over 6: G = sum of (onehot - 1/6) / 3 in the rows they are seen
    from; one Adam step follows.
    """
    recipes = Recipes(Recipe(learning_rate=0.1, eps=1e3, clip_norm=0.0), Recipe())
    method = sft.make(sft.Config(), toys.bigram(), recipes)
    theta = {"table": jnp.zeros((toys.V, toys.V))}
    batch = demo_batch([0, 3, 4], [[2, 5], [1, 1], [4, 4]], [2, 1, 0])
    state, metrics = jax.jit(method.update)(method.init(theta, jax.random.key(0)), batch)
    expected = np.zeros((toys.V, toys.V))
    for seen, token in ((0, 2), (2, 5), (3, 1)):
        expected[seen] += (np.eye(toys.V)[token] - 1 / 6) / 3
    np.testing.assert_allclose(
        np.asarray(state.params.theta["table"]) * 1e4, expected, rtol=2e-3, atol=1e-4
    )
    np.testing.assert_allclose(metrics["sft/logp"], np.log(1 / 6), rtol=1e-6)
    np.testing.assert_allclose(
        [metrics["sft/stop_prob"], metrics["sft/entropy"]], [1 / 6, np.log(6)], rtol=1e-5
    )
    assert metrics["budget/demo_tokens"] == 3


def test_padding_rows_change_nothing():
    """Rows of length 0 behind the real ones: the same update."""
    full = demo_batch([0, 3], [[2, 5], [1, 1]], [2, 1])
    padded = demo_batch([0, 3, 4, 1], [[2, 5], [1, 1], [3, 3], [2, 2]], [2, 1, 0, 0])
    state = METHOD.init(toys.bigram_theta(), jax.random.key(0))
    (a, metrics_a), (b, metrics_b) = UPDATE(state, full), UPDATE(state, padded)
    assert toys.change(a.params, b.params) < 1e-6 and toys.change(metrics_a, metrics_b) < 1e-6


def test_learns_the_demonstrations():
    """60 steps on two traces: their tokens become near certain."""
    state = METHOD.init(toys.bigram_theta(), jax.random.key(0))
    batch = demo_batch([0, 3], [[2, 5], [1, 0]], [2, 2])
    for _ in range(60):
        state, metrics = UPDATE(state, batch)
    assert metrics["sft/logp"] > -0.05 and metrics["sft/stop_prob"] > 0.9


def test_sampling_policies_and_demos():
    """Nobody samples."""
    assert METHOD.batch_spec(0) == ((), True)
