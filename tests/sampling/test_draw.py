"""Drawing a token: frequencies, log-probabilities, ties, keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from bridge_jax.sampling import draw


@pytest.mark.parametrize("V, width", [(49152, 192), (151936, 128), (128256, 334), (16, 4), (13, 1)])
def test_blocks_of_the_vocabulary(V, width):
    """They divide it. A prime one makes V blocks of one token, which draws as if there were
    none.
    """
    found = draw.block_width(V)
    assert V % found == 0 and abs(found - V**0.5) <= abs(width - V**0.5)


def test_greedy_takes_the_first_of_equal_logits():
    """At temperature 0 the largest logit wins, and of several equal ones the first."""
    logits = jnp.zeros((2, 12)).at[0, 5].set(1.0).at[0, 10].set(1.0)
    token, _ = draw.draw(
        logits, jax.random.split(jax.random.key(0), 2), jnp.int32(0), jnp.float32(0.0)
    )
    assert token.tolist() == [5, 0]


@pytest.mark.parametrize("form", [draw.draw, draw.draw_plain], ids=["in two steps", "plain"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_follow_the_softmax(form, temperature):
    """20,000 draws from 6 logits: chi-square at a fixed key, and the log-probabilities that go with
    them.
    """
    logits = jnp.array([1.0, 0.0, -1.0, 2.0, 0.5, -3.0])
    keys = draw.row_keys(jax.random.key(1), 0, jnp.arange(20), 1000)
    token, logp = jax.jit(form)(
        jnp.tile(logits, (20000, 1)), keys, jnp.int32(3), jnp.float32(temperature)
    )
    expected = np.asarray(jax.nn.softmax(logits / temperature), np.float64)
    counts = np.bincount(token, minlength=6)
    assert scipy.stats.chisquare(counts, 20000 * expected / expected.sum()).pvalue > 0.01
    np.testing.assert_allclose(logp, np.log(expected)[np.asarray(token)], atol=1e-5)


def test_tokens_draw_independently():
    """The same row at t and t + 1 draws with different noise: pairs are as frequent as chance has
    them.
    """
    keys = draw.row_keys(jax.random.key(2), 0, jnp.arange(4), 1000)
    drawn = [
        jax.jit(draw.draw)(jnp.zeros((4000, 4)), keys, jnp.int32(t), jnp.float32(1.0))[0]
        for t in (0, 1)
    ]
    counts = np.bincount(4 * np.asarray(drawn[0]) + np.asarray(drawn[1]), minlength=16)
    assert scipy.stats.chisquare(counts).pvalue > 0.01


@pytest.mark.slow
def test_both_forms_agree_where_nothing_is_drawn():
    """Temperature 0, logits without ties: the same token, and log-probabilities at temperature
    1.
    """
    logits = jax.random.normal(jax.random.key(3), (20, 12))
    given = logits, jax.random.split(jax.random.key(0), 20), jnp.int32(0), jnp.float32(0.0)
    (token, logp), (plain_token, plain_logp) = draw.draw(*given), draw.draw_plain(*given)
    np.testing.assert_array_equal(token, plain_token)
    np.testing.assert_allclose(logp, plain_logp, atol=1e-6)
