"""A conditional update in place: both optimizers round alike, and nothing is held twice.

`update_if_finite` is a loop of at most one iteration where `select_if_finite`, its plain form,
computes the update and selects. There are two reasons. The body of a loop is a fusion boundary, so
that theta and theta_hat, while bit-equal, have the same rounding in their optimizers. And a loop
changes its operand in place, while the results of a branch or a selection need memory in addition
to their operands.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bridge_jax.types import Tree


def update_if_finite(finite: jax.Array, update: Callable[[Tree], Tree], stored: Tree) -> Tree:
    """update(stored) where the scalar `finite` is true, otherwise `stored`; in place."""
    return jax.lax.fori_loop(0, finite.astype(jnp.int32), lambda _, tree: update(tree), stored)


def select_if_finite(finite: jax.Array, update: Callable[[Tree], Tree], stored: Tree) -> Tree:
    """The plain form of `update_if_finite`, with both results in memory."""
    select = lambda new, old: jnp.where(finite, new, old)
    return jax.tree.map(select, update(stored), stored)
