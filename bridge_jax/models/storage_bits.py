"""bfloat16 weights and caches, stored as their bits in the loops of a CPU.

XLA's CPU compiler slices and updates bfloat16 by way of fp32, and converts the whole of a stack of
layers, or of a cache, for every slice of it. It moves uint16 as it is (docs/speed.md). The plain
form is no conversion at all: `to_storage(x, x.dtype)` and `from_storage` then return x. Not for
what is differentiated.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bridge_jax.types import Tree

# The dtype of bfloat16 stored as bits; no other weight or cache has it.
BITS = jnp.uint16


def storage_dtype(dtype, as_bits: bool):
    """BITS for bfloat16 where bits are asked for, else the dtype."""
    return BITS if as_bits and dtype == jnp.bfloat16 else dtype


def to_storage(x: jax.Array, dtype) -> jax.Array:
    """x in this dtype; BITS stands for bfloat16."""
    if dtype == BITS:
        return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), BITS)
    return x.astype(dtype)


def from_storage(tree: Tree) -> Tree:
    """Arrays of bits as bfloat16 again; other arrays as they are."""
    return jax.tree.map(
        lambda x: jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == BITS else x, tree
    )
