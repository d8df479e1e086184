"""Log-probabilities and entropies, and their gradients, against the full softmax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.models import logprobs
from tests.models.scored import B, T, example, full


@pytest.mark.parametrize("chunk_tokens", [1, 6, 9, 21, 1024])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("of_logp, of_entropy", [(1.0, 0.0), (1.0, -0.7), (0.0, 1.0)])
def test_equals_the_full_softmax(chunk_tokens, temperature, of_logp, of_entropy):
    """Values, entropies and both gradients, of either and of both; 11 entries in blocks of 1, 4, 5
    (the last ones overlap) and all.
    """
    hidden, head, tokens, weights = example()

    def scored(function, *settings):
        def J(hidden, head):
            logp, entropy = function(hidden, head, tokens, temperature, *settings)
            J = of_logp * jnp.sum(weights * logp) if of_logp else 0.0
            J += of_entropy * jnp.sum(weights[::-1] * entropy) if of_entropy else 0.0
            return J, (logp, entropy)

        (_, outputs), gradients = jax.value_and_grad(J, argnums=(0, 1), has_aux=True)(hidden, head)
        return outputs, gradients

    ours, expected = scored(logprobs.token_logp, chunk_tokens), scored(full)
    assert ours[0][0].shape == ours[0][1].shape == (B, T)
    # the entropy is a difference of numbers as large as the logits, which the temperature divides
    atol = 1e-5 / temperature if of_entropy else 1e-5
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)


def test_bf16_hidden_states_give_fp32_logits():
    """Products of bf16 inputs are summed in fp32: equal to an fp32 product of the rounded inputs,
    not a rounded one.
    """
    hidden, head, tokens, _ = example(jnp.bfloat16)
    logp, entropy = logprobs.token_logp(hidden, head, tokens)
    expected = full(hidden.astype(jnp.float32), head.astype(jnp.float32), tokens, 1.0)
    assert logp.dtype == entropy.dtype == jnp.float32
    np.testing.assert_allclose((logp, entropy), expected, atol=1e-5)
