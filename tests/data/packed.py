"""A batch whose samples and demonstrations are packed."""

from __future__ import annotations

import numpy as np

from bridge_jax.data import packing
from bridge_jax.types import Batch


def packed(batch: Batch, places: int) -> Batch:
    """The batch with all of its parts packed."""

    def part(seqs):
        width = seqs.prompt_PS.shape[1] + seqs.tokens_BT.shape[1]
        return seqs.replace(packing=packing.plan(np.asarray(packing.lengths(seqs)), width, places))

    return Batch(
        part(batch.demos) if batch.demos else None,
        {
            policy: samples.replace(seqs=part(samples.seqs))
            for policy, samples in batch.rollouts.items()
        },
    )
