"""How decoding is cut up: segments of the cache and compaction of rows."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from bridge_jax.distributed import sharding
from bridge_jax.models.attention import decode_over_mesh
from bridge_jax.models.precision import BITS, store
from bridge_jax.types import Tree

LANES = 128  # of a tile of an accelerator's memory: a cut elsewhere reads the whole tile
SHORT = 32  # for one CPU device, whose memory has no such tiles


def cuts_on(mesh: jax.sharding.Mesh, T: int, halvings: int = -1, stretches: int = -1) -> dict:
    """What `sample` is told of a mesh to save work on T tokens: how often to halve the rows, and the loops; -1: where it pays.

    On one CPU device matmuls with the weights take the time, which falls with the rows: they are halved twice, and each time one
    loop chooses among all stretches, since loops take long to compile. Elsewhere a step takes about as long for half of the rows,
    bound by reading weights and cache: they are not halved, and each stretch has a loop of its own. There are four stretches.
    """
    alone = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    ends = ends_of(T, stretches if stretches > 0 else 4, SHORT if alone else LANES)
    return dict(
        halvings=halvings if halvings >= 0 else 2 * alone,
        loops=(ends,) if alone else tuple((end,) for end in ends),
    )


def laid_on(mesh: jax.sharding.Mesh) -> dict:
    """What `sample` is told of a mesh: where caches lie, how attention to them is spread, and how bfloat16 is kept."""
    return dict(
        lay_cache=functools.partial(sharding.lay_cache, mesh),
        spread=decode_over_mesh(mesh),
        bits=mesh.devices.flat[0].platform == "cpu",
    )


def ends_of(T: int, stretches: int, unit: int) -> tuple[int, ...]:
    """Where the stretches of T tokens end: about evenly, at multiples of the unit, and at T."""
    return tuple(
        sorted({min(T, -(-T * i // (stretches * unit)) * unit) for i in range(1, stretches + 1)})
    )


def kept(phi: Tree, cache_dtype, bits: bool) -> tuple[Tree, Any]:
    """Weights, and the dtype of caches, as the sampler's loops keep them."""
    of = lambda dtype: BITS if bits and dtype == jnp.bfloat16 else dtype
    return jax.tree.map(lambda x: store(x, of(x.dtype)), phi), of(cache_dtype)
