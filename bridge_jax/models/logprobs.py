"""Token log-probabilities and entropies from hidden states.

`token_logp_plain` is the formula, with all logits [B,T,V] in memory. `token_logp` gives the same by
blocks of the vocabulary, on one device or on a mesh (vocabulary_blocks.py).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bridge_jax.models import vocabulary_blocks
from bridge_jax.models.precision import fp32_einsum


def logits_of(hidden_BTD: jax.Array, head_VD: jax.Array) -> jax.Array:
    """Logits [..., V] in fp32."""
    return fp32_einsum("...D,VD->...V", hidden_BTD, head_VD)


def token_logp_plain(hidden_BTD, head_VD, tokens_BT, temperature=1.0):
    """log softmax(logits / temperature)[token] and the entropy in nats, both [B,T] fp32."""
    logp_BTV = jax.nn.log_softmax(logits_of(hidden_BTD, head_VD) / temperature)
    entropy_BT = -jnp.sum(jnp.exp(logp_BTV) * logp_BTV, axis=-1)
    return jnp.take_along_axis(logp_BTV, tokens_BT[..., None], axis=-1)[..., 0], entropy_BT


def token_logp(
    hidden_BTD,
    head_VD,
    tokens_BT,
    temperature=1.0,
    chunk_tokens: int = 512,
    mesh: Mesh | None = None,
):
    """token_logp_plain by blocks of the vocabulary; both results are differentiable.

    chunk_tokens: a device holds the logits of this many positions at a time. mesh: rows are sharded
    over data and fsdp, the head's width over fsdp and its vocabulary over tensor. Rows that do not
    divide evenly are left to the compiler.
    """
    on_mesh = vocabulary_blocks.on_mesh(mesh, hidden_BTD.shape[0], head_VD.shape)
    return vocabulary_blocks.token_logp(
        on_mesh, chunk_tokens, hidden_BTD, head_VD, tokens_BT, jnp.float32(temperature)
    )
