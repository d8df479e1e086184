"""Attention as its formula: one softmax over the prompt's keys and a row's own; short, but slow."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bridge_jax.models.attention.masks import own_mask, prompt_mask


def attention(q_BTNH, k_BKSH, v_BKSH, mask_BTS):
    """softmax(q k' / sqrt(H)) v over the keys that a query sees, in fp32."""
    G = q_BTNH.shape[2] // k_BKSH.shape[1]
    q, k, v = (x.astype(jnp.float32) for x in (q_BTNH, k_BKSH, v_BKSH))
    k_BNSH, v_BNSH = jnp.repeat(k, G, axis=1), jnp.repeat(v, G, axis=1)
    scores = jnp.einsum("BTNH,BNSH->BNTS", q, k_BNSH, precision="highest") * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask_BTS[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("BNTS,BNSH->BTNH", weights, v_BNSH, precision="highest").astype(q_BTNH.dtype)


def causal(q_BTNH, k_BKTH, v_BKTH, prompt=None, segment_BT=None, window=None):
    """einsums.causal by the formula."""
    B, T = q_BTNH.shape[:2]
    own = jnp.broadcast_to(own_mask(T, segment_BT, window), (B, T, T))
    if prompt is None:
        return attention(q_BTNH, k_BKTH, v_BKTH, own)
    k_PKSH, v_PKSH, mask_PS = prompt
    per_row = lambda x: jnp.repeat(x, B // mask_PS.shape[0], axis=0)
    seen = jnp.broadcast_to(
        prompt_mask(mask_PS, jnp.arange(T), window), (len(mask_PS), T, mask_PS.shape[1])
    )
    k = jnp.concatenate([per_row(k_PKSH), k_BKTH], axis=2)
    v = jnp.concatenate([per_row(v_PKSH), v_BKTH], axis=2)
    return attention(q_BTNH, k, v, jnp.concatenate([per_row(seen), own], axis=2))
