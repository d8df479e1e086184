"""Completions of the arithmetic task made by hand, as the sampler returns them."""

from __future__ import annotations

import numpy as np

from bridge_jax.data import tokenizers
from bridge_jax.sampling.sampler import Samples
from bridge_jax.tasks import arithmetic
from bridge_jax.types import Sequences

TOKENIZER = tokenizers.CharTokenizer(arithmetic.ALPHABET)
TASK = arithmetic.make(arithmetic.Config(levels=(1,), train_size=5, demo_size=0, eval_size=5))
T = 8


def samples(texts: list[str], cut: tuple[int, ...] = ()) -> Samples:
    """Completions that end by themselves, except for the rows in `cut`, which the limit ends."""
    tokens, length = np.full((len(texts), T), 7, np.int32), np.zeros(len(texts), np.int32)
    for b, text in enumerate(texts):
        ids = TOKENIZER.encode(text) + ([] if b in cut else [0])
        tokens[b, : len(ids)], length[b] = ids, len(ids)
    stopped = np.asarray([b not in cut for b in range(len(texts))])
    seqs = Sequences(
        np.zeros((len(texts), 4), np.int32), np.full(len(texts), 4, np.int32), tokens, length
    )
    return Samples(seqs, np.zeros((len(texts), T), np.float32), stopped)
