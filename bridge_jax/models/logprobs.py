"""Token log-probabilities and entropies from hidden states, in blocks of the vocabulary: logits [B,T,V] never exist at once.

    log p(token) = logit(token) - log Z,    entropy = log Z - sum_v p_v logit_v,    Z = sum_v exp(logit_v)

Z and the entropy are summed from block to block under a running maximum (online softmax, Milakov & Gimelshein 2018,
arXiv 1805.02867), and the backward pass makes the logits of each block again:

    d logit_v = [ (1[v = token] - p_v) g  -  p_v (log p_v + entropy) g_entropy ] / temperature
    d head_v = sum_t d logit_v hidden_t,    d hidden = sum_v d logit_v head_v

g and g_entropy are the gradients of log p and of the entropy; the second term is computed only where an objective has one.

A block's part of the head's gradient is complete when the block is done: it is summed over positions in fp32 by one matmul and
reduced over the devices at once, in fp32, so that neither the gathered head nor its gradient is ever whole on a device.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh, PartitionSpec

from bridge_jax.models.precision import over_positions, product

LOWEST = -1e30  # finite, so that 0 times it is 0
LANES = 128  # entries of a tile in an accelerator's memory: blocks cut elsewhere would be moved entry by entry


class Axes(NamedTuple):
    """Mesh axes along which things lie inside a shard_map; None and () outside of one, or where they do not divide."""

    rows: tuple[str, ...] = ()
    width: str | None = None  # of the head
    vocab: str | None = None  # of the head

    def sum(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """x summed over those of the mesh axes that are there."""
        there = tuple(axis for axis in axes if axis)
        return jax.lax.psum(x, there) if there else x

    def gather(self, head_UD: jax.Array) -> jax.Array:
        """A block's rows in full width."""
        return (
            jax.lax.all_gather(head_UD, self.width, axis=1, tiled=True) if self.width else head_UD
        )

    def reduce(self, G_UD: jax.Array) -> jax.Array:
        """A block's gradient, summed over all rows; of the width this device's part."""
        G_UD = self.sum(G_UD, *(axis for axis in self.rows if axis != self.width))
        return (
            jax.lax.psum_scatter(G_UD, self.width, scatter_dimension=1, tiled=True)
            if self.width
            else G_UD
        )


class Blocks(NamedTuple):
    """How the vocabulary is cut: `count` blocks of `size` entries. The last one ends where the vocabulary does, and may begin
    before the one before it ends; what both have is left to the earlier."""

    V: int
    size: int

    @property
    def count(self) -> int:
        return -(-self.V // self.size)

    def start(self, k: jax.Array) -> jax.Array:
        """The first entry of block k."""
        return jnp.minimum(k * self.size, self.V - self.size)

    def logits(
        self, k: jax.Array, hidden_BTD: jax.Array, head_UD: jax.Array, temperature: jax.Array
    ) -> jax.Array:
        """[B,T,U] over the temperature; entries that an earlier block has are so low that their exp is 0."""
        seen_U = self.start(k) + jnp.arange(self.size) < k * self.size
        return jnp.where(seen_U, LOWEST, logits_of(hidden_BTD, head_UD) / temperature)

    def chosen(self, k: jax.Array, tokens_BT: jax.Array) -> jax.Array:
        """[B,T,U]: whether an entry is the token, and no earlier block's."""
        own_BT = jnp.where(tokens_BT >= k * self.size, tokens_BT - self.start(k), -1)
        return own_BT[..., None] == jnp.arange(self.size)


def cut(V: int, positions: int, chunk_tokens: int) -> Blocks:
    """Blocks with as many logits of these positions as chunk_tokens positions have of the whole vocabulary."""
    size = math.ceil(V * min(1.0, chunk_tokens / positions))
    return Blocks(V, min(V, size if size < LANES else -(-size // LANES) * LANES))


def logits_of(hidden_BTD: jax.Array, head_VD: jax.Array) -> jax.Array:
    """Logits [..., V] in fp32."""
    return product("...D,VD->...V", hidden_BTD, head_VD)


def own_part(tokens_BT: jax.Array, head_VD: jax.Array, on: Axes) -> jax.Array:
    """Tokens counted from where this device's part of the vocabulary begins: below 0 and above V are others'."""
    return tokens_BT - jax.lax.axis_index(on.vocab) * head_VD.shape[0] if on.vocab else tokens_BT


def forward(on: Axes, chunk_tokens: int, hidden_BTD, head_VD, tokens_BT, temperature):
    """logp, entropy and log Z, [B,T] fp32."""
    B, T, _ = hidden_BTD.shape
    blocks, own_BT = cut(head_VD.shape[0], B * T, chunk_tokens), own_part(tokens_BT, head_VD, on)

    def step(k, carry):
        top, Z, mean, chosen = carry  # mean: sum of exp(logit - top) logit
        head_UD = on.gather(jax.lax.dynamic_slice_in_dim(head_VD, blocks.start(k), blocks.size))
        logits = blocks.logits(k, hidden_BTD, head_UD, temperature)
        higher = jnp.maximum(top, logits.max(axis=-1))
        weights, less = jnp.exp(logits - higher[..., None]), jnp.exp(top - higher)
        return (
            higher,
            Z * less + weights.sum(axis=-1),
            mean * less + jnp.sum(weights * logits, axis=-1),
            chosen + jnp.sum(jnp.where(blocks.chosen(k, own_BT), logits, 0.0), axis=-1),
        )

    zero_BT = jnp.zeros((B, T), jnp.float32)
    top, Z, mean, chosen = jax.lax.fori_loop(
        0, blocks.count, step, (zero_BT - jnp.inf, zero_BT, zero_BT, zero_BT)
    )
    if on.vocab:
        highest = jax.lax.pmax(top, on.vocab)
        less = jnp.exp(top - highest)
        top, Z, mean, chosen = (
            highest,
            *(on.sum(x, on.vocab) for x in (Z * less, mean * less, chosen)),
        )
    log_z = top + jnp.log(Z)
    return chosen - log_z, log_z - mean / Z, log_z


def backward(
    on: Axes,
    chunk_tokens: int,
    hidden_BTD,
    head_VD,
    tokens_BT,
    temperature,
    log_z_BT,
    g_BT,
    entropy_BT=None,
    g_entropy_BT=None,
):
    """Gradients to hidden_BTD and head_VD of the sum of g * logp, and of g_entropy * entropy where that is given."""
    B, T, _ = hidden_BTD.shape
    blocks, own_BT, dtype = (
        cut(head_VD.shape[0], B * T, chunk_tokens),
        own_part(tokens_BT, head_VD, on),
        hidden_BTD.dtype,
    )

    def step(k, carry):
        G_hidden, G_head = carry
        start = blocks.start(k)
        head_UD = on.gather(jax.lax.dynamic_slice_in_dim(head_VD, start, blocks.size))
        logits = blocks.logits(k, hidden_BTD, head_UD, temperature)
        logp = logits - log_z_BT[..., None]
        p = jnp.exp(logp)
        d = (blocks.chosen(k, own_BT) - p) * (g_BT / temperature)[..., None]
        if g_entropy_BT is not None:
            d -= p * (logp + entropy_BT[..., None]) * (g_entropy_BT / temperature)[..., None]
        d = d.astype(dtype)
        G_UD = on.reduce(over_positions("U,D->UD", d, hidden_BTD)).astype(head_VD.dtype)
        # a block's entries that an earlier one has get zeros here: they are added to, never written over
        G_UD += jax.lax.dynamic_slice_in_dim(G_head, start, blocks.size)
        return G_hidden + product("BTU,UD->BTD", d, head_UD), jax.lax.dynamic_update_slice_in_dim(
            G_head, G_UD, start, 0
        )

    begun = jnp.zeros(hidden_BTD.shape, jnp.float32), jnp.zeros_like(head_VD)
    G_hidden, G_head = jax.lax.fori_loop(0, blocks.count, step, begun)
    return on.sum(G_hidden, on.vocab).astype(dtype), G_head


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def scored(spread, chunk_tokens: int, hidden_BTD, head_VD, tokens_BT, temperature):
    """logp and entropy; spread: (mesh, Axes), or None for one device."""
    return run_forward(spread, chunk_tokens, hidden_BTD, head_VD, tokens_BT, temperature)[:2]


def run_forward(spread, chunk_tokens: int, *given):
    """logp, entropy and log Z of hidden states, head, tokens and temperature."""
    kinds = ("rows", "head", "rows", "")
    return on_devices(forward, spread, chunk_tokens, kinds, ("rows",) * 3)(*given)


def begin(spread, chunk_tokens: int, *given):
    """The outputs, and what the backward pass needs."""
    given = [primal.value for primal in given]
    logp, entropy, log_z = run_forward(spread, chunk_tokens, *given)
    return (logp, entropy), (*given, log_z, entropy)


def end(spread, chunk_tokens: int, kept, gradients):
    """Gradients to the hidden states and the head; none to the temperature."""
    *given, log_z, entropy = kept
    g, g_entropy = gradients
    # an objective that does not reward entropy, as most do not, has no gradient of it, not even zeros
    bonus = () if isinstance(g_entropy, SymbolicZero) else (entropy, g_entropy)
    g = jnp.zeros_like(log_z) if isinstance(g, SymbolicZero) else g
    kinds = ("rows", "head", "rows", "", "rows", "rows", *("rows" for _ in bonus))
    G_hidden, G_head = on_devices(backward, spread, chunk_tokens, kinds, ("rows", "head"))(
        *given, log_z, g, *bonus
    )
    return G_hidden, G_head, None, None


scored.defvjp(begin, end, symbolic_zeros=True)


def on_devices(function, spread, chunk_tokens: int, given: tuple[str, ...], made: tuple[str, ...]):
    """function(Axes, chunk_tokens, ...) on each device's part; given, made: how its arguments and results lie."""
    if spread is None:
        return functools.partial(function, Axes(), chunk_tokens)
    mesh, on = spread
    lie = {
        "rows": PartitionSpec(on.rows),
        "head": PartitionSpec(on.vocab, on.width),
        "": PartitionSpec(),
    }
    return jax.shard_map(
        functools.partial(function, on, chunk_tokens),
        mesh=mesh,
        in_specs=tuple(lie[kind] for kind in given),
        out_specs=tuple(lie[kind] for kind in made),
        check_vma=False,
    )


def token_logp(
    hidden_BTD,
    head_VD,
    tokens_BT,
    temperature=1.0,
    chunk_tokens: int = 512,
    mesh: Mesh | None = None,
):
    """log softmax(logits / temperature)[token] and the entropy in nats, both [B,T] fp32; gradients flow through both.

    chunk_tokens: a device has as many logits in memory at once as so many positions have. mesh: the rows lie over data and fsdp,
    the head's width over fsdp and its vocabulary over tensor; rows that do not divide are left to the compiler.
    """
    spread = None
    if (
        mesh is not None
        and mesh.size > 1
        and hidden_BTD.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0
    ):
        divides = lambda n, axis: axis if n % mesh.shape[axis] == 0 else None
        spread = (
            mesh,
            Axes(
                ("data", "fsdp"),
                divides(head_VD.shape[1], "fsdp"),
                divides(head_VD.shape[0], "tensor"),
            ),
        )
    return scored(spread, chunk_tokens, hidden_BTD, head_VD, tokens_BT, jnp.float32(temperature))
