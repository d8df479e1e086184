"""A part of a step's groups, which rotates over the steps (method.bridge.shadow.share).

Part k of n has the groups k, k + n, ... of the batch, whatever the number of micro-batches and
devices; on a mesh each device takes the same share of its own groups. The batch is put in an order
in which the part due fills the first micro-batches. So a pass over the part is a pass over the
first rows, and a pass over all rows has seen exactly the part after 1/n of its micro-batches.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bridge_jax.config import checks
from bridge_jax.objectives.microbatch import micro_count
from bridge_jax.types import Sequences, Tree


class Parts(NamedTuple):
    """P groups, of which every `strides`-th is in one micro-batch, in n parts."""

    P: int
    strides: int
    n: int
    microbatches: int  # of one part

    def _split(self, x: jax.Array) -> jax.Array:
        """[B, ...] or [P, ...] as [groups of a micro-batch, strides / n, n, rows a group, ...]."""
        P, strides, n, _ = self
        return x.reshape(P // strides, strides // n, n, x.shape[0] // P, *x.shape[1:])

    def first(self, tree: Tree) -> Tree:
        """The rows of the part that comes first; scalars stay."""
        P, strides, n, _ = self

        def rows(x):
            by_part = x.reshape(P // strides, n, -1, *x.shape[1:])
            return by_part[:, 0].reshape(x.shape[0] // n, *x.shape[1:])

        return jax.tree.map(lambda x: rows(x) if x.ndim else x, tree)

    def ordered(self, tree: Tree, k: jax.Array) -> Tree:
        """The tree with its groups in an order in which part k comes first; scalars stay."""

        def rows(x):
            by_part = jnp.roll(self._split(x), -k, axis=2).swapaxes(1, 2)
            return by_part.reshape(x.shape)

        return jax.tree.map(lambda x: rows(x) if x.ndim else x, tree)


def parts_of(seqs: Sequences, microbatch_rows: int, n: int, key: str) -> Parts:
    """The division of these rows into n parts of whole groups and whole micro-batches.

    key: the setting that gives n. ValueError where there are none.
    """
    P, B = seqs.prompt_len_P.shape[0], seqs.length_B.shape[0]
    count = micro_count(B, microbatch_rows)
    checks.check_parts(key, n, P, count, packed=seqs.packing is not None)
    return Parts(P, min(count, P), n, count // n)
