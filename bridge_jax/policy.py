"""The model as the methods see it: four pure functions of merged weights, laid out on the mesh that trains.

On several devices a pass is FSDP spelled out: rows stay where they are, a layer's weights are gathered over fsdp once when a pass
comes to that layer (again in the backward pass where remat is on) and its gradient is reduced once. Left to itself the compiler
gathers a layer's weights for each of their uses, and the head for each chunk of log-probabilities.
"""
from __future__ import annotations

import jax
from jax.sharding import Mesh

from bridge_jax import logprobs, lora, packing, sharding
from bridge_jax.models import attention, layers, params
from bridge_jax.types import Policy, Sequences, Tree


def placing(cfg: layers.Config, mesh: Mesh | None, kind: str) -> layers.Placing:
    """How a pass keeps rows and weights on the mesh, and its attention (a key of attention.KINDS)."""
    if mesh is None:
        return layers.Placing()
    attend = attention.choose(kind, mesh)
    if mesh.size == 1:
        return layers.Placing(attend=attend)
    axes = {name: names[1:] for name, names in params.logical_axes(cfg)["layers"].items()}  # of one layer
    lay = jax.lax.with_sharding_constraint
    gathered = lambda name, x: lay(x, sharding.of_axes(mesh, axes[name], x.shape, whole=("fsdp",)))
    return layers.Placing(rows=lambda tree: lay(tree, sharding.of_rows(mesh, tree)),
                          weights=lambda layer: {name: gathered(name, x) for name, x in layer.items()}, attend=attend)


def make(cfg: layers.Config, adapter: lora.Lora, dtype, remat: str = "full", logp_chunk: int = 512, kind: str = "auto",
         mesh: Mesh | None = None) -> Policy:
    """Log-probabilities, merge, pull and the adapter's start; dtype: of merged weights and activations."""
    on = placing(cfg, mesh, kind)

    def logp(phi: Tree, seqs: Sequences, temperature):
        head_VD = layers.head_weights(cfg, phi)
        score = lambda hidden, tokens: logprobs.token_logp(hidden, head_VD, tokens, temperature, logp_chunk, mesh)
        if seqs.packing is not None:
            rows = packing.inline(seqs)
            return tuple(map(rows.back, score(layers.forward_packed(cfg, phi, rows, remat, on), rows.target_RW)))
        return score(layers.forward(cfg, phi, seqs, remat, on), seqs.tokens_BT)

    return Policy(logp=logp, merge=lambda theta, w: lora.merge(adapter, theta, w, dtype),
                  pull=lambda w, G: lora.pull(adapter, w, G), init_w=lambda key: lora.init(cfg, adapter, key))
