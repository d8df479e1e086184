"""Attention by einsums, with two speed-ups for CPUs; the plain form is reference.py.

The rows of a prompt, the heads of a group and the queries are one axis of a matmul per kv head, so
that a prompt's keys are read once for all of its rows. Keys of prompt and row are not concatenated:
each part has its own scores, and the two softmaxes are combined by their maximum and their sum. See
docs/speed.md for the savings.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bridge_jax.models.attention.masks import own_mask, prompt_mask

# Finite, so that a row without any visible key stays finite.
MASKED = -1e30


def causal(q_BTNH, k_BKTH, v_BKTH, prompt=None, segment_BT=None, window=None):
    """Attention of each query to itself, its own past, and its prompt.

    prompt: (k_PKSH, v_PKSH, mask_PS) or None. segment_BT: int32, for rows of several sequences; a
    query sees keys of its own segment alone. window: number of positions that a query sees, itself
    included (masks.py); None: all.
    """
    T = q_BTNH.shape[1]
    own = jnp.swapaxes(k_BKTH, 2, 3), v_BKTH, own_mask(T, segment_BT, window)[:, None, None]
    if prompt is not None:
        k_PKSH, v_PKSH, mask_PS = prompt
        prompt = k_PKSH, v_PKSH, prompt_mask(mask_PS, jnp.arange(T), window)
    return attention(q_BTNH, own, prompt)


def attention(q_BTNH, own, prompt=None):
    """Softmax over a row's own keys and its prompt's.

    own: (k_BKHS, v_BKSH, mask broadcastable to [B,1,1,T,S]), its keys with positions last.
    prompt: (k_PKSH, v_PKSH, mask_PTS, T or 1), with P dividing B; or None.
    """
    B, T, N, H = q_BTNH.shape
    k_BKHS, v_BKSH, mask = own
    K = k_BKHS.shape[1]
    G, fp32 = N // K, dict(preferred_element_type=jnp.float32)

    # Q = G T: the heads of a group and the queries as one axis.
    q_BKQH = (jnp.moveaxis(q_BTNH.reshape(B, T, K, G, H), 1, 3) * H**-0.5).reshape(B, K, G * T, H)
    scores = jnp.einsum("BKQH,BKHS->BKQS", q_BKQH, k_BKHS, **fp32)
    scores = jnp.where(mask, scores.reshape(B, K, G, T, -1), MASKED).reshape(scores.shape)
    top_BKQ = scores.max(axis=-1)

    if prompt is not None:
        k_PKSH, v_PKSH, mask_PTS = prompt
        P = mask_PTS.shape[0]

        def by_prompt(x):
            """[B,K,Q,..] -> [P,K,(B/P) Q,..]."""
            x = jnp.swapaxes(x.reshape(P, B // P, *x.shape[1:]), 1, 2)
            return x.reshape(P, K, B // P * G * T, *x.shape[4:])

        def by_row(x):
            """The inverse of by_prompt."""
            x = jnp.swapaxes(x.reshape(P, K, B // P, G * T, *x.shape[3:]), 1, 2)
            return x.reshape(B, K, G * T, *x.shape[4:])

        seen = jnp.einsum("PKQH,PKSH->PKQS", by_prompt(q_BKQH), k_PKSH, **fp32)
        seen = mask_scores(seen, mask_PTS)
        top_BKQ = jnp.maximum(top_BKQ, by_row(seen.max(axis=-1)))

    top_BKQ = jax.lax.stop_gradient(top_BKQ)
    weights = jnp.exp(scores - top_BKQ[..., None])
    total_BKQ = weights.sum(axis=-1)
    out = jnp.einsum("BKQS,BKSH->BKQH", weights.astype(v_BKSH.dtype), v_BKSH, **fp32)

    if prompt is not None:
        weights = jnp.exp(seen - by_prompt(top_BKQ)[..., None])
        total_BKQ += by_row(weights.sum(axis=-1))
        out += by_row(jnp.einsum("PKQS,PKSH->PKQH", weights.astype(v_PKSH.dtype), v_PKSH, **fp32))

    out = (out / total_BKQ[..., None]).astype(v_BKSH.dtype).reshape(B, K, G, T, H)
    return jnp.moveaxis(out, 3, 1).reshape(B, T, N, H)


def mask_scores(scores_PKQS, mask_PTS):
    """MASKED where a query does not see the prompt's position; T is the last factor of Q."""
    P, T, S = mask_PTS.shape
    if T == 1:
        return jnp.where(mask_PTS[:, None], scores_PKQS, MASKED)
    by_query = scores_PKQS.reshape(P, scores_PKQS.shape[1], -1, T, S)
    return jnp.where(mask_PTS[:, None, None], by_query, MASKED).reshape(scores_PKQS.shape)
