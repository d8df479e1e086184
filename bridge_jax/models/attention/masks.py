"""Masks: a query sees its own past, within its segment, and its prompt, within a sliding window.

A window of n positions contains the query itself and the n - 1 positions before it, across the
border between prompt and completion. `window` is a traced scalar, since the layers of one scan may
have different ones; None: no window.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def own_mask(T: int, segment_BT=None, window=None) -> jax.Array:
    """Which of a row's own T keys its T queries see, [1,T,T] or [B,T,T].

    segment_BT: int32, for rows of several sequences; a query sees keys of its own segment alone.
    """
    mask = jnp.tril(jnp.ones((T, T), bool))[None]
    if segment_BT is not None:
        mask &= segment_BT[:, :, None] == segment_BT[:, None]
    if window is not None:
        mask &= jnp.arange(T)[:, None] - jnp.arange(T) < window
    return mask


def prompt_mask(mask_PS, t_T, window=None) -> jax.Array:
    """Which prompt positions the queries at completion positions t_T see, [P,1,S] or [P,T,S]."""
    if window is None:
        return mask_PS[:, None]
    length_P = jnp.sum(mask_PS, axis=1, dtype=jnp.int32)
    distance_PTS = length_P[:, None, None] + t_T[:, None] - jnp.arange(mask_PS.shape[1])
    return mask_PS[:, None] & (distance_PTS < window)


def after_prompt(prompt, k, v, pad_to: int = 1):
    """Each row's keys and values [B,K,S'+T,H] after its prompt's, and the mask of the prompt.

    prompt: (k_PKSH, v_PKSH, mask_PS) or None. Prompts of S positions are padded to S', the next
    multiple of pad_to; the third result is [P,S'] bool, of [B,0] without a prompt.
    """
    B = k.shape[0]
    if prompt is None:
        return k, v, jnp.ones((B, 0), bool)
    k_PKSH, v_PKSH, mask_PS = prompt
    P, S = mask_PS.shape
    pad = -S % pad_to

    def join(of_prompt, own):
        padded = jnp.pad(of_prompt, ((0, 0), (0, 0), (0, pad), (0, 0)))
        return jnp.concatenate([jnp.repeat(padded, B // P, axis=0), own], axis=2)

    return join(k_PKSH, k), join(v_PKSH, v), jnp.pad(mask_PS, ((0, 0), (0, pad)))
