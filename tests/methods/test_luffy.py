"""LUFFY's first update equals the one worked out by hand."""

from __future__ import annotations

from tests.methods.by_hand import P_TOKEN, G_of, batch, close, e


def test_luffy():
    """Rewards 1, 0 and the demo's 1: A = 1/3, -2/3, 1/3 over three tokens; f'(p) p = gamma p / (p
    + gamma)^2.
    """
    slope = 0.1 * P_TOKEN / (P_TOKEN + 0.1) ** 2
    close(G_of("luffy"), (e[1] / 3 - 2 * e[2] / 3 + slope * e[3] / 3) / 3)


def test_luffy_learns_from_the_expert_where_every_sample_fails():
    """Rewards 0, 0: A = -1/3, -1/3, 2/3, so the demo is still learned; where all are right there
    is nothing to learn.
    """
    slope = 0.1 * P_TOKEN / (P_TOKEN + 0.1) ** 2
    close(G_of("luffy", batch(reward=(0, 0))), (-e[1] - e[2] + 2 * slope * e[3]) / 9)
    close(G_of("luffy", batch(reward=(1, 1))), 0.0)
