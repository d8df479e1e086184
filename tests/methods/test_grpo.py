"""GRPO: its first update by hand, the clip of later ones, and the KL."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.methods import grpo
from bridge_jax.optim import Recipe, Recipes
from bridge_jax.types import Batch, Rollouts, Sequences
from tests import toys

RATE = 0.1
PLAIN = Recipes(
    Recipe(learning_rate=RATE, eps=1e3, clip_norm=0.0, b1=0.0), Recipe()
)  # theta += RATE / 1000 * G, nearly


def one_prompt(tokens, reward, temperature: float = 1.0) -> Batch:
    """Completions of one token behind prompt [0]."""
    n = len(tokens)
    ints = lambda x: jnp.asarray(x, jnp.int32)
    seqs = Sequences(ints([[0]]), ints([1]), ints(tokens)[:, None], jnp.ones(n, jnp.int32))
    return Batch(
        None,
        {
            "theta": Rollouts(
                seqs, jnp.zeros((n, 1)), jnp.asarray(reward, jnp.float32), jnp.float32(temperature)
            )
        },
    )


def step(cfg: grpo.Config, theta, batch: Batch, state=None):
    """Method, state after one update, metrics; recipes whose step is proportional to the
    gradient.
    """
    method = grpo.make(cfg, toys.bigram(), PLAIN)
    state = method.init(theta, jax.random.key(0)) if state is None else state
    return method, *jax.jit(method.update)(state, batch)


def direction(before, after) -> np.ndarray:
    """G [V,V] from a step of PLAIN."""
    return (np.asarray(after["table"]) - np.asarray(before["table"])) * 1e3 / RATE


@pytest.mark.parametrize("advantage, scale", [("group", 1 / (0.5**0.5 + 1e-6)), ("mean", 1.0)])
def test_first_update_by_hand(advantage, scale):
    """Rewards 1 0 for tokens 1 2 of uniform 6: G = mean of A (onehot - 1/6), A = +-1/2 times the
    scale; other rows rest.
    """
    theta = {"table": jnp.zeros((toys.V, toys.V))}
    _, state, metrics = step(grpo.Config(advantage=advantage), theta, one_prompt([1, 2], [1, 0]))
    expected = np.zeros((toys.V, toys.V))
    expected[0, 1:3] = 0.25 * scale, -0.25 * scale
    np.testing.assert_allclose(direction(theta, state.params.theta), expected, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(metrics["grad/norm_theta"], np.linalg.norm(expected), rtol=1e-5)
    assert metrics["reward/mean"] == 0.5 and metrics["update/skipped"] == 0 and state.step == 1


def test_temperature_scales_the_gradient():
    """Logits enter divided by the temperature at which the tokens were drawn."""
    theta = {"table": jnp.zeros((toys.V, toys.V))}
    norms = [
        float(step(grpo.Config(), theta, one_prompt([1, 2], [1, 0], t))[2]["grad/norm_theta"])
        for t in (1.0, 0.5)
    ]
    np.testing.assert_allclose(norms[1], 2 * norms[0], rtol=1e-5)


def test_equal_rewards_teach_nothing():
    """All right, or all wrong: the gradient is exactly 0."""
    for reward in ([1, 1, 1], [0, 0, 0]):
        _, state, metrics = step(grpo.Config(), toys.bigram_theta(), one_prompt([1, 2, 3], reward))
        assert metrics["grad/norm_theta"] == 0 and toys.same_bits(
            state.params.theta, toys.bigram_theta()
        )


def test_later_updates_are_clipped_against_the_first():
    """Strong updates on one batch: with a clip the second finds nothing left to gain, without one
    it goes on.
    """
    batch, theta = one_prompt([1, 2], [1, 0]), {"table": jnp.zeros((toys.V, toys.V))}
    recipes = Recipes(Recipe(learning_rate=3e3, eps=1e3, clip_norm=0.0, b1=0.0, b2=0.0), Recipe())

    def after(**fields):
        method = grpo.make(grpo.Config(**fields), toys.bigram(), recipes)
        state, metrics = jax.jit(method.update)(method.init(theta, jax.random.key(0)), batch)
        assert state.step == 1  # one batch is one step, however many updates
        return state.params.theta, metrics

    (once, _), (twice, clipped) = after(), after(updates_per_batch=2)
    free, going_on = after(updates_per_batch=2, clip_low=10.0, clip_high=10.0)
    assert clipped["grad/norm_theta"] == 0 and toys.same_bits(once, twice)
    assert going_on["grad/norm_theta"] > 0.1 and toys.change(free, once) > 0.1


def test_kl_pulls_back_to_the_start():
    """Rewards equal and theta away from ref: at a large kl_coef the step lowers KL(pi || ref); at
    theta = ref it is 0.
    """
    theta = toys.bigram_theta()
    batch = one_prompt([0, 1, 2, 3, 4, 5], [0] * 6)
    method, state, metrics = step(grpo.Config(kl_coef=1.0), theta, batch)
    assert metrics["grad/norm_theta"] == 0 and metrics["rollout/kl_ref"] == 0
    moved = state.replace(
        params=state.params.replace(theta={"table": theta["table"] + jnp.eye(toys.V)})
    )
    after, metrics = jax.jit(method.update)(moved, batch)
    p, ref = (np.asarray(jax.nn.softmax(x["table"][0])) for x in (moved.params.theta, state.ref))
    k3 = ref / p - np.log(ref / p) - 1
    np.testing.assert_allclose(
        [metrics["rollout/kl_ref"], metrics["rl/J"]], [k3.mean(), -k3.mean()], rtol=1e-5
    )
    expected = -np.mean((1 - ref / p)[:, None] * (np.eye(toys.V) - p), axis=0)
    found = direction(moved.params.theta, after.params.theta)[0]
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=1e-3)


def test_sampling_policies_and_demos():
    """theta samples in every step; demonstrations are not read."""
    method = grpo.make(grpo.Config(), toys.bigram(), toys.recipes())
    assert method.batch_spec(0) == method.batch_spec(9) == (("theta",), False)


def test_advantages_of_your_own():
    """A function of the rollouts takes the place of cfg.advantage: A = 3 R here."""
    theta = {"table": jnp.zeros((toys.V, toys.V))}
    own = grpo.make(
        grpo.Config(), toys.bigram(), PLAIN, advantages=lambda rollouts: 3 * rollouts.reward_B
    )
    state, _ = jax.jit(own.update)(
        own.init(theta, jax.random.key(0)), one_prompt([1, 2], [1.0, 0.0])
    )
    expected = np.zeros((toys.V, toys.V))
    expected[0] = -0.25
    expected[0, 1] = 1.25
    np.testing.assert_allclose(direction(theta, state.params.theta), expected, rtol=2e-3, atol=1e-4)
