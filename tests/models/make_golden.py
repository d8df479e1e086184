"""Writes golden_logits.npz: what transformers computes for the models of tiny.CASES on tiny.rows().

    python -m tests.models.make_golden        # from the repository's root; needs torch

Regenerate it for a new family, or where transformers itself changed its mind; say so in the commit.
A family that transformers does not know is left out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.models import tiny

GOLDEN = Path(__file__).parent / "golden_logits.npz"


def main() -> None:
    """Write the file and print its size and range."""
    golden = {
        name: tiny.torch_logits(tiny.torch_model(hf), tiny.rows())
        for name, hf in tiny.CASES.items()
        if tiny.in_transformers(hf)
    }
    np.savez_compressed(GOLDEN, **golden)
    largest = ", ".join(f"{name} {np.abs(logits).max():.1f}" for name, logits in golden.items())
    print(f"{GOLDEN.name}: {GOLDEN.stat().st_size / 1000:.1f} kB; largest logit: {largest}")


if __name__ == "__main__":
    main()
