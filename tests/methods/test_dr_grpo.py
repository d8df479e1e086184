"""Dr. GRPO's first update equals the one worked out by hand."""

from __future__ import annotations

from tests.methods.by_hand import G_of, batch, close, e


def test_dr_grpo():
    """A = +-1/2 without the deviation; divided by 2 samples x 3 positions, not by the 3 tokens
    there are.
    """
    uneven = batch(tokens=((1, 1, 1), (2,)))
    close(G_of("dr_grpo", uneven), (e[1] - e[2]) / 12, 2 * e[1] / 12)
