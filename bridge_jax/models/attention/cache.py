"""Attention of decoding: one query per row, against the row's cache and its prompt's, by einsums.

With one query per row the scores are small, so that a fused kernel would save no memory. The cache
is updated in place, in the stack of all layers. Its keys have positions last, as the matmul of the
scores reads them. Weights and caches may be stored as bits (storage_bits.py).

`ends`, the cache segments, are a speed-up: a step reads the cache up to the first end above its
position instead of all of it. The plain form has one end, the cache's length.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bridge_jax.models.attention.einsums import attention
from bridge_jax.models.attention.masks import prompt_mask
from bridge_jax.models.storage_bits import from_storage, to_storage


class Position(NamedTuple):
    """The present position of decoding; traced scalars."""

    layer: jax.Array
    t: jax.Array  # completion position of the query; in slots.py one for each row, [B]
    window: jax.Array | None = None  # how many positions it sees, itself included; None: all


def attend(q_B1NH, k_BK1H, v_BK1H, cache, prompt, at: Position, ends: tuple[int, ...] = ()):
    """The output of attention, and the cache with the new keys and values.

    cache: keys [L,B,K,H,T] and values [L,B,K,T,H], filled below at.t. prompt: (k_PKSH, v_PKSH,
    mask_PS) of this layer. ends: ascending to T, static; () is (T,).
    """
    i, t = at.layer, at.t
    keys = write_layer(cache[0], jnp.swapaxes(k_BK1H, 2, 3), i, 0, 0, 0, t)
    values = write_layer(cache[1], v_BK1H, i, 0, 0, t, 0)
    k_PKSH, v_PKSH, mask_PS = prompt
    of_prompt = (
        from_storage(k_PKSH).astype(q_B1NH.dtype),
        from_storage(v_PKSH).astype(q_B1NH.dtype),
        prompt_mask(mask_PS, jnp.reshape(t, 1), at.window),
    )

    def up_to(end: int):
        """Attention to the first `end` positions of the cache."""
        seen = jnp.arange(end) <= t
        if at.window is not None:
            seen &= t - jnp.arange(end) < at.window
        k = read_layer(keys, i, 4, end).astype(q_B1NH.dtype)
        v = read_layer(values, i, 3, end).astype(q_B1NH.dtype)
        return attention(q_B1NH, (k, v, seen), of_prompt)

    ends = ends or (keys.shape[4],)
    which = jnp.sum(t >= jnp.asarray(ends[:-1], jnp.int32))
    out = jax.lax.switch(which, [functools.partial(up_to, end) for end in ends])
    return out, (keys, values)


def write_layer(stack: jax.Array, new: jax.Array, *start) -> jax.Array:
    """One layer's new keys or values, written into the stack of all layers."""
    return jax.lax.dynamic_update_slice(stack, to_storage(new, stack.dtype)[None], start)


def read_layer(stack: jax.Array, i, axis: int, end: int) -> jax.Array:
    """Layer i of the stack, with the first `end` entries of this axis."""
    sizes = [1, *stack.shape[1:]]
    sizes[axis] = end
    return from_storage(jax.lax.dynamic_slice(stack, (i, 0, 0, 0, 0), sizes))[0]
