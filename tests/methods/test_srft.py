"""SRFT's first update equals the one worked out by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from tests import toys
from tests.methods.by_hand import P_TOKEN, UNIFORM, G_of, close, e


def test_srft():
    """H = log 6 on both sides: 0.5 / 6 and A p on the demo, A = (1/3) / sqrt(1/3); 0.1 * 6 on the
    right sample, -1 on the wrong.
    """
    A = (1 / 3) / np.sqrt(1 / 3)
    close(G_of("srft"), 0.5 * P_TOKEN * e[3] + A * P_TOKEN * e[3] + (0.6 * e[1] - e[2]) / 2)


def test_srft_entropy_is_a_weight():
    """Where H has a gradient, none flows through it: probabilities 1/2 and five of 1/10, so e^H =
    2^(1/2) 10^(1/2).
    """
    p = np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    sharp = {"table": UNIFORM["table"].at[0].set(jnp.log(p))}
    score, A, e_H = np.eye(toys.V) - p, (1 / 3) / np.sqrt(1 / 3), np.sqrt(20)
    G = (0.5 / e_H + A * 0.1) * score[3] + (0.1 * e_H * score[1] - score[2]) / 2
    np.testing.assert_allclose(
        G_of("srft", theta=sharp)[0], G, rtol=3e-3, atol=3e-3
    )  # a step of a table that is not 0 rounds
