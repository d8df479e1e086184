"""Sharding of a forward pass over a mesh: explicit FSDP.

Rows stay on their device. A layer's weights are gathered over the mesh axis fsdp once per pass
through that layer (again in the backward pass where remat is on), and their gradient is reduced
once. Without these constraints the compiler gathers the weights for each of their uses. The plain
form is `ForwardSharding()` for one device, which changes nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding

from bridge_jax.distributed import sharding
from bridge_jax.models.attention import causal
from bridge_jax.types import Tree


def unchanged(tree: Tree) -> Tree:
    """The tree itself, for one device."""
    return tree


class ForwardSharding(NamedTuple):
    """Sharding constraints on activations and weights, and the form of attention."""

    rows: Callable[[Tree], Tree] = unchanged  # activations -> activations, rows over the devices
    weights: Callable[[Tree], Tree] = unchanged  # a layer's weights -> weights gathered over fsdp
    attend: Callable = causal  # any form of attention.causal


def fsdp(mesh: Mesh, layer_axes: dict[str, tuple[str, ...]], attend: Callable) -> ForwardSharding:
    """The ForwardSharding of a mesh of several devices.

    layer_axes: name of a weight -> its logical axes in one layer.
    """

    def rows(tree: Tree) -> Tree:
        return jax.lax.with_sharding_constraint(tree, sharding.of_rows(mesh, tree))

    def gathered(name: str, x: jax.Array) -> jax.Array:
        over_fsdp = sharding.of_axes(mesh, layer_axes[name], x.shape)
        whole = sharding.of_axes(mesh, layer_axes[name], x.shape, ("fsdp",))
        return gather_weight(whole, over_fsdp, x)

    def weights(layer: Tree) -> Tree:
        return {name: gathered(name, x) for name, x in layer.items()}

    return ForwardSharding(rows, weights, attend)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def gather_weight(whole: NamedSharding, part: NamedSharding, x: jax.Array) -> jax.Array:
    """x with the sharding `whole`; its gradient is reduced into the sharding `part`."""
    return jax.lax.with_sharding_constraint(x, whole)


gather_weight.defvjp(
    lambda whole, part, x: (gather_weight(whole, part, x), None),
    lambda whole, part, _, g: (jax.lax.with_sharding_constraint(g, part),),
)
