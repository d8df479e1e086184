"""Token log-probabilities and entropies from hidden states, in chunks of positions: logits [B,T,V] never exist at once.

Each chunk is rematerialised in the backward pass, so memory is that of one chunk of fp32 logits, a few times over. On a mesh a
device takes the rows that it has: the head is gathered over fsdp once, not once a chunk, its gradient is summed over the chunks
in fp32 where it is and reduced once, and where the vocabulary lies over tensor a device takes its part of the logits.
"""
from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec


TILE = 16  # rows of a tile of bf16 in an accelerator's memory: chunks cut elsewhere are moved row by row, by code of their own


def logits_of(hidden_BTD: jax.Array, head_VD: jax.Array) -> jax.Array:
    """Logits [..., V] in fp32, whatever the compute dtype."""
    return jnp.einsum("...D,VD->...V", hidden_BTD, head_VD, preferred_element_type=jnp.float32)


def scores(logits: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log softmax(logits)[token], and the entropy without a gradient; logits [..., V]."""
    log_z = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    still = jax.lax.stop_gradient(logits)
    entropy = log_z - jnp.sum(jax.nn.softmax(still, axis=-1) * still, axis=-1)
    return chosen - log_z, jax.lax.stop_gradient(entropy)


def scores_of_part(logits: jax.Array, token: jax.Array, axis: str) -> tuple[jax.Array, jax.Array]:
    """The same from the logits of a device's part of the vocabulary; the parts follow the mesh axis."""
    first, count = jax.lax.axis_index(axis) * logits.shape[-1], logits.shape[-1]
    still = jax.lax.stop_gradient(logits)
    top = jax.lax.pmax(still.max(axis=-1), axis)
    log_z = top + jnp.log(jax.lax.psum(jnp.sum(jnp.exp(logits - top[..., None]), axis=-1), axis))
    own = jnp.take_along_axis(logits, jnp.clip(token - first, 0, count - 1)[..., None], axis=-1)[..., 0]
    chosen = jax.lax.psum(jnp.where((token >= first) & (token < first + count), own, 0.0), axis)
    weights = jnp.exp(still - jax.lax.stop_gradient(log_z)[..., None])
    entropy = log_z - jax.lax.psum(jnp.sum(weights * still, axis=-1), axis)
    return chosen - log_z, jax.lax.stop_gradient(entropy)


def in_chunks(hidden_BTD, head_VD, tokens_BT, temperature, chunk_tokens: int, score):
    """score(logits / temperature, tokens) for all positions, chunk_tokens of them (over all rows) at a time."""
    B, T, D = hidden_BTD.shape
    width = max(1, min(T, chunk_tokens // B))
    if TILE <= width < T:
        width -= width % TILE
    chunks = -(-T // width)
    pad = chunks * width - T
    hidden = jnp.pad(hidden_BTD, ((0, 0), (0, pad), (0, 0))).reshape(B, chunks, width, D).swapaxes(0, 1)
    tokens = jnp.pad(tokens_BT, ((0, 0), (0, pad))).reshape(B, chunks, width).swapaxes(0, 1)
    head32_VD = head_VD.astype(jnp.float32)  # so that the head's gradient is summed over chunks in fp32

    @jax.checkpoint
    def chunk(carry, xs):
        h, tok = xs
        return carry, score(logits_of(h, head32_VD.astype(h.dtype)) / temperature, tok)

    _, (logp, entropy) = jax.lax.scan(chunk, None, (hidden, tokens))
    join = lambda x: x.swapaxes(0, 1).reshape(B, chunks * width)[:, :T]
    return join(logp), join(entropy)


def token_logp(hidden_BTD, head_VD, tokens_BT, temperature=1.0, chunk_tokens: int = 512, mesh: Mesh | None = None):
    """log softmax(logits / temperature)[token] and the entropy in nats (no gradient flows through it), both [B,T] fp32.

    chunk_tokens: how many positions, over all rows of a device, have their logits in memory at once. mesh: the rows lie over data
    and fsdp, the head's width over fsdp and its vocabulary over tensor; rows that do not divide are left to the compiler.
    """
    if mesh is None or mesh.size == 1 or hidden_BTD.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return in_chunks(hidden_BTD, head_VD, tokens_BT, temperature, chunk_tokens, scores)
    vocab, width = ("tensor" if head_VD.shape[0] % mesh.shape["tensor"] == 0 else None,
                    "fsdp" if head_VD.shape[1] % mesh.shape["fsdp"] == 0 else None)
    score = functools.partial(scores_of_part, axis=vocab) if vocab else scores

    def on_a_device(hidden_BTD, head_VD, tokens_BT, temperature):
        head_VD = jax.lax.all_gather(head_VD, width, axis=1, tiled=True) if width else head_VD
        return in_chunks(hidden_BTD, head_VD, tokens_BT, temperature, chunk_tokens, score)

    rows = PartitionSpec(("data", "fsdp"))
    return jax.shard_map(on_a_device, mesh=mesh, in_specs=(rows, PartitionSpec(vocab, width), rows, PartitionSpec()),
                         out_specs=rows)(hidden_BTD, head_VD, tokens_BT, jnp.float32(temperature))
