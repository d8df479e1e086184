"""BRIDGE's variants: gain alone, re-sync, inner steps, a shadow in less memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax import objectives, optim
from bridge_jax.methods import bridge, bridge_variants
from bridge_jax.types import Params
from tests import errors, toys
from tests.methods.bigram_bridge import advanced, bigram_batch, bigram_method, start


def test_gain_alone():
    """At step 0 the gain has no gradient: w stands still; later it moves, and theta as ever."""
    method, update = bigram_method(variant__w_learns="gain")
    usual = bigram_method()[1]
    theta = toys.bigram_theta()
    first = advanced(update, start(method, theta, 0.5), 1)[0]
    assert not first.params.w["B"].any()
    assert toys.same_bits(
        first.params.theta, advanced(usual, start(method, theta, 0.5), 1)[0].params.theta
    )
    assert jnp.abs(advanced(update, start(method, theta, 0.5), 5)[-1].params.w["B"]).max() > 1e-3


def test_w_gain_direction():
    """pull(lam (dJ_RL(theta) - dJ_RL(theta_hat))), the SFT term left out."""
    policy = toys.bigram()
    params = Params(
        toys.bigram_theta(),
        toys.noise_like(toys.bigram_theta(), 1, 0.5),
        toys.noise_like(policy.init_w(jax.random.key(0)), 2, 0.5),
    )
    gradients = [toys.noise_like(params.theta, seed, 1.0) for seed in (3, 4, 5)]
    grad = lambda G: lambda *_: (G, 0.0, {})
    found = toys.directions(
        *map(grad, gradients),
        lam=0.25,
        params=params,
        policy=policy,
        for_w=bridge_variants.gradient_for_w(
            toys.method_config("bridge", variant__w_learns="gain")
        ),
    )
    rl, _, hat = gradients
    expected = policy.pull(params.w, jax.tree.map(lambda r, h: 0.25 * (r - h), rl, hat))
    assert toys.change(found.w, expected) < 1e-6


def test_resync():
    """After every third step theta_hat is theta, bit for bit, and at no other; the next step has
    gain 0.
    """
    method, update = bigram_method(variant__resync_every=3)
    state, gains = start(method, toys.bigram_theta(), 0.5), []
    for seed in range(7):
        state, metrics = update(state, bigram_batch(seed))
        gains.append(float(metrics["bridge/gain"]))
        assert toys.same_bits(state.params.theta, state.params.theta_hat) == (seed in (2, 5))
    assert gains[0] == gains[3] == gains[6] == 0 and all(gains[i] != 0 for i in (1, 2, 4, 5))


@pytest.mark.slow
def test_inner_steps():
    """lam 1 and one step: theta_hat takes GRPO's step and a second one, importance-weighted, on the
    same samples; theta takes one.
    """
    recipes = toys.linear(0.5)
    method, update = bigram_method(recipes, variant__inner_steps=2)
    plain, plain_update = bigram_method(recipes)
    theta, given = toys.bigram_theta(), bigram_batch(0)
    twice, metrics = update(start(method, theta, 1.0), given)
    once, _ = plain_update(start(plain, theta, 1.0), given)
    assert toys.change(twice.params.theta, once.params.theta) < 1e-6
    assert toys.change(twice.params.theta_hat, once.params.theta_hat) > 1e-3
    rolled, policy = given.rollouts["theta"], toys.bigram()
    behaviour = {
        "behaviour_BT": policy.logp(policy.merge(theta, None), rolled.seqs, rolled.temperature)[0]
    }
    rows = objectives.rl_rows(policy, None, rolled, "group", 0.0, 0) | behaviour
    G, *_ = objectives.gradient(
        objectives.J_RL(policy, rolled, objectives.surrogate),
        policy.merge(once.params.theta_hat, None),
        rolled.seqs,
        rows,
    )
    moved = jax.tree.map(jnp.subtract, twice.params.theta_hat, once.params.theta_hat)
    assert objectives.gradient_alignment(G, moved)["grad/cos_sft_rl"] > 0.999
    assert int(twice.step) == int(once.step)
    count = lambda state, label: int(
        next(
            x for x in jax.tree.leaves(state.opt_state.inner_states[label]) if x.dtype == jnp.int32
        )
    )
    assert count(twice, "shadow") == 2 and count(twice, "base") == count(twice, "lora") == 1
    single = float(given.demos.length_B.sum()) + 2 * float(rolled.seqs.length_B.sum())
    assert metrics["budget/gradient_tokens"] == single + float(rolled.seqs.length_B.sum())


@pytest.mark.slow
def test_inner_steps_are_taken_at_thetas_rate():
    """A rate that falls to 0 over 4 steps of theta: theta_hat, with 3 steps to one, learns in the
    third as well, at .5 then.
    """
    from bridge_jax.optim import Recipe, Recipes, learning_rate

    falling = Recipe(learning_rate=1.0, schedule="linear", decay_steps=4, warmup_steps=2)
    rates = [float(learning_rate(falling, updates_per_step=3)(count)) for count in range(21)]
    assert rates == [
        rate for step in range(7) for rate in [float(learning_rate(falling)(step))] * 3
    ]
    falling = Recipe(learning_rate=0.5, schedule="linear", decay_steps=4)
    method, update = bigram_method(Recipes(falling, falling), variant__inner_steps=3)
    states = [start(method, toys.bigram_theta(), 0.5)]
    for seed in range(5):
        states.append(update(states[-1], bigram_batch(seed))[0])
    moved = [
        toys.change(after.params.theta_hat, before.params.theta_hat)
        for before, after in zip(states, states[1:])
    ]
    assert min(moved[:4]) > 1e-3 and moved[4] == 0


def test_low_memory_shadow():
    """Differences and moments in bfloat16: exact at step 0, lam 1 keeps theta_hat == theta, and the
    path stays near the full one's.
    """
    method, update = bigram_method(shadow__storage="difference", shadow__moments="bfloat16")
    full, full_update = bigram_method()
    theta = toys.bigram_theta()
    small, large = (
        advanced(u, start(m, theta, 0.5), 40) for m, u in ((method, update), (full, full_update))
    )
    assert {x.dtype for x in jax.tree.leaves(small[-1].params.theta_hat)} == {
        jnp.dtype(jnp.bfloat16)
    }
    assert toys.same_bits(small[0].params.theta, large[0].params.theta)
    unpacked = optim.read_shadow(optim.STORAGE["difference"], small[-1].params)
    travelled = toys.change(large[-1].params.theta_hat, theta)
    assert toys.change(unpacked, large[-1].params.theta_hat) < 0.1 * travelled
    shadow = lambda state: sum(
        x.nbytes
        for x in jax.tree.leaves((state.params.theta_hat, state.opt_state.inner_states["shadow"]))
    )
    assert shadow(small[-1]) < 0.51 * shadow(large[-1])


@pytest.mark.parametrize("kind", ["shared", "own"])
def test_lam_follows_the_gain(kind):
    """By the gain of the step before: lam_end at gain 0, as at step 0; halfway at half of
    lam_gain.
    """
    method, update = bigram_method(
        lam_schedule__kind="gain",
        lam_schedule__end=0.8,
        lam_schedule__gain=0.4,
        lam=0.2,
        variant__shadow_rollouts=kind,
    )
    state, gain, seen = start(method, toys.bigram_theta(), 0.5), 0.0, []
    for seed in range(12):
        given = bigram_batch(seed)
        given = given.replace(
            rollouts={
                "theta": given.rollouts["theta"],
                "theta_hat": bigram_batch(seed + 50).rollouts["theta"],
            }
            if kind == "own"
            else given.rollouts
        )
        state, metrics = update(state, given)
        expected = 0.8 - 0.6 * min(max(gain / 0.4, 0.0), 1.0)
        assert float(metrics["bridge/lam"]) == pytest.approx(expected, abs=1e-5)
        gain = float(metrics["bridge/gain"])
        assert state.last_gain == metrics["bridge/gain"]
        seen.append(round(float(metrics["bridge/lam"]), 3))
    assert seen[0] == 0.8 and len(set(seen)) >= 3
    with errors.raises(ValueError, "lam_schedule.gain=0.0", "above 0"):
        bridge_variants.check(
            toys.method_config(
                "bridge", lam_schedule__kind="gain", lam_schedule__end=0.8, lam_schedule__gain=0.0
            )
        )


def test_a_gain_that_is_not_finite_is_not_remembered():
    """lam goes on by the last gain that was a number, and the update is skipped."""
    method, update = bigram_method(
        lam_schedule__kind="gain", lam_schedule__end=0.8, lam_schedule__gain=0.4, lam=0.2
    )
    state = start(method, toys.bigram_theta(), 0.5).replace(last_gain=jnp.float32(0.1))
    given = bigram_batch(0)
    rolled = given.rollouts["theta"]
    lost = rolled.replace(reward_B=rolled.reward_B.at[0].set(jnp.nan))
    state, metrics = update(state, given.replace(rollouts={"theta": lost, "theta_hat": lost}))
    assert metrics["update/skipped"] == 1 and jnp.isnan(metrics["bridge/gain"])
    assert state.last_gain == jnp.float32(0.1)


def test_demos_in_parts_are_the_same_update():
    """Their gradient adds up, whatever the cut; one that does not come out even is refused."""
    batch = bigram_batch(0)
    D = batch.demos.length_B.shape[0]

    def stepped(parts: int):
        method = bridge.make(
            toys.method_config("bridge", sft_microbatches=parts), toys.bigram(), toys.linear()
        )
        return method.update(method.init(toys.bigram_theta(), jax.random.key(0)), batch)[0].params

    whole, cut = stepped(0), stepped(D // 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), whole, cut)
    with errors.raises(ValueError, f"sft_microbatches={D - 1}", f"{D} rows", "1,"):
        stepped(D - 1)
    rows = lambda D, microbatch, parts: bridge_variants.demo_rows(
        toys.method_config("bridge", sft_microbatches=parts), toys.sequences(0, D, 1), microbatch
    )
    assert rows(64, 80, 2) == 32 and rows(64, 16, 2) == 16 and rows(6, 0, 0) == 6
