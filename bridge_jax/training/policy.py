"""The model as the methods see it: four pure functions of merged weights, laid out on the mesh that trains.

On several devices a pass is FSDP spelled out: rows stay where they are, a layer's weights are gathered over fsdp once when a pass
comes to that layer (again in the backward pass where remat is on) and its gradient is reduced once; the head likewise, block by
block (bridge_jax.models.logprobs). Left to itself the compiler gathers a layer's weights for each of their uses.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from bridge_jax.data import packing
from bridge_jax.distributed import sharding
from bridge_jax.models import attention, layers, logprobs, lora, params
from bridge_jax.models.precision import exact
from bridge_jax.types import Policy, Sequences, Tree


def placing(cfg: layers.Config, mesh: Mesh | None, kind: str) -> layers.Placing:
    """How a pass keeps rows and weights on the mesh, and its attention (a key of attention.KINDS)."""
    if mesh is None:
        return layers.Placing()
    attend = attention.choose(kind, mesh)
    if mesh.size == 1:
        return layers.Placing(attend=attend)
    axes = {
        name: names[1:] for name, names in params.logical_axes(cfg)["layers"].items()
    }  # of one layer
    lie = lambda name, x, whole=(): sharding.of_axes(mesh, axes[name], x.shape, whole)
    weights = lambda layer: {
        name: gathered(lie(name, x, ("fsdp",)), lie(name, x), x) for name, x in layer.items()
    }
    rows = lambda tree: jax.lax.with_sharding_constraint(tree, sharding.of_rows(mesh, tree))
    return layers.Placing(rows, weights, attend)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def gathered(whole: NamedSharding, part: NamedSharding, x: jax.Array) -> jax.Array:
    """x laid out as `whole`; its gradient as `part`: a device receives the sum of its own part alone."""
    return jax.lax.with_sharding_constraint(x, whole)


gathered.defvjp(
    lambda whole, part, x: (gathered(whole, part, x), None),
    lambda whole, part, kept, g: (jax.lax.with_sharding_constraint(g, part),),
)


def parts_of_group(P: int, M: int, mesh: Mesh | None) -> int:
    """In how many parts the devices share the M rows of each of P prompts: as few as give each device as many parts."""
    devices = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    return next((n for n in sharding.divisors(M) if P * n % devices == 0), 1)


def shared_out(seqs: Sequences, mesh: Mesh | None) -> Sequences:
    """The same rows; where there are fewer prompts than devices to share them, a prompt comes with each part of its rows."""
    P = seqs.prompt_len_P.shape[0]
    times = parts_of_group(P, seqs.length_B.shape[0] // P, mesh)
    again = lambda x: jnp.repeat(x, times, axis=0)
    return (
        seqs
        if times == 1
        else seqs.replace(prompt_PS=again(seqs.prompt_PS), prompt_len_P=again(seqs.prompt_len_P))
    )


def beside(cfg: layers.Config, adapter: lora.Lora, mesh: Mesh | None):
    """The adapter -> the same, each side laid out as that side of its matrix, so that their products take place where the matrix
    is: left to itself the compiler gathers over tensor the gradient of a whole stack of matrices instead."""
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
    """Log-probabilities, merge, pull and the adapter's start; dtype: of merged weights and activations."""
    on, lay = placing(cfg, mesh, kind), beside(cfg, adapter, mesh)

    @jax.default_matmul_precision(exact(dtype))
    def logp(phi: Tree, seqs: Sequences, temperature):
        head_VD = layers.head_weights(cfg, phi)
        score = lambda hidden, tokens: logprobs.token_logp(
            hidden, head_VD, tokens, temperature, logp_chunk, mesh
        )
        if seqs.packing is not None:
            rows = packing.inline(seqs)
            hidden_RWD = layers.forward_packed(cfg, phi, rows, remat, on)
            if (
                seqs.tokens_BT.size < rows.token_RW.size
            ):  # of few samples a row, the completions are scored, not the prompts
                return score(rows.back(hidden_RWD), seqs.tokens_BT)
            return tuple(map(rows.back, score(hidden_RWD, rows.target_RW)))
        return score(layers.forward(cfg, phi, shared_out(seqs, mesh), remat, on), seqs.tokens_BT)

    return Policy(
        logp=logp,
        merge=lambda theta, w: lora.merge(adapter, theta, lay(w), dtype),
        pull=lambda w, G: lay(lora.pull(adapter, lay(w), G)),
        init_w=lambda key: lora.init(cfg, adapter, key),
    )
