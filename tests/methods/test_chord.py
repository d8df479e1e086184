"""CHORD's first updates equal those worked out by hand, and mu falls as its schedule says."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from tests.methods.by_hand import P_TOKEN, UNIFORM, A, G_of, batch, close, e, made, random_batch


def test_chord():
    """(1 - mu) and mu; phi weighs the demo's token by p (1 - p) = 5/36."""
    close(G_of("chord", mu=0.9), 0.1 * A * (e[1] - e[2]) / 2 + 0.9 * e[3])
    weight = P_TOKEN * (1 - P_TOKEN)
    close(
        G_of("chord", mu=0.1, weighting="phi"),
        0.9 * A * (e[1] - e[2]) / 2 + 0.1 * weight * e[3],
    )


def test_chord_falls_by_a_cosine():
    """mu at steps 0, half and end: 0.9, the middle, 0.05, and there it stays."""
    method = made("chord", mu_schedule__steps=10)
    start, update = method.init(UNIFORM, jax.random.key(0)), jax.jit(method.update)
    seen = [
        float(update(start.replace(step=jnp.int32(step)), batch())[1]["chord/mu"])
        for step in (0, 5, 10, 99)
    ]
    np.testing.assert_allclose(seen, [0.9, 0.475, 0.05, 0.05], rtol=1e-6)


@pytest.mark.parametrize("mu", [0.2, 0.5])
def test_chord_with_a_constant_mu_is_the_hybrid_up_to_scale(mu):
    """CHORD's direction is 1 - mu times that of the hybrid with mu / (1 - mu)."""
    theta = toys.bigram_theta()
    G = G_of("chord", random_batch(), theta, mu=mu, mu_schedule__kind="constant")
    np.testing.assert_allclose(
        G, (1 - mu) * G_of("hybrid", random_batch(), theta, mu=mu / (1 - mu)), rtol=1e-3, atol=2e-3
    )
    assert np.abs(G).max() > 0.04
