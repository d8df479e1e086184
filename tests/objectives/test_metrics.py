"""Every metric of a step equals numbers worked out by hand."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax import objectives
from bridge_jax.types import Rollouts
from tests import toys
from tests.objectives.examples import close, on_policy, rows


def test_clip_fraction():
    """The tokens whose gradient the clip takes, of those that count; of a ratio per sample all its
    tokens.
    """
    rho = jnp.array([[1.5, 1.1], [0.5, 1.5], [1.5, 0.9], [0.5, 0.5]])
    A, seqs = jnp.array([1.0, 1.0, -1.0, -1.0]), rows([0], [[1, 1]] * 4, [2, 2, 2, 1])
    bounds = dict(low=0.2, high=0.3)
    J = lambda logp: objectives.clipped_surrogate(logp, jnp.zeros((4, 2)), A, **bounds).sum()
    flat = jax.grad(J)(jnp.log(rho)) == 0
    np.testing.assert_array_equal(flat, [[1, 0], [0, 1], [0, 0], [1, 1]])
    of = lambda rho, A: float(
        objectives.clip_fraction(jnp.log(rho), jnp.zeros_like(rho), A, **bounds, seqs=seqs)
    )
    close(of(rho, A), 3 / 7)
    close(of(rho[:, :1], A), 3 / 7)  # samples 0 and 3, of 2 and 1 tokens
    assert of(rho, jnp.zeros(4)) == 0 and of(jnp.ones((4, 2)), A) == 0


def test_inner_and_cosine():
    """Over all leaves at once; a zero tree has cosine 0."""
    a, b = (
        {"x": jnp.array([3.0, 0]), "y": jnp.array([[4.0]])},
        {"x": jnp.array([1.0, 5]), "y": jnp.array([[2.0]])},
    )
    close(objectives.inner_product(a, b), 11.0)
    found = objectives.gradient_alignment(a, b)
    assert set(found) == {"grad/cos_sft_rl", "grad/inner_sft_rl", "grad/norm_ratio_sft_rl"}
    close(found["grad/cos_sft_rl"], 11 / (5 * math.sqrt(30)))
    close(found["grad/inner_sft_rl"], 11.0)
    close(found["grad/norm_ratio_sft_rl"], 5 / math.sqrt(30))
    idle = objectives.gradient_alignment(a, jax.tree.map(jnp.zeros_like, a))
    assert idle["grad/cos_sft_rl"] == idle["grad/norm_ratio_sft_rl"] == 0.0


def test_gradient_alignment_by_group_of_layers():
    """Four layers: the first alone is early, the second middle, the last two late; what is outside
    the layers is the rest.
    """
    a = {"layers": {"q": jnp.array([[1.0, 0], [0, 2], [1, 1], [3, 0]])}, "embed": jnp.array([2.0])}
    b = {
        "layers": {"q": jnp.array([[1.0, 1], [0, -1], [0, 0], [1, 0]])},
        "embed": jnp.array([-1.0]),
    }
    found = objectives.gradient_alignment(a, b)
    for name, value in {
        "": 0.0 - 2 + 1 - 2 + 3,
        "_early": 1.0,
        "_middle": -2.0,
        "_late": 3.0,
        "_rest": -2.0,
    }.items():
        close(found[f"grad/inner_sft_rl{name}"], value)
    close(found["grad/cos_sft_rl_late"], 3 / math.sqrt(11))
    close(found["grad/norm_ratio_sft_rl_middle"], 2.0)


def test_passed_by_hand():
    """Two prompts of 1 and 2 tokens with two completions each; a group that is nothing but padding
    costs nothing.
    """
    seqs = rows([0, 0], [[1, 1], [1, 1], [1, 1], [1, 1]], [1, 2, 2, 0])
    seqs = seqs.replace(prompt_len_P=jnp.array([3, 4]))
    found = objectives.token_counts(seqs, seqs, forward=(seqs,))
    assert {key: int(value) for key, value in found.items()} == {
        "budget/gradient_tokens": 10,
        "budget/gradient_prompt_tokens": 14,
        "budget/forward_tokens": 12,
    }
    idle = seqs.replace(length_B=jnp.array([1, 2, 0, 0]))
    assert objectives.token_counts(idle)["budget/gradient_prompt_tokens"] == 3


def test_demo_metrics():
    """stop_prob is the mean probability of the last token of a demo over real rows; padding rows
    count nowhere.
    """
    demos = rows([0, 0, 0], [[1, 0], [0, 0], [0, 0]], [2, 1, 0])
    aux = {
        "logp_BT": jnp.log(jnp.array([[0.9, 0.5], [0.25, 0.9], [0.9, 0.9]])),
        "entropy_BT": jnp.ones((3, 2)),
    }
    metrics = objectives.demo_metrics(aux, demos)
    close(metrics["sft/stop_prob"], (0.5 + 0.25) / 2)
    close(metrics["sft/entropy"], 1.0)
    assert metrics["budget/demo_tokens"] == 3
    close(metrics["sft/logp"], (math.log(0.9) + math.log(0.5) + math.log(0.25)) / 3)


def test_rollout_metrics():
    """Group shares, and the gap between sampler and trainer on the tokens that count."""
    rolled = on_policy(rows([0, 1], [[1, 1]] * 4, [1, 2, 2, 1]), [1, 1, 0, 0])
    rolled = rolled.replace(logp_BT=jnp.array([[-1.0, 7], [-1, -1.5], [-1, -1], [-1, 7]]))
    aux = {"logp_BT": -jnp.ones((4, 2)), "entropy_BT": 2 * jnp.ones((4, 2))}
    metrics = objectives.rollout_metrics(aux, rolled)
    expected = {
        "reward/mean": 0.5,
        "reward/all_right": 0.5,
        "reward/all_wrong": 0.5,
        "rl/clip_fraction": 0.0,
        "rollout/entropy": 2.0,
        "rollout/logp_error": 0.5 / 6,
        "rollout/logp_error_max": 0.5,
        "rollout/prob_error": (5 + math.exp(0.5)) / 6,
        "budget/generated_tokens": 6,
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        close(metrics[name], value)


def rolled_out(length, reward) -> Rollouts:
    """Rows of at most 2 tokens."""
    seqs = toys.sequences(0, P=1, M=len(length), T=2).replace(
        length_B=jnp.asarray(length, jnp.int32)
    )
    return Rollouts(
        seqs, jnp.zeros((len(length), 2)), jnp.asarray(reward, jnp.float32), jnp.float32(1)
    )


def test_gain_and_ess_by_hand():
    """Sequence ratios 2 * 3 = 6, 1/2, 1 (tokens beyond the length do not count), for two right
    answers and a wrong one.
    """
    logp = jnp.log(jnp.array([[0.1, 0.2], [0.4, 0.3], [0.5, 0.5]]))
    hat = jnp.log(jnp.array([[0.2, 0.6], [0.2, 0.9], [0.5, 0.5]]))
    metrics = objectives.shared_gain(rolled_out([2, 1, 2], [1, 1, 0]), logp, hat)
    np.testing.assert_allclose(metrics["bridge/gain"], ((1 - 6) + (1 - 0.5) + 0) / 3, rtol=1e-5)
    np.testing.assert_allclose(metrics["bridge/ess"], 7.5**2 / (3 * (36 + 0.25 + 1)), rtol=1e-5)
    k3 = [r - np.log(r) - 1 for r in (2, 3, 0.5, 1, 1)]
    np.testing.assert_allclose(metrics["bridge/kl_hat"], np.sum(k3) / 5, rtol=1e-5)


def test_error_of_the_gain_is_over_prompts():
    """The samples of a prompt are one cluster: two prompts of gains 1 1 1 and 0 0 3; of one prompt,
    over its samples.
    """
    gain = jnp.array([1.0, 1.0, 1.0, 0.0, 0.0, 3.0])
    assert objectives.mean_gain(gain, 2)["bridge/gain_stderr"] == 0
    three = objectives.mean_gain(gain, 3)["bridge/gain_stderr"]
    np.testing.assert_allclose(three, np.std([1, 0.5, 1.5], ddof=1) / 3**0.5, rtol=1e-6)
    alone = objectives.mean_gain(gain, 1)["bridge/gain_stderr"]
    np.testing.assert_allclose(alone, np.std([1, 1, 1, 0, 0, 3], ddof=1) / 6**0.5, rtol=1e-6)


def test_error_of_the_gain_covers():
    """Prompts that differ, eight samples of each: the error is the spread of the mean over new
    prompts and samples.
    """
    rng = np.random.default_rng(0)
    chance = rng.beta(0.5, 0.5, (2000, 16, 1))
    gain = (rng.random((2000, 16, 8)) < chance).astype(np.float32).reshape(2000, -1)
    error = np.asarray(
        jax.vmap(lambda gain_B: objectives.mean_gain(gain_B, 16)["bridge/gain_stderr"])(gain)
    )
    assert np.sqrt((error**2).mean()) == pytest.approx(gain.mean(axis=1).std(), rel=0.03)
