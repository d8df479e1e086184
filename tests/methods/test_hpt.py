"""HPT's first update equals the one worked out by hand; the gate picks the demo or the samples."""

from __future__ import annotations

from tests import errors
from tests.methods.by_hand import A, G_of, batch, close, e


def test_hpt():
    """Prompt 0 is solved once: GRPO with A = +-1/2; prompt 1 never: its demo 4. Each half counts
    by its share of prompts.
    """
    two = batch((0, 1), ((1,), (2,), (3,), (5,)), (1, 0, 0, 0), (0, 1), ((3,), (4,)))
    close(G_of("hpt", two), 0.5 * (e[1] - e[2]) / 4, 0.5 * e[4])
    close(G_of("hpt", two, advantage="group"), 0.5 * A * (e[1] - e[2]) / 2, 0.5 * e[4])
    solved = batch((0, 1), ((1,), (2,), (3,), (5,)), (1, 0, 1, 0), (0, 1), ((3,), (4,)))
    close(G_of("hpt", solved), (e[1] - e[2]) / 8, (e[3] - e[5]) / 8)


def test_hpts_gate():
    """One of prompt 0's three samples is right, two of prompt 1's: with a gate of 1 prompt 0 goes
    to its demo, its samples count no more; with one of 3 RL would never take place.
    """
    tokens = ((1,), (2,), (4,), (3,), (3,), (5,))
    given = batch((0, 1), tokens, (1, 0, 0, 1, 1, 0), (0, 1), ((3,), (4,)))
    right = (2 * e[3] - 2 * e[5]) / 9  # A = 1/3, 1/3 and -2/3 over three tokens
    close(G_of("hpt", given, gate=1), 0.5 * e[3], 0.5 * right)
    close(G_of("hpt", given), (2 * e[1] - e[2] - e[4]) / 18, right / 2)
    with errors.raises(ValueError, "method.hpt.gate=3", "batch.samples_per_prompt=3"):
        G_of("hpt", given, gate=3)
