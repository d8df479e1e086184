"""The hybrid's first update equals the one worked out by hand."""

from __future__ import annotations

from tests.methods.by_hand import A, G_of, close, e


def test_hybrid():
    """A / 2 of (e1 - e2), and mu times the demo's e3."""
    close(G_of("hybrid", mu=2.0), A * (e[1] - e[2]) / 2 + 2 * e[3])
    close(G_of("hybrid", mu=0.0), A * (e[1] - e[2]) / 2)
    close(G_of("hybrid", mu=2.0, advantage="mean"), (e[1] - e[2]) / 4 + 2 * e[3])
