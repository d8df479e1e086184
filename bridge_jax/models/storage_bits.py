"""bfloat16 weights and caches stored as uint16 bits, for loops on a CPU.

XLA's CPU compiler slices and updates bfloat16 through fp32, and converts a whole stack of layers,
or a whole cache, for every slice of it. It moves uint16 without a conversion (docs/speed.md). The
plain form is the identity: `to_storage(x, x.dtype)` and `from_storage` then return x. Not
differentiable.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bridge_jax.types import Tree

# The dtype of bfloat16 stored as bits; no other weight or cache has it.
BITS = jnp.uint16


def storage_dtype(dtype, as_bits: bool):
    """BITS for bfloat16 if as_bits, otherwise the dtype."""
    return BITS if as_bits and dtype == jnp.bfloat16 else dtype


def to_storage(x: jax.Array, dtype) -> jax.Array:
    """x in this dtype; BITS stands for bfloat16."""
    if dtype == BITS:
        return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), BITS)
    return x.astype(dtype)


def from_storage(tree: Tree) -> Tree:
    """Arrays of bits converted back to bfloat16; other arrays unchanged."""
    return jax.tree.map(
        lambda x: jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == BITS else x, tree
    )
