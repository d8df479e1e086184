"""Rotary position embedding."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from bridge_jax.models import rope


def test_rotation_depends_on_distance_alone(build):
    """<rotate(q, i), rotate(k, j)> is a function of i - j, and a rotation keeps lengths."""
    cfg, _ = build("llama")
    rng = np.random.RandomState(0)
    q, k = rng.standard_normal((2, 1, 1, 1, cfg.head_dim)).astype(np.float32)
    turned = lambda x, i: np.asarray(rope.rotate(jnp.asarray(x), *cfg.rotary(jnp.array([[i]]))))[
        0, 0, 0
    ]
    near, far = turned(q, 7) @ turned(k, 3), turned(q, 104) @ turned(k, 100)
    assert abs(near - far) < 1e-4 and abs(near - turned(q, 8) @ turned(k, 3)) > 1e-2
    np.testing.assert_allclose(np.linalg.norm(turned(q, 50)), np.linalg.norm(q), rtol=1e-6)


def test_llama3_slows_the_slow_channels_alone():
    """Fast channels keep their speed, slow ones have an eighth of it, one between them something
    between.
    """
    plain = rope.frequencies(10000.0, 8)
    np.testing.assert_allclose(plain, [1.0, 0.1, 0.01, 0.001])
    found = rope.llama3_frequencies(plain, 8.0, 1.0, 4.0, original=1200)
    assert found[0] == plain[0] and found[3] == plain[3] / 8
    assert plain[2] / 8 < found[2] < plain[2]
