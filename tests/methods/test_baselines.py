"""Baselines share the sides of the clip, the rate of a step, equalities and refusals."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bridge_jax.optim import Recipe, Recipes
from tests import errors, toys
from tests.methods.by_hand import P_TOKEN, UNIFORM, A, G_of, batch, made, random_batch


@pytest.mark.parametrize(
    "name, low, high",
    [
        ("grpo", "clip_low", "clip_high"),
        pytest.param("dr_grpo", "clip_low", "clip_high", marks=pytest.mark.slow),
        pytest.param("dapo", "clip_low", "clip_high", marks=pytest.mark.slow),
        ("gspo", "clip_low", "clip_high"),
    ],
)
def test_each_side_of_the_clip(name, low, high):
    """A second update on one batch, r above 1 for the right answer and below for the wrong: `high`
    bounds the first alone, `low` the second. What is left is r A / 2 times onehot - p, of which the
    norm is known; half of the second update's tokens are cut, none of the first one's.
    """
    recipes = Recipes(Recipe(learning_rate=3e3, eps=1e3, clip_norm=0.0, b1=0.0, b2=0.0), Recipe())
    given = batch().replace(demos=None)
    once = made(name, recipes)
    after, metrics = jax.jit(once.update)(once.init(UNIFORM, jax.random.key(0)), given)
    assert metrics["rl/clip_fraction"] == 0
    p = np.asarray(jax.nn.softmax(after.params.theta["table"][0]), np.float64)
    assert p[1] > 1.2 * P_TOKEN and p[2] < 0.8 * P_TOKEN
    weight = 0.5 if name == "dr_grpo" else A
    for free, bounds in ((1, {low: 1e-3, high: 1e6}), (2, {low: 1.0, high: 1e-3})):
        twice = made(name, recipes, updates_per_batch=2, **bounds)
        _, metrics = jax.jit(twice.update)(twice.init(UNIFORM, jax.random.key(0)), given)
        left = weight * p[free] / P_TOKEN / 2 * np.linalg.norm(np.eye(toys.V)[free] - p)
        np.testing.assert_allclose(metrics["grad/norm_theta"], left, rtol=1e-4)
        assert metrics["rl/clip_fraction"] == 0.25


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_updates_of_a_batch_share_the_rate_of_their_step(name):
    """Falling to 0 over 2 steps: with 2 updates a step the second step still learns, at half the
    rate.
    """
    falling = Recipe(learning_rate=0.1, schedule="linear", decay_steps=2)
    method = made(name, Recipes(falling, Recipe()), updates_per_batch=2)
    update, state = jax.jit(method.update), method.init(UNIFORM, jax.random.key(0))
    seen = []
    for _ in range(3):
        before = state.params.theta
        state, metrics = update(state, batch().replace(demos=None))
        seen.append((float(metrics["lr/base"]), toys.same_bits(before, state.params.theta)))
    assert seen == [(pytest.approx(0.1), False), (pytest.approx(0.05), False), (0.0, True)]


@pytest.mark.parametrize("lam", [0.25, pytest.param(0.8, marks=pytest.mark.slow)])
def test_bridge_without_an_adapter_is_the_hybrid_up_to_scale(lam):
    """beta = 0: lam times the hybrid's direction with mu = (1 - lam) / lam."""
    theta = toys.bigram_theta()
    G = G_of("bridge", random_batch(), theta, lam=lam)
    np.testing.assert_allclose(
        G, lam * G_of("hybrid", random_batch(), theta, mu=(1 - lam) / lam), rtol=1e-3, atol=2e-3
    )
    np.testing.assert_allclose(
        G, G_of("joint", random_batch(), theta, lam=lam), rtol=1e-3, atol=2e-3
    )
    assert np.abs(G).max() > 0.04  # 20 times the tolerance


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("hybrid", dict(mu=-1.0), "method.hybrid.mu=-1.0; allowed: from 0.0"),
        ("chord", dict(mu=1.5), "method.chord.mu=1.5"),
        ("chord", dict(weighting="psi"), "method.chord.weighting='psi'; allowed: mu, phi"),
        ("chord", dict(mu_schedule__steps=0), "method.chord.mu_schedule.steps=0"),
        (
            "joint",
            dict(
                lam_schedule__kind="linear", lam=0.5, lam_schedule__end=0.5, lam_schedule__steps=9
            ),
            ("lam_schedule", "start"),
        ),
        ("joint", dict(lam_schedule__kind="step"), ("lam_schedule", "boundaries")),
        ("luffy", dict(gamma=0.0), "method.luffy.gamma=0.0"),
        ("srft", dict(expert_coef=-1.0), "method.srft.expert_coef"),
        ("luffy", dict(entropy_coef=-0.1), "method.luffy.entropy_coef=-0.1"),
        ("hpt", dict(advantage="best"), "method.hpt.advantage='best'"),
        ("hpt", dict(gate=-1), "method.hpt.gate=-1"),
        ("hpt", dict(entropy_coef=-1.0), "method.hpt.entropy_coef=-1.0"),
        ("gspo", dict(clip_low=-1.0), "method.gspo.clip_low"),
        ("cold_start", dict(sft_steps=-1), "method.cold_start.sft_steps=-1"),
        (
            "grpo",
            dict(normaliser="mean"),
            ("method.grpo.normaliser='mean'", "'tokens', 'longest'"),
        ),
        ("joint", dict(lam=2.0), "method.joint.lam=2.0"),
        ("dr_grpo", dict(updates_per_batch=0), "method.dr_grpo.updates_per_batch=0"),
    ],
)
def test_refused(name, fields, message):
    """A setting outside its range is refused under its full key."""
    with errors.raises(ValueError, message):
        made(name, **fields)
