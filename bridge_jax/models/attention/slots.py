"""Attention of decoding where every row has a position of its own: slots that are refilled.

As cache.py, with at.t int32 [B] in place of a scalar, and a prompt for every row, P = B. A row's
cache is filled below its own position.

Two forms that read the same numbers. `batched` is one matmul for all rows, which reads as much of
the cache as the oldest row has filled. `row_by_row` loops over the rows and reads of each what that
row has filled, in a few sizes, `ends`: on a CPU it is bound by what it reads (docs/speed.md).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from bridge_jax.models.attention.cache import Position, read_layer
from bridge_jax.models.attention.einsums import attention
from bridge_jax.models.attention.masks import prompt_mask
from bridge_jax.models.storage_bits import from_storage, to_storage


def batched(q_B1NH, k_BK1H, v_BK1H, cache, prompt, at: Position, ends: tuple[int, ...] = ()):
    """The output of attention, and the cache with the new keys and values of all rows.

    cache: keys [L,B,K,H,T] and values [L,B,K,T,H]. prompt: (k_BKSH, v_BKSH, mask_BS) of this layer.
    ends: ascending to T, static; () is (T,).
    """
    keys, values = write_rows(cache, k_BK1H, v_BK1H, at)

    def up_to(end: int):
        """Attention to the first `end` positions of every row's cache."""
        k, v = read_layer(keys, at.layer, 4, end), read_layer(values, at.layer, 3, end)
        return attend_to(q_B1NH, k, v, prompt, at)

    ends = ends or (keys.shape[4],)
    which = jnp.sum(at.t.max() >= jnp.asarray(ends[:-1], jnp.int32))
    out = jax.lax.switch(which, [functools.partial(up_to, end) for end in ends])
    return out, (keys, values)


def row_by_row(q_B1NH, k_BK1H, v_BK1H, cache, prompt, at: Position, ends: tuple[int, ...] = ()):
    """The same in a loop over rows, each of which reads its own cache up to the next of `ends`."""
    keys, values = write_rows(cache, k_BK1H, v_BK1H, at)
    ends = ends or (keys.shape[4],)

    def one_row(b, out_B1NH):
        row = lambda x: jax.lax.dynamic_slice_in_dim(x, b, 1)
        its = at._replace(t=row(at.t))

        def up_to(end: int):
            """Attention to the first `end` positions of this row's cache."""
            k = read_row(keys, at.layer, b, 4, end)
            v = read_row(values, at.layer, b, 3, end)
            return attend_to(row(q_B1NH), k, v, tuple(row(x) for x in prompt), its)

        which = jnp.sum(its.t >= jnp.asarray(ends[:-1], jnp.int32))
        out_1 = jax.lax.switch(which, [functools.partial(up_to, end) for end in ends])
        return jax.lax.dynamic_update_slice_in_dim(out_B1NH, out_1, b, 0)

    out = jax.lax.fori_loop(0, q_B1NH.shape[0], one_row, jnp.zeros_like(q_B1NH))
    return out, (keys, values)


def attend_to(q_B1NH, k_BKHT, v_BKTH, prompt, at: Position):
    """Attention of these rows to their caches, up to their positions, and to their prompts."""
    position_T = jnp.arange(k_BKHT.shape[3])
    seen_BT = position_T <= at.t[:, None]
    if at.window is not None:
        seen_BT &= at.t[:, None] - position_T < at.window
    mask_of_row = lambda mask_S, t: prompt_mask(mask_S[None], t[None], at.window)[0]
    k_BKSH, v_BKSH, mask_BS = prompt
    as_query = lambda x: from_storage(x).astype(q_B1NH.dtype)
    of_prompt = as_query(k_BKSH), as_query(v_BKSH), jax.vmap(mask_of_row)(mask_BS, at.t)
    own = as_query(k_BKHT), as_query(v_BKTH), seen_BT[:, None, None, None]
    return attention(q_B1NH, own, of_prompt)


def write_rows(cache, k_BK1H, v_BK1H, at: Position):
    """The caches of all layers with each row's new keys and values at its own position."""
    keys, values = cache
    row_B = jnp.arange(keys.shape[1])
    new_k, new_v = (to_storage(x[:, :, 0], keys.dtype) for x in (k_BK1H, v_BK1H))
    sure = dict(unique_indices=True, mode="promise_in_bounds")
    keys = keys.at[at.layer, row_B, :, :, at.t].set(new_k, **sure)
    return keys, values.at[at.layer, row_B, :, at.t].set(new_v, **sure)


def read_row(stack: jax.Array, i, b, axis: int, end: int) -> jax.Array:
    """Row b of layer i, [1,K,...], with the first `end` entries of this axis of the stack."""
    sizes = [1, 1, *stack.shape[2:]]
    sizes[axis] = end
    return from_storage(jax.lax.dynamic_slice(stack, (i, b, 0, 0, 0), sizes))[0]
