"""A cold start is SFT, then GRPO with a fresh optimizer."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bridge_jax.types import Batch
from tests import toys
from tests.methods.by_hand import made, run


def test_cold_start_is_sft_then_grpo_with_a_fresh_optimizer():
    """Bit for bit; with a KL term, to the policy that SFT made."""
    for fields in ({}, {"kl_coef": 0.1}):
        method, states = run("cold_start", 4, sft_steps=2, **fields)
        assert [method.batch_spec(step) for step in (0, 1, 2, 9)] == [((), True)] * 2 + [
            (("theta",), False)
        ] * 2
        assert toys.same_bits(states[1].params, run("sft", 2)[1][1].params)
        rl = made("grpo", toys.recipes(0.1, 0.1), **fields)
        state = rl.init(states[1].params.theta, jax.random.key(0)).replace(step=jnp.int32(2))
        for step in (2, 3):
            given = toys.batch(step, vocab=toys.V)
            state, _ = jax.jit(rl.update)(state, Batch(None, {"theta": given.rollouts["theta"]}))
            assert toys.change(states[step].params, state.params) < 1e-6
            assert toys.change(states[step].opt_state, state.opt_state) < 1e-5
    assert toys.same_bits(
        run("cold_start", 2, sft_steps=0)[1][1].params, run("grpo", 2)[1][1].params
    )
