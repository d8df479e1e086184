"""Forward-backward passes in a given order.

XLA may interleave independent passes and then holds the activations of both in memory. A pass with
the argument `after` starts only when that scalar is known. It is skipped where the scalar is not
finite, since the whole step is then skipped.

The order is a memory plan, not mathematics: without `after` and `wait_for` the results are the
same, and the memory peak is higher.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from bridge_jax.objectives import microbatch
from bridge_jax.objectives.metrics import inner_product
from bridge_jax.types import Sequences, TrainState, Tree


class Pass(NamedTuple):
    """The results of one forward-backward pass over a batch of rows."""

    G: Tree  # gradient in phi, fp32
    J: jax.Array  # value of the objective
    aux: dict[str, jax.Array]  # outputs per token [B,T], such as logp_BT and entropy_BT

    @property
    def ordering_token(self) -> jax.Array:
        """A scalar that depends on all of G: its squared norm, which the metrics need anyway."""
        return inner_product(self.G, self.G)


class PassAndKept(NamedTuple):
    """A Pass, and what was kept of its gradient on its way (Keep)."""

    G: Tree
    J: jax.Array
    aux: dict[str, jax.Array]
    kept: Tree

    ordering_token = Pass.ordering_token


class Keep(NamedTuple):
    """What to keep of the gradient after the first micro-batches of a pass.

    It is read from the accumulator on its way, so that no second gradient is held in memory.
    """

    microbatches: int
    read: Callable  # gradient of the first micro-batches -> a small tree

    def begin(self, zeros: Tree) -> tuple[jax.Array, Tree]:
        """(number of micro-batches seen, zeros of what is kept)."""
        shapes = jax.eval_shape(self.read, zeros)
        return jnp.int32(0), jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def after(self, seen: jax.Array, kept: Tree, G: Tree) -> tuple[jax.Array, Tree]:
        """The same after one more micro-batch, with the accumulated gradient G."""
        due = seen + 1 == self.microbatches
        return seen + 1, jax.lax.cond(due, self.read, lambda G: kept, G)


def gradient(
    J,
    phi: Tree,
    seqs: Sequences,
    rows: Tree | None = None,
    microbatch_rows: int = 0,
    after: jax.Array | None = None,
    due: jax.Array | None = None,
    keep: Keep | None = None,
) -> Pass | PassAndKept:
    """The gradient of J in phi (fp32), J and its outputs per token, accumulated over micro-batches.

    J(phi, seqs, rows) -> (scalar, aux [B, ...]); rows: arrays [B, ...] that J reads; None: {}. The
    scalars of the micro-batches add up to that of the batch, so J divides by a count of the whole
    batch. microbatch_rows: rows computed at once; 0, or more than there are: all. after: a scalar
    that must be known before the pass begins. Where it is not finite, G and aux are zeros and J is
    NaN. due: whether the pass takes place (with `after`); otherwise G, J and aux are zeros. keep:
    what to keep of the gradient of the first micro-batches; with it the result is a PassAndKept.
    """
    rows = {} if rows is None else rows

    def accumulate(carry, seqs, rows):
        G, total, *kept = carry
        (value, aux), g = jax.value_and_grad(J, has_aux=True)(phi, seqs, rows)
        G = jax.tree.map(lambda a, b: a + b.astype(a.dtype), G, g)
        kept = keep.after(*kept, G) if keep else ()
        return (G, total + value, *kept), aux

    def compute():
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), phi)
        kept = keep.begin(zeros) if keep else ()
        (G, value, *kept), aux = microbatch.over_micro_batches(
            accumulate, (zeros, jnp.float32(0), *kept), seqs, rows, microbatch_rows
        )
        return G, value, aux, kept[1] if keep else None

    G, value, aux, kept = compute() if after is None else skip_if_nonfinite(after, compute, due)
    found = Pass(G, value, jax.lax.stop_gradient(aux))
    return PassAndKept(*found, kept) if keep else found


def skip_if_nonfinite(token: jax.Array, compute, due: jax.Array | None = None):
    """compute() -> (G, J, aux, kept) where the scalar is finite, otherwise zeros and a J of NaN.

    due: whether it is computed at all; None: it is. If not, J is 0 where the scalar is finite.

    A branch rather than a mere ordering: the memory of the pass then belongs to the branch, and is
    not allocated from the beginning of the step.
    """
    # traced once for both branches
    traced, shapes = jax.make_jaxpr(compute, return_shape=True)()
    run = lambda: jax.tree.unflatten(jax.tree.structure(shapes), jaxpr_as_fun(traced)())

    def skip():
        G, _, aux, kept = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        J = jnp.nan if due is None else jnp.where(jnp.isfinite(token), 0.0, jnp.nan)
        return G, jnp.float32(J), aux, kept

    computes = jnp.isfinite(token) if due is None else jnp.isfinite(token) & due
    return jax.lax.cond(computes, run, skip)


def wait_for(token: jax.Array, tree: Tree) -> Tree:
    """The tree unchanged, but every use of it waits for the scalar `token`.

    Adds 0 to every leaf, or 1 where the token is infinite. The compiler cannot know that this is 0,
    while an optimization_barrier is removed before the schedule is made. An update with a gradient
    that is not finite is skipped anyway.
    """
    zero = jnp.isposinf(token).astype(jnp.int32)
    return jax.tree.map(lambda x: x + zero.astype(x.dtype), tree)


def hold(state: TrainState, needed: Tree) -> tuple[TrainState, jax.Array]:
    """(state, token): the scalar is known once theta is written and `needed` is computed.

    The parameters of the returned state wait for both, so that the inputs of `needed` can be freed.
    """
    leaf = jax.tree.leaves(state.params.theta)[0]
    token = leaf[(0,) * leaf.ndim] + inner_product(needed, needed)
    return state.replace(params=jax.lax.optimization_barrier((state.params, token))[0]), token
