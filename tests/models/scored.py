"""Hidden states and a head that are scored, and the full softmax that is the oracle."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from bridge_jax.models import logprobs

B, T, D, V = 3, 7, 5, 11


def example(dtype=jnp.float32):
    """Hidden states, a head, tokens, and weights for the outputs."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
    return (
        draw(B, T, D),
        draw(V, D),
        jnp.asarray(rng.integers(0, V, (B, T))),
        draw(B, T).astype(jnp.float32),
    )


full = logprobs.token_logp_plain
