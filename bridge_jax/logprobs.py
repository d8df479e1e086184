"""Token log-probabilities and entropies from hidden states, in chunks of positions: logits [B,T,V] never exist at once.

Each chunk is rematerialised in the backward pass, so memory is that of one chunk of fp32 logits, a few times over.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp


def logits_of(hidden_BTD: jax.Array, head_VD: jax.Array) -> jax.Array:
    """Logits [..., V] in fp32, whatever the compute dtype."""
    return jnp.einsum("...D,VD->...V", hidden_BTD, head_VD, preferred_element_type=jnp.float32)


def token_logp(hidden_BTD, head_VD, tokens_BT, temperature=1.0, chunk_tokens: int = 512):
    """log softmax(logits / temperature)[token] and the entropy in nats (no gradient flows through it), both [B,T] fp32.

    chunk_tokens: how many positions, over all rows, have their logits in memory at once.
    """
    B, T, D = hidden_BTD.shape
    width = max(1, min(T, chunk_tokens // B))
    chunks = -(-T // width)
    pad = chunks * width - T
    hidden = jnp.pad(hidden_BTD, ((0, 0), (0, pad), (0, 0))).reshape(B, chunks, width, D).swapaxes(0, 1)
    tokens = jnp.pad(tokens_BT, ((0, 0), (0, pad))).reshape(B, chunks, width).swapaxes(0, 1)
    head32_VD = head_VD.astype(jnp.float32)  # so that the head's gradient is summed over chunks in fp32

    @jax.checkpoint
    def chunk(carry, xs):
        h, tok = xs
        logits = logits_of(h, head32_VD.astype(h.dtype)) / temperature
        log_z = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, tok[..., None], axis=-1)[..., 0]
        still = jax.lax.stop_gradient(logits)
        entropy = log_z - jnp.sum(jax.nn.softmax(still, axis=-1) * still, axis=-1)
        return carry, (chosen - log_z, jax.lax.stop_gradient(entropy))

    _, (logp, entropy) = jax.lax.scan(chunk, None, (hidden, tokens))
    join = lambda x: x.swapaxes(0, 1).reshape(B, chunks * width)[:, :T]
    return join(logp), join(entropy)
