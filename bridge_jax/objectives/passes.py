"""Forward-backward passes, one after the other.

XLA is free to interleave independent passes, and then holds the activations of both. A pass that
is given `after` starts only when that scalar is known, and is not computed at all where the scalar
is not finite, since the step is lost then.

The order is a memory plan, not mathematics: with every `after` and `wait_for` removed, the results
are the same and the peak of memory is higher.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from bridge_jax.objectives import microbatch
from bridge_jax.objectives.metrics import inner
from bridge_jax.types import Sequences, TrainState, Tree


class Pass(NamedTuple):
    """What one forward-backward pass over a batch of rows gives."""

    G: Tree  # gradient in phi, fp32
    J: jax.Array  # value of the objective
    aux: dict[str, jax.Array]  # outputs by token [B,T], such as logp_BT and entropy_BT

    @property
    def ordering_token(self) -> jax.Array:
        """A scalar that is known once all of G is: its squared norm, which the metrics need anyway."""
        return inner(self.G, self.G)


def gradient(
    J,
    phi: Tree,
    seqs: Sequences,
    rows: Tree,
    microbatch_rows: int = 0,
    after: jax.Array | None = None,
) -> Pass:
    """Gradient of J in phi (fp32), J itself and its outputs by token, summed over micro-batches.

    J(phi, seqs, rows) -> (scalar, aux [B, ...]). The scalars of the micro-batches add up to that of
    the batch, so J divides by a count of the whole batch. microbatch_rows: rows computed at once;
    0, or more than there are, means all. after: a scalar that has to be known before the pass
    begins. Where it is not finite, G and aux are zeros and J is NaN.
    """

    def accumulate(carry, seqs, rows):
        G, total = carry
        (value, aux), g = jax.value_and_grad(J, has_aux=True)(phi, seqs, rows)
        return (jax.tree.map(lambda a, b: a + b.astype(a.dtype), G, g), total + value), aux

    def compute():
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), phi)
        (G, value), aux = microbatch.over_micro_batches(
            accumulate, (zeros, jnp.float32(0)), seqs, rows, microbatch_rows
        )
        return G, value, aux

    G, value, aux = compute() if after is None else skip_if_nonfinite(after, compute)
    return Pass(G, value, jax.lax.stop_gradient(aux))


def skip_if_nonfinite(token: jax.Array, compute):
    """compute() -> (G, J, aux) where the scalar is finite, else zeros and a J of NaN.

    A branch and no mere ordering: the memory that a pass needs is the branch's own, and is not
    allocated from the beginning of the step on.
    """
    # traced once for both branches
    traced, shapes = jax.make_jaxpr(compute, return_shape=True)()
    again = lambda: jax.tree.unflatten(jax.tree.structure(shapes), jaxpr_as_fun(traced)())

    def skip():
        G, _, aux = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return G, jnp.float32(jnp.nan), aux

    return jax.lax.cond(jnp.isfinite(token), again, skip)


def wait_for(token: jax.Array, tree: Tree) -> Tree:
    """The tree as it is, but nothing can be computed with it before the scalar `token` is known.

    1 where the token is infinite, else 0, is added to every leaf: no compiler can foresee that this
    is 0, while an optimization_barrier is gone by the time that a schedule is made. An update whose
    gradient is not finite is skipped anyway.
    """
    zero = jnp.isposinf(token).astype(jnp.int32)
    return jax.tree.map(lambda x: x + zero.astype(x.dtype), tree)


def hold(state: TrainState, needed: Tree) -> tuple[TrainState, jax.Array]:
    """(state, token): the scalar is known once theta is written and `needed` is computed.

    What `needed` was computed from can be freed then: the parameters of the state wait for it.
    """
    leaf = jax.tree.leaves(state.params.theta)[0]
    token = leaf[(0,) * leaf.ndim] + inner(needed, needed)
    return state.replace(params=jax.lax.optimization_barrier((state.params, token))[0]), token
