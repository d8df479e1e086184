"""Micro-batches keep every row beside its prompt and change no result."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from bridge_jax import objectives
from tests import errors, toys
from tests.objectives.examples import close


def test_micro_split():
    """16 rows of 4 prompts: whole groups per micro-batch, or parts of one; a row keeps its own
    prompt; join undoes it.
    """
    seqs = toys.sequences(0, P=4, M=4)
    for count in (1, 2, 4, 8, 16):
        split, (index,) = objectives.micro_split(seqs, (jnp.arange(16),), count)
        rows = index.shape[1]
        assert index.shape[0] == count and sorted(index.reshape(-1).tolist()) == list(range(16))
        assert split.prompt_len_P.shape == (count, max(1, rows // 4))
        prompts = np.repeat(split.prompt_PS, rows // split.prompt_len_P.shape[1], axis=1)
        np.testing.assert_array_equal(prompts, seqs.prompt_PS[index // 4])
        np.testing.assert_array_equal(split.tokens_BT, seqs.tokens_BT[index])
        np.testing.assert_array_equal(split.length_B, seqs.length_B[index])
        np.testing.assert_array_equal(objectives.micro_join(index, 4), np.arange(16))
    for P, count in ((2, 3), (4, 6), (3, 2)):
        with errors.raises(ValueError, f"{P} prompts", f"{count} micro-batches"):
            objectives.micro_split(toys.sequences(0, P=P, M=4 if P < 4 else 3), {}, count)
    assert [objectives.micro_count(8, rows) for rows in (0, 1, 2, 8, 64)] == [1, 8, 4, 1, 1]


def test_logp_of_is_the_policy_at_its_temperature():
    """Forward only, in micro-batches, equal to one call."""
    rolled = toys.rollouts(3, P=2, M=4, temperature=0.6, vocab=toys.V)
    phi = toys.bigram_theta()
    expected = toys.bigram_logp(phi, rolled.seqs, 0.6)[0]
    for microbatch_rows in (0, 4, 2):
        close(objectives.logp_of(toys.bigram(), phi, rolled, microbatch_rows), expected)
