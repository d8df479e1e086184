"""The decode plan: all speed-ups of sampling, none of which changes a token.

`DecodePlan()` is the plain plan: one loop over all rows, which reads the whole cache, on one
device. It is the oracle of all other plans in the tests. `choose` selects the fastest plan for a
device; docs/speed.md has the measurements.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bridge_jax.distributed import sharding
from bridge_jax.models import attention
from bridge_jax.models import storage_bits as storage
from bridge_jax.models.attention import cache as decode_attention
from bridge_jax.models.attention import slots as slot_attention
from bridge_jax.models.attention.over_mesh import cache_over_mesh
from bridge_jax.types import Tree

# Segments end at multiples of it, since an accelerator reads whole tiles of memory.
TILE = 128
# The same on a single CPU device, whose memory has no such tiles.
CPU_TILE = 32
SEGMENTS = 4
# On several devices. A call ends up to 7 tokens late, of some thousand.
CHECK_EVERY = 8
CPU_COMPACTIONS = 2


@dataclasses.dataclass(frozen=True)
class DecodePlan:
    """Shapes, order and placement of the decode loop; static under jit."""

    # ---- the buffers: 2 L B K T H entries for the samples, 2 L P K S H for the prompts
    max_new: int = 64  # T, maximum of new tokens per row
    cache_dtype: Any = jnp.float32

    # ---- less work
    # For each of the successive loops the ends of its cache segments, all ascending to T. A loop
    # with several segments chooses among them at every step. (): one loop, one segment.
    loops: tuple[tuple[int, ...], ...] = ()
    # How often the unfinished rows are copied to a batch of half the size. All loops are compiled
    # for every size.
    compactions: int = 0

    # Tokens between two tests whether rows are unfinished: on several devices a test is a sum over
    # all of them. The tokens that finished rows get in between are dropped.
    check_every: int = 1

    # Where every row has a position of its own (slots.py): attention in a loop over the rows, each
    # of which reads as much of its cache as it has filled.
    row_by_row: bool = False

    # ---- storage and placement
    as_bits: bool = False  # bfloat16 weights and caches are stored as bits (storage_bits.py)
    mesh: jax.sharding.Mesh | None = None  # mesh of the caches and of attention to them

    prefill_attention: Callable = attention.causal  # a form of attention.causal

    @property
    def storage_dtype(self):
        """The dtype in which the cache is stored."""
        return storage.storage_dtype(self.cache_dtype, self.as_bits)

    def to_storage(self, phi: Tree) -> Tree:
        """The weights in the form that the loops read."""
        stored = lambda x: storage.to_storage(x, storage.storage_dtype(x.dtype, self.as_bits))
        return jax.tree.map(stored, phi)

    def place_cache(self, cache: Tree) -> Tree:
        """A cache from `prefill` or `empty_cache` with its sharding on the mesh."""
        return cache if self.mesh is None else sharding.constrain_cache(self.mesh, cache)

    def cache_attention(self, segment_ends: tuple[int, ...]) -> Callable:
        """Attention to the cache in a loop with these segments, for layers.decode."""
        attend = functools.partial(decode_attention.attend, ends=segment_ends)
        return attend if self.mesh is None else cache_over_mesh(attend, self.mesh)

    def slot_attention(self) -> Callable:
        """Attention to the cache where every row has a position of its own, for layers.decode."""
        form = slot_attention.row_by_row if self.row_by_row else slot_attention.batched
        ends = tuple(sorted({end for loop in self.loops for end in loop}))
        attend = functools.partial(form, ends=ends)
        return attend if self.mesh is None else cache_over_mesh(attend, self.mesh)


def segment_ends(T: int, segments: int, tile: int) -> tuple[int, ...]:
    """Ends of the segments of T tokens: of about equal size, at multiples of the tile, and at T."""
    even = (-(-T * i // (segments * tile)) * tile for i in range(1, segments + 1))
    return tuple(sorted({min(T, end) for end in even}))


def choose(
    mesh: jax.sharding.Mesh,
    max_new: int,
    cache_dtype: Any = jnp.float32,
    compactions: int = -1,
    segments: int = -1,
    prefill_attention: Callable = attention.causal,
) -> DecodePlan:
    """The fastest plan on this mesh; compactions and segments: as given, or -1 for the fastest.

    On a single CPU device the time is that of matmuls with the weights, in proportion to the rows:
    they are compacted twice. One loop chooses among all segments, since loops take long to compile.
    Slots are read one by one, each as far as it is filled, since what is read counts.
    Elsewhere a step with half the rows takes about as long, since it is bound by reading weights
    and cache: rows are not compacted, and each segment has a loop of its own.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    one_cpu = on_cpu and mesh.size == 1
    ends = segment_ends(
        max_new, segments if segments > 0 else SEGMENTS, CPU_TILE if one_cpu else TILE
    )
    usual_compactions = CPU_COMPACTIONS if one_cpu else 0
    return DecodePlan(
        max_new=max_new,
        cache_dtype=cache_dtype,
        loops=(ends,) if one_cpu else tuple((end,) for end in ends),
        compactions=compactions if compactions >= 0 else usual_compactions,
        check_every=CHECK_EVERY if mesh.size > 1 else 1,
        row_by_row=one_cpu,
        as_bits=on_cpu,
        mesh=mesh,
        prefill_attention=prefill_attention,
    )
