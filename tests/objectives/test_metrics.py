"""Every metric of a step equals numbers worked out by hand."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from bridge_jax import objectives
from tests.objectives.examples import close, on_policy, rows


def test_clip_fraction():
    """The tokens whose gradient the clip takes, of those that count; of a ratio per sample all its tokens."""
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
    assert set(found) == {"grad/cos_sft_rl", "coop/inner", "coop/norm_ratio"}
    close(found["grad/cos_sft_rl"], 11 / (5 * math.sqrt(30)))
    close(found["coop/inner"], 11.0)
    close(found["coop/norm_ratio"], 5 / math.sqrt(30))
    idle = objectives.gradient_alignment(a, jax.tree.map(jnp.zeros_like, a))
    assert idle["grad/cos_sft_rl"] == idle["coop/norm_ratio"] == 0.0


def test_cooperation_by_group_of_layers():
    """Four layers: the first alone is early, the second middle, the last two late; what is outside the layers is the rest."""
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
        close(found[f"coop/inner{name}"], value)
    close(found["grad/cos_sft_rl_late"], 3 / math.sqrt(11))
    close(found["coop/norm_ratio_middle"], 2.0)


def test_passed_by_hand():
    """Two prompts of 1 and 2 tokens with two completions each; a group that is nothing but padding costs nothing."""
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
    """stop_prob is the mean probability of the last expert token over real rows; padding rows count nowhere."""
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
