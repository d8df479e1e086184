"""The joint method moves its adapter along the mixture."""

from __future__ import annotations

import jax
import numpy as np

from tests import toys
from tests.methods.by_hand import RATE, made, random_batch


def test_joint_moves_the_adapter_along_the_mixture():
    """The pull of what theta ascends, where BRIDGE takes lam dJ_RL(theta_hat) off."""
    method, policy = made("joint", lam=0.5), toys.bigram()
    state = method.init(toys.bigram_theta(), jax.random.key(0))
    w = jax.tree.map(lambda x, n: x + n, state.params.w, toys.noise_like(state.params.w, 1, 3.0))
    state = state.replace(params=state.params.replace(w=w))
    after, _ = jax.jit(method.update)(state, random_batch())
    G = lambda new, old: jax.tree.map(
        lambda a, b: (np.asarray(a, np.float64) - np.asarray(b)) * 1e3 / RATE, new, old
    )
    pulled, found = policy.pull(w, G(after.params.theta, state.params.theta)), G(after.params.w, w)
    for key in w:
        np.testing.assert_allclose(found[key], pulled[key], rtol=5e-3, atol=5e-3)
        assert np.abs(found[key]).max() > 0.05
