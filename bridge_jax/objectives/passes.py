"""Order of passes: what has to wait for what, so that memory stays small."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from bridge_jax.types import Tree


def unless_lost(done: jax.Array, computed):
    """computed() -> (G, J, facts) where the scalar is finite, else zeros and a J of NaN.

    A branch and no mere order: the memory that a pass takes is the branch's own, not allocated from the beginning of the step.
    """
    traced, shapes = jax.make_jaxpr(computed, return_shape=True)()  # once for both branches
    again = lambda: jax.tree.unflatten(jax.tree.structure(shapes), jaxpr_as_fun(traced)())

    def lost():
        G, _, facts = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return G, jnp.float32(jnp.nan), facts

    return jax.lax.cond(jnp.isfinite(done), again, lost)


def after(done: jax.Array, tree: Tree) -> Tree:
    """The tree as it is, but nothing can be computed with it before the scalar `done` is known.

    1 where done is infinite, else 0, is added to every leaf: no compiler can foresee that it is 0, while optimization_barrier is
    gone by the time that a schedule is made. An update whose gradient is not finite is skipped anyway.
    """
    zero = jnp.isposinf(done).astype(jnp.int32)
    return jax.tree.map(lambda x: x + zero.astype(x.dtype), tree)
