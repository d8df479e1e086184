"""Log-probabilities and entropies by blocks of the vocabulary, never all logits [B,T,V].

    log p(token) = logit(token) - log Z,    Z = sum_v exp(logit_v)
    entropy = log Z - sum_v p_v logit_v

Z and the entropy are accumulated over blocks under a running maximum (online softmax, Milakov &
Gimelshein 2018, arXiv 1805.02867), and the backward pass recomputes the logits of each block:

    d logit_v = [ (1[v = token] - p_v) g  -  p_v (log p_v + entropy) g_entropy ] / temperature
    d head_v = sum_t d logit_v hidden_t,    d hidden = sum_v d logit_v head_v

g and g_entropy are the gradients with respect to log p and the entropy; the second term is computed
only where an objective uses the entropy. One matmul per block gives that part of the head's
gradient, summed over positions in fp32. It is reduced over the devices at once, in fp32, so that
neither the gathered head nor its gradient is ever whole on a device.

The plain form is logprobs.token_logp_plain.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh, PartitionSpec

from bridge_jax.models.precision import fp32_einsum
from bridge_jax.models.weight_grads import weight_grad_einsum

# Finite, so that 0 times it is 0.
LOWEST = -1e30
# Entries of a tile in an accelerator's memory; blocks with other boundaries would be moved entry by
# entry.
LANES = 128


# ---- how the head is spread over devices


class Axes(NamedTuple):
    """Mesh axes inside a shard_map; None and () outside, and where sizes do not divide evenly."""

    rows: tuple[str, ...] = ()
    width: str | None = None  # of the head
    vocab: str | None = None  # of the head

    def sum(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """x summed over the mesh axes that are not None."""
        present = tuple(axis for axis in axes if axis)
        return jax.lax.psum(x, present) if present else x

    def gather(self, head_UD: jax.Array) -> jax.Array:
        """A block's rows in full width."""
        if not self.width:
            return head_UD
        return jax.lax.all_gather(head_UD, self.width, axis=1, tiled=True)

    def reduce(self, G_UD: jax.Array) -> jax.Array:
        """A block's gradient summed over all rows, this device's part of the width."""
        G_UD = self.sum(G_UD, *(axis for axis in self.rows if axis != self.width))
        if not self.width:
            return G_UD
        return jax.lax.psum_scatter(G_UD, self.width, scatter_dimension=1, tiled=True)

    def local_tokens(self, tokens_BT: jax.Array, head_VD: jax.Array) -> jax.Array:
        """Tokens relative to the start of this device's part of the vocabulary.

        Those below 0, and from V on, belong to other devices.
        """
        if not self.vocab:
            return tokens_BT
        return tokens_BT - jax.lax.axis_index(self.vocab) * head_VD.shape[0]


class OnMesh(NamedTuple):
    """A mesh of several devices and the axes over which rows and head are sharded."""

    mesh: Mesh
    axes: Axes


def on_mesh(mesh: Mesh | None, rows: int, head_shape: tuple[int, int]) -> OnMesh | None:
    """The axes for these sizes; None for one device, and where the rows do not divide evenly."""
    if mesh is None or mesh.size == 1 or rows % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return None
    divides = lambda n, axis: axis if n % mesh.shape[axis] == 0 else None
    V, D = head_shape
    return OnMesh(mesh, Axes(("data", "fsdp"), divides(D, "fsdp"), divides(V, "tensor")))


def on_devices(function, where: OnMesh | None, chunk_tokens: int, inputs, outputs):
    """function(Axes, chunk_tokens, ...) on each device's part.

    inputs, outputs: the sharding of each argument and result, "rows", "head", or "" for none.
    """
    if where is None:
        return functools.partial(function, Axes(), chunk_tokens)
    axes = where.axes
    specs = {
        "rows": PartitionSpec(axes.rows),
        "head": PartitionSpec(axes.vocab, axes.width),
        "": PartitionSpec(),
    }
    return jax.shard_map(
        functools.partial(function, axes, chunk_tokens),
        mesh=where.mesh,
        in_specs=tuple(specs[kind] for kind in inputs),
        out_specs=tuple(specs[kind] for kind in outputs),
        check_vma=False,
    )


# ---- how the vocabulary is divided


class Blocks(NamedTuple):
    """`count` blocks of `size` entries of a vocabulary of V.

    The last block ends with the vocabulary and may overlap the one before it; entries in both
    belong to the earlier one.
    """

    V: int
    size: int

    @property
    def count(self) -> int:
        """Number of blocks."""
        return -(-self.V // self.size)

    def start(self, k: jax.Array) -> jax.Array:
        """The first entry of block k."""
        return jnp.minimum(k * self.size, self.V - self.size)

    def logits(self, k, hidden_BTD, head_UD, temperature) -> jax.Array:
        """Logits / temperature, [B,T,U]; entries of an earlier block are LOWEST, whose exp is 0."""
        earlier_U = self.start(k) + jnp.arange(self.size) < k * self.size
        logits = fp32_einsum("BTD,UD->BTU", hidden_BTD, head_UD) / temperature
        return jnp.where(earlier_U, LOWEST, logits)

    def chosen(self, k: jax.Array, tokens_BT: jax.Array) -> jax.Array:
        """[B,T,U]: whether an entry is the token and belongs to no earlier block."""
        own_BT = jnp.where(tokens_BT >= k * self.size, tokens_BT - self.start(k), -1)
        return own_BT[..., None] == jnp.arange(self.size)


def choose_blocks(V: int, positions: int, chunk_tokens: int) -> Blocks:
    """Blocks such that all positions have as many logits as chunk_tokens positions have in V."""
    size = math.ceil(V * min(1.0, chunk_tokens / positions))
    return Blocks(V, min(V, size if size < LANES else -(-size // LANES) * LANES))


# ---- both passes, on one device's part


def forward(axes: Axes, chunk_tokens: int, hidden_BTD, head_VD, tokens_BT, temperature):
    """logp, entropy and log Z, [B,T] fp32."""
    B, T, _ = hidden_BTD.shape
    blocks = choose_blocks(head_VD.shape[0], B * T, chunk_tokens)
    own_BT = axes.local_tokens(tokens_BT, head_VD)

    def step(k, carry):
        # mean: sum of exp(logit - top) logit
        top, Z, mean, chosen = carry
        head_UD = axes.gather(jax.lax.dynamic_slice_in_dim(head_VD, blocks.start(k), blocks.size))
        logits = blocks.logits(k, hidden_BTD, head_UD, temperature)
        new_top = jnp.maximum(top, logits.max(axis=-1))
        weights, rescale = jnp.exp(logits - new_top[..., None]), jnp.exp(top - new_top)
        return (
            new_top,
            Z * rescale + weights.sum(axis=-1),
            mean * rescale + jnp.sum(weights * logits, axis=-1),
            chosen + jnp.sum(jnp.where(blocks.chosen(k, own_BT), logits, 0.0), axis=-1),
        )

    zero_BT = jnp.zeros((B, T), jnp.float32)
    start = zero_BT - jnp.inf, zero_BT, zero_BT, zero_BT
    top, Z, mean, chosen = jax.lax.fori_loop(0, blocks.count, step, start)
    if axes.vocab:
        highest = jax.lax.pmax(top, axes.vocab)
        rescale = jnp.exp(top - highest)
        Z, mean, chosen = (axes.sum(x, axes.vocab) for x in (Z * rescale, mean * rescale, chosen))
        top = highest
    log_z = top + jnp.log(Z)
    return chosen - log_z, log_z - mean / Z, log_z


class Gradients(NamedTuple):
    """The arguments of the backward pass besides the inputs, [B,T] each."""

    log_z_BT: jax.Array
    g_BT: jax.Array
    # only where an objective uses the entropy
    entropy_BT: jax.Array | None = None
    g_entropy_BT: jax.Array | None = None


def backward(
    axes: Axes, chunk_tokens: int, hidden_BTD, head_VD, tokens_BT, temperature, *gradients
):
    """Gradients in hidden_BTD and head_VD of the sum of g * logp + g_entropy * entropy.

    gradients: the fields of Gradients.
    """
    B, T, _ = hidden_BTD.shape
    saved, dtype = Gradients(*gradients), hidden_BTD.dtype
    blocks = choose_blocks(head_VD.shape[0], B * T, chunk_tokens)
    own_BT = axes.local_tokens(tokens_BT, head_VD)

    def step(k, carry):
        G_hidden, G_head = carry
        start = blocks.start(k)
        head_UD = axes.gather(jax.lax.dynamic_slice_in_dim(head_VD, start, blocks.size))
        logits = blocks.logits(k, hidden_BTD, head_UD, temperature)
        logp = logits - saved.log_z_BT[..., None]
        p = jnp.exp(logp)
        d = (blocks.chosen(k, own_BT) - p) * (saved.g_BT / temperature)[..., None]
        if saved.g_entropy_BT is not None:
            of_entropy = (saved.g_entropy_BT / temperature)[..., None]
            d -= p * (logp + saved.entropy_BT[..., None]) * of_entropy
        d = d.astype(dtype)
        G_UD = axes.reduce(weight_grad_einsum("U,D->UD", d, hidden_BTD)).astype(head_VD.dtype)
        # Entries of an earlier block have zeros here, so they are added and not overwritten.
        G_UD += jax.lax.dynamic_slice_in_dim(G_head, start, blocks.size)
        G_head = jax.lax.dynamic_update_slice_in_dim(G_head, G_UD, start, 0)
        return G_hidden + fp32_einsum("BTU,UD->BTD", d, head_UD), G_head

    zeros = jnp.zeros(hidden_BTD.shape, jnp.float32), jnp.zeros_like(head_VD)
    G_hidden, G_head = jax.lax.fori_loop(0, blocks.count, step, zeros)
    return axes.sum(G_hidden, axes.vocab).astype(dtype), G_head


# ---- both passes as one function with a custom gradient


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def token_logp(
    where: OnMesh | None, chunk_tokens: int, hidden_BTD, head_VD, tokens_BT, temperature
):
    """logp and entropy, [B,T] fp32; where: from on_mesh."""
    return _outputs(where, chunk_tokens, hidden_BTD, head_VD, tokens_BT, temperature)[:2]


def _outputs(where: OnMesh | None, chunk_tokens: int, *inputs):
    """logp, entropy and log Z of hidden states, head, tokens and temperature."""
    kinds = ("rows", "head", "rows", "")
    return on_devices(forward, where, chunk_tokens, kinds, ("rows",) * 3)(*inputs)


def _token_logp_forward(where: OnMesh | None, chunk_tokens: int, *inputs):
    inputs = [primal.value for primal in inputs]
    logp, entropy, log_z = _outputs(where, chunk_tokens, *inputs)
    return (logp, entropy), (*inputs, log_z, entropy)


def _token_logp_backward(where: OnMesh | None, chunk_tokens: int, saved, gradients):
    """Gradients in the hidden states and the head; none in tokens and temperature."""
    *inputs, log_z, entropy = saved
    g, g_entropy = gradients
    # Most objectives do not use the entropy; then its gradient is a SymbolicZero.
    of_entropy = () if isinstance(g_entropy, SymbolicZero) else (entropy, g_entropy)
    g = jnp.zeros_like(log_z) if isinstance(g, SymbolicZero) else g
    kinds = ("rows", "head", "rows", "", "rows", "rows", *("rows" for _ in of_entropy))
    pull_back = on_devices(backward, where, chunk_tokens, kinds, ("rows", "head"))
    G_hidden, G_head = pull_back(*inputs, log_z, g, *of_entropy)
    return G_hidden, G_head, None, None


token_logp.defvjp(_token_logp_forward, _token_logp_backward, symbolic_zeros=True)
