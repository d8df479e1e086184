"""RMS norm (Zhang & Sennrich 2019): the formula, and a form with a cheaper gradient.

The automatic gradient stores three arrays of x's size for the backward pass; `rms_norm` stores x
alone and recomputes the root mean square. XLA's CPU compiler adds the rows of a matrix slowly, so
the gradient of the scale is a matmul with ones (docs/speed.md).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from bridge_jax.models.precision import fp32_einsum


def rms_norm_plain(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, computed in fp32."""
    x32 = x.astype(jnp.float32)
    rms = jnp.sqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 / rms * scale.astype(jnp.float32)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """rms_norm_plain with a custom gradient; x has at least two axes, scale has the last one."""
    return (_normed(x, eps)[0] * scale.astype(jnp.float32)).astype(x.dtype)


def _normed(x: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """x / rms(x) and 1 / rms(x), fp32."""
    x32 = x.astype(jnp.float32)
    rate = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return x32 * rate, rate


def _rms_norm_forward(x: jax.Array, scale: jax.Array, eps: float):
    return rms_norm(x, scale, eps), (x, scale)


def _rms_norm_backward(eps: float, inputs, g: jax.Array):
    x, scale = inputs
    unit, rate = _normed(x, eps)
    g = g.astype(jnp.float32)
    G_unit = g * scale.astype(jnp.float32)
    G_x = rate * (G_unit - unit * jnp.mean(G_unit * unit, axis=-1, keepdims=True))
    # Rows and positions become one axis. An axis of heads stays, since heads may be sharded.
    rows = (g * unit).reshape(-1, *x.shape[2:-1], x.shape[-1])
    G_scale = fp32_einsum("R,R...->...", jnp.ones(len(rows)), rows)
    G_scale = G_scale.sum(axis=range(G_scale.ndim - 1))
    return G_x.astype(x.dtype), G_scale.astype(scale.dtype)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)
