"""Passes over micro-batches sum to the whole gradient; a lost step costs nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bridge_jax import objectives
from tests import toys
from tests.objectives.examples import close, rows


def test_gradient_over_micro_batches():
    """1, 2, 4, 8 micro-batches: the same gradient, value and aux, since the count is global. G is
    fp32 for bf16 weights.
    """
    policy, demos = toys.bigram(), toys.sequences(1, P=8, M=1, vocab=toys.V)
    J, phi = objectives.J_SFT(policy, demos), toys.bigram_theta()
    whole = objectives.gradient(J, phi, demos, {})
    for microbatch_rows in (4, 2, 1):
        assert toys.change(objectives.gradient(J, phi, demos, {}, microbatch_rows), whole) < 1e-6
    assert toys.same_bits(objectives.gradient(J, phi, demos), whole)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), phi)
    assert objectives.gradient(J, half, demos, {})[0]["table"].dtype == jnp.float32


def test_a_pass_of_a_lost_step_is_not_made():
    """Before a finite number the pass is what it is without one; after any other its J is NaN, and
    it costs nothing.
    """
    seqs = rows([0, 1, 2, 0], [[1, 2], [2, 0], [1, 1], [0, 0]], [2, 1, 2, 1])
    J, theta = objectives.J_SFT(toys.bigram(), seqs), toys.bigram_theta()
    of = jax.jit(lambda done: objectives.gradient(J, theta, seqs, {}, 2, done))
    whole = objectives.gradient(J, theta, seqs, {}, 2)
    for mine, theirs in zip(
        jax.tree.leaves(of(jnp.float32(-3.0))), jax.tree.leaves(whole), strict=True
    ):
        close(mine, theirs, atol=1e-7)
    for done in (jnp.inf, -jnp.inf, jnp.nan):
        G, value, aux = of(jnp.float32(done))
        assert jnp.isnan(value) and not any(x.any() for x in jax.tree.leaves((G, aux)))
