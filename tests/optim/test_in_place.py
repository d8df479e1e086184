"""A guarded update in place gives what its plain form gives, and leaves a lost step alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from bridge_jax import optim
from bridge_jax.optim import recipes as recipes_module
from bridge_jax.types import Params
from tests import toys


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_the_loop_and_the_selection_give_the_same_state(monkeypatch, value):
    """Parameters and optimizer states, bit for bit, of a step that is made and of one that is
    not.
    """
    recipes, theta = toys.recipes(), toys.bigram_theta()
    params = Params(theta, jax.tree.map(jnp.copy, theta), {"x": jnp.ones(3)})
    state = optim.init_train_state(recipes, params)
    ascent = Params(
        toys.noise_like(theta, 0, 1.0), toys.noise_like(theta, 1, 1.0), {"x": jnp.ones(3)}
    )

    def after():
        # a new function, since jit keeps what it has traced
        step = jax.jit(lambda state: optim.apply_ascent(recipes, state, ascent, (value,))[0])
        return step(step(state))

    in_place = after()
    monkeypatch.setattr(recipes_module, "update_if_finite", optim.select_if_finite)
    plain = after()
    assert toys.same_bits(in_place, plain)
    moved = toys.change(plain.params.theta, theta) > 0
    assert moved == (value == 0.5) and plain.step == 2
