"""DAPO's price on length and first update are those by hand; equal groups are replaced."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.methods import dapo
from bridge_jax.training import build
from bridge_jax.types import Rollouts, Sequences
from configs import ladder
from tests import toys
from tests.methods.by_hand import A, G_of, batch, e


def test_penalty_by_hand():
    """T = 10 and a buffer of .4: free up to 6 tokens, a quarter of the price at 7, all of it at
    10.
    """
    length_B = jnp.array([1, 6, 7, 10])
    seqs = Sequences(jnp.ones((1, 1), int), jnp.ones(1, int), jnp.ones((4, 10), int), length_B)
    rollouts = Rollouts(seqs, jnp.zeros((4, 10)), jnp.array([1.0, 0, 1, 1]), jnp.float32(1))
    np.testing.assert_allclose(dapo.penalised(rollouts, 0.4, 1.0), [1, 0, 0.75, 0], atol=1e-6)
    np.testing.assert_allclose(dapo.penalised(rollouts, 0.4, 0.5), [1, 0, 0.875, 0.5], atol=1e-6)
    np.testing.assert_array_equal(dapo.penalised(rollouts, 0.0, 0.5), rollouts.reward_B)


def test_a_right_answer_is_worth_more_than_a_wrong_one_at_any_length():
    """By the defaults: of 1 to 40 tokens, right and wrong, the least that a right one is paid is
    above the most of a wrong one, and the price is half of what lies between right and wrong, as
    with the source's rewards of +1 and -1.
    """
    cfg, T = dapo.Config(), 40
    length_B = jnp.tile(jnp.arange(1, T + 1), 2)
    seqs = Sequences(jnp.ones((1, 1), int), jnp.ones(1, int), jnp.ones((2 * T, T), int), length_B)
    right_B = jnp.repeat(jnp.array([1.0, 0.0]), T)
    rollouts = Rollouts(seqs, jnp.zeros((2 * T, T)), right_B, jnp.float32(1))
    paid = np.asarray(dapo.penalised(rollouts, cfg.overlong_buffer, cfg.overlong_penalty))
    assert paid[:T].min() == 0.5 and paid[T:].max() == 0 and paid[T:].min() == -0.5
    assert (paid[:T][: int(0.8 * T)] == 1).all()


def test_first_update_by_hand():
    """Without a penalty it is GRPO's: A / 2 of (e1 - e2); penalised, a right and a wrong answer of
    equal length, too.
    """
    for buffer in (0.0, 0.2):
        G = G_of("dapo", overlong_buffer=buffer)
        np.testing.assert_allclose(G[0], A * (e[1] - e[2]) / 2, rtol=3e-3, atol=2e-4)
        np.testing.assert_allclose(G[1:], 0, atol=2e-4)
    assert np.abs(G_of("dapo", batch(reward=(1, 1)))).max() < 1e-4


def test_the_penalty_is_in_the_advantage():
    """Both right; T = 5 and a buffer of .4 take .5 off the sample of 5 tokens, none off that of 1:
    -A and A over 6 tokens.
    """
    G = G_of("dapo", batch(tokens=((1,) * 5, (2,)), reward=(1, 1)), overlong_buffer=0.4)
    np.testing.assert_allclose(
        G[:2], A * np.array([e[2] - e[1], -4 * e[1]]) / 6, rtol=3e-3, atol=2e-4
    )
    np.testing.assert_allclose(G[2:], 0, atol=2e-4)
    # beside a wrong answer of one token the size of the price shows: paid 1/2, 1 and 0
    three = batch(tokens=((1,) * 5, (2,), (3,)), reward=(1, 1, 0))
    G = G_of("dapo", three, overlong_buffer=0.4)
    np.testing.assert_allclose(G[0], (e[2] - e[3]) / 7, rtol=3e-3, atol=2e-4)
    np.testing.assert_allclose(G[1:], 0, atol=2e-4)


def test_refused():
    """The settings of overlong samples are refused outside their range."""
    for given in ("overlong_buffer=1.5", "overlong_penalty=-0.5"):
        key, _, value = given.partition("=")
        with pytest.raises(ValueError, match=f"method.dapo.{given}"):
            dapo.make(dapo.Config(**{key: float(value)}), toys.bigram(), toys.recipes())


@pytest.mark.parametrize("buffer, share", [(0.07, 0.0), (0.2, 0.645)])
def test_the_study_punishes_no_worked_answer_for_its_length(buffer, share, caplog):
    """Worked solutions of the ladder are right answers; a buffer that reaches into them is warned
    about.
    """
    config = ladder.get_config("dapo")
    assert config.method.dapo.overlong_buffer == 0.07
    config.method.dapo.overlong_buffer = buffer
    setup, data = build.build(config, jax.devices()[:1])
    T = setup.settings.rollout.max_new
    solutions = [problem.solution for problem in data.task.demos]
    lengths = np.array([len(data.tokenizer.encode(text)) + 1 for text in solutions])
    seqs = Sequences(
        np.zeros((len(lengths), 1), np.int32),
        np.ones(len(lengths), np.int32),
        np.zeros((len(lengths), T), np.int32),
        lengths,
    )
    right = Rollouts(seqs, np.zeros((len(lengths), T)), np.ones(len(lengths), np.float32), 1.0)
    punished = dapo.penalised(right, buffer, 0.5) < 1
    assert float(np.mean(punished)) == pytest.approx(share, abs=0.03)
    assert ("method.dapo.overlong_buffer=0.2 takes reward off" in caplog.text) == bool(share)
