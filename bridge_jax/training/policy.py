"""The Policy of a model: four pure functions of merged weights, on the training mesh.

On several devices a pass is explicit FSDP (models/forward_sharding.py); the head is gathered and
its gradient reduced by blocks (models/vocabulary_blocks.py).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bridge_jax.data import packing
from bridge_jax.distributed import sharding
from bridge_jax.models import attention, layers, logprobs, lora, params
from bridge_jax.models.forward_sharding import ForwardSharding, fsdp
from bridge_jax.models.precision import matmul_precision
from bridge_jax.types import Policy, Sequences, Tree


def forward_sharding_of(cfg: layers.Config, mesh: Mesh | None, kind: str) -> ForwardSharding:
    """The ForwardSharding of a mesh; kind: of attention, a key of attention.KINDS."""
    if mesh is None:
        return ForwardSharding()
    attend = attention.choose(kind, mesh, layers.has_windows(cfg))
    if mesh.size == 1:
        return ForwardSharding(attend=attend)
    stacked_axes = params.logical_axes(cfg)["layers"]
    layer_axes = {name: axes[1:] for name, axes in stacked_axes.items()}
    return fsdp(mesh, layer_axes, attend)


def parts_of_group(P: int, M: int, mesh: Mesh | None) -> int:
    """Number of parts into which the M rows of each of P prompts are divided over the devices.

    The smallest number that gives each device the same number of parts.
    """
    devices = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    return next((n for n in sharding.divisors(M) if P * n % devices == 0), 1)


def repeat_prompts(seqs: Sequences, mesh: Mesh | None) -> Sequences:
    """The sequences with a copy of a prompt for each part of its rows (parts_of_group)."""
    P = seqs.prompt_len_P.shape[0]
    times = parts_of_group(P, seqs.length_B.shape[0] // P, mesh)
    repeat = lambda x: jnp.repeat(x, times, axis=0)
    return (
        seqs
        if times == 1
        else seqs.replace(prompt_PS=repeat(seqs.prompt_PS), prompt_len_P=repeat(seqs.prompt_len_P))
    )


def constrain_adapter(cfg: layers.Config, adapter: lora.Lora, mesh: Mesh | None):
    """w -> w, with A and B sharded like the rows and columns of their matrix.

    Their product is then computed on the devices of the matrix. Otherwise the compiler gathers the
    gradient of a whole stack of matrices over tensor.
    """
    if mesh is None or mesh.size == 1:
        return lambda w: w
    axes = {
        path: {"A": ("layers", t.axes[0], "rank"), "B": ("layers", "rank", t.axes[t.inputs])}
        for path, t in lora.targets(cfg, adapter).items()
    }
    return lambda w: w and jax.lax.with_sharding_constraint(w, sharding.of_tree(mesh, axes, w))


def make(
    cfg: layers.Config,
    adapter: lora.Lora,
    dtype,
    remat: str = "full",
    logp_chunk: int = 512,
    kind: str = "auto",
    mesh: Mesh | None = None,
) -> Policy:
    """The Policy of a model with an adapter; dtype: of merged weights and activations."""
    forward_sharding = forward_sharding_of(cfg, mesh, kind)
    constrain = constrain_adapter(cfg, adapter, mesh)

    @jax.default_matmul_precision(matmul_precision(dtype))
    def logp(phi: Tree, seqs: Sequences, temperature):
        head_VD = layers.head_weights(cfg, phi)
        score = lambda hidden, tokens: logprobs.token_logp(
            hidden, head_VD, tokens, temperature, logp_chunk, mesh
        )
        if seqs.packing is not None:
            rows = packing.concatenate(seqs)
            hidden_RWD = layers.forward_packed(cfg, phi, rows, remat, forward_sharding)
            # with few samples per row the completions have fewer positions than the rows
            if seqs.tokens_BT.size < rows.token_RW.size:
                return score(rows.unpack(hidden_RWD), seqs.tokens_BT)
            return tuple(map(rows.unpack, score(hidden_RWD, rows.target_RW)))
        shared = repeat_prompts(seqs, mesh)
        return score(layers.forward(cfg, phi, shared, remat, forward_sharding), seqs.tokens_BT)

    return Policy(
        logp=logp,
        merge=lambda theta, w: lora.merge(adapter, theta, constrain(w), dtype),
        pull=lambda w, G: constrain(lora.pull(adapter, constrain(w), G)),
        init_w=lambda key: lora.init(cfg, adapter, key),
    )
