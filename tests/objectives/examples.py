"""Small sequences and rollouts, and the tolerance for numbers worked out by hand."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np

from bridge_jax.types import Rollouts, Sequences

close = functools.partial(np.testing.assert_allclose, rtol=1e-6)


def rows(prompt, tokens, length) -> Sequences:
    """One-token prompts and their completions."""
    ints = lambda x: jnp.asarray(x, jnp.int32)
    return Sequences(
        ints(prompt)[:, None], jnp.ones(len(prompt), jnp.int32), ints(tokens), ints(length)
    )


def on_policy(seqs: Sequences, reward) -> Rollouts:
    """Rollouts at temperature 1 whose sampler is not asked."""
    return Rollouts(
        seqs, jnp.zeros(seqs.tokens_BT.shape), jnp.asarray(reward, jnp.float32), jnp.float32(1.0)
    )
