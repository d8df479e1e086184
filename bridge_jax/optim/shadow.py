"""How theta_hat is stored: whole, or as a difference from theta."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bridge_jax.optim.moments import to_bfloat16
from bridge_jax.types import Params


def unpacked(params: Params) -> Params:
    """Params with theta_hat as it is, from the difference."""
    return params.replace(
        theta_hat=jax.tree.map(lambda t, d: t + d.astype(t.dtype), params.theta, params.theta_hat)
    )


def packed(params: Params, key: jax.Array) -> Params:
    """Params with the difference theta_hat - theta, rounded at random."""
    return params.replace(
        theta_hat=to_bfloat16(jax.tree.map(jnp.subtract, params.theta_hat, params.theta), key)
    )
