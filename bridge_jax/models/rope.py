"""Rotary position embedding (Su et al. 2021) in HF's half-split form."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np


def frequencies(theta: float, head_dim: int) -> np.ndarray:
    """theta^(-2i / H): rotation speed of each half-head channel i, [H/2] radians per position."""
    return 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)


def llama3_frequencies(
    plain: np.ndarray, factor, low_freq_factor, high_freq_factor, original
) -> np.ndarray:
    """Llama 3's long-context scaling: slow channels divided by `factor`, fast ones unchanged.

    original: context length of the pretraining. For channels with a number of rotations within
    `original` between the two factors the scaling is interpolated linearly.
    """
    turns = original * plain / (2 * math.pi)
    ramp = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    return plain * (ramp + (1 - ramp) / factor)


def cos_sin(inverse_frequencies: np.ndarray, position: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of position * frequency, [..., H/2] fp32."""
    angle = position[..., None].astype(jnp.float32) * jnp.asarray(inverse_frequencies, jnp.float32)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNH: jax.Array, cos_BTH: jax.Array, sin_BTH: jax.Array) -> jax.Array:
    """Rotates channels i and i + H/2 of each head by the angle of their position."""
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BTH[:, :, None], sin_BTH[:, :, None]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)
