"""Rates, clips and decay act per label; an update happens to all parts or to none."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bridge_jax import optim
from bridge_jax.models import params
from bridge_jax.optim import Recipe, Recipes
from bridge_jax.types import Params, TrainState
from tests import toys
from tests.optim.trees import by_name, declared, one


def at(function, *steps):
    """The values at these steps, read with a traced step."""
    return [float(x) for x in jax.jit(jax.vmap(function))(jnp.asarray(steps, jnp.int32))]


def test_learning_rate_by_hand():
    """Warm-up of 4 reaches the peak with its 4th update; the schedule's own steps count from the
    end of warm-up.
    """
    warm = optim.learning_rate(
        Recipe(learning_rate=2.0, warmup_steps=4, schedule="linear", decay_steps=10, end_ratio=0.5)
    )
    np.testing.assert_allclose(
        at(warm, 0, 1, 3, 4, 9, 14, 50), [0.5, 1.0, 2.0, 2.0, 1.5, 1.0, 1.0], rtol=1e-6
    )
    assert at(optim.learning_rate(Recipe(learning_rate=3.0)), 0, 7) == [3.0, 3.0]
    frozen = Recipe(learning_rate=0.0, schedule="cosine", decay_steps=4)
    assert at(optim.learning_rate(frozen), 0, 2, 9) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(schedule="step"), "schedule='step'; allowed: constant, linear, cosine$"),
        (
            dict(schedule="linear", decay_steps=5, end_ratio=1.0),
            "end_ratio=1 with .*never leaves the learning rate",
        ),
        (dict(schedule="cosine"), "decay_steps=0 with .*schedule='cosine'; allowed: 1 or"),
        (dict(moments="int8"), "moments='int8'; allowed: "),
        (dict(b1=1.0), "b1=1.0; allowed: from 0 to below 1$"),
        (dict(eps=0.0), "eps=0.0; allowed: above 0$"),
    ],
)
def test_invalid_recipes_are_refused_by_the_key(fields, message):
    """Also a schedule under which the rate never leaves its start.

    The error names the recipe where that is known.
    """
    recipe = Recipe(learning_rate=1.0, **fields)
    with pytest.raises(ValueError, match=f"^optim.{message}"):
        optim.learning_rate(recipe)
    with pytest.raises(ValueError, match=f"^optim.lora.{message}"):
        optim.check_recipe(recipe, "optim.lora")


def test_misfits_of_a_schedule_and_a_run():
    """10 steps of warm-up and 90 of decay: fine for 100 steps; in 101 the last one has a rate of 0;
    in 9 the peak is not reached.
    """
    falling = Recipe(learning_rate=1.0, schedule="cosine", warmup_steps=10, decay_steps=90)
    rate = optim.learning_rate(falling)
    assert at(rate, 100) == [0.0] and at(rate, 99)[0] > 0
    assert at(rate, 9) == [1.0] and at(rate, 8)[0] < 1.0
    assert optim.schedule_warnings(falling, 100) == optim.schedule_warnings(falling, 10) == []
    assert [sentence.split(" (")[0] for sentence in optim.schedule_warnings(falling, 101)] == [
        "the learning rate is 0 from step 101 on"
    ]
    assert "warmup_steps=10 is longer than the 9 steps" in optim.schedule_warnings(falling, 9)[0]
    for fields in (dict(end_ratio=0.1), dict(schedule="constant"), dict(learning_rate=0.0)):
        assert optim.schedule_warnings(dataclasses.replace(falling, **fields), 1000) == []


@pytest.mark.parametrize("per", [1, 3])
def test_updates_of_a_step_share_its_rate(per):
    """Falling to 0 over 4 steps: with 3 updates a step each of them has the rate of its step."""
    recipe = Recipe(learning_rate=1.0, schedule="linear", decay_steps=4)
    found = at(optim.learning_rate(recipe, per), *range(4 * per))
    assert found == [rate for rate in (1.0, 0.75, 0.5, 0.25) for _ in range(per)]


def test_learning_rates_are_reported_by_label():
    """That of the update just made, for each part that moved; theta_hat's by its own count."""
    falling = Recipe(learning_rate=1.0, schedule="linear", decay_steps=4)
    recipes = Recipes(
        falling, Recipe(learning_rate=0.5), shadow_updates=2, shadow_moments="bfloat16"
    )
    state = start(recipes, one([1.0], [1.0], [1.0]))
    seen = []
    for _ in range(3):
        state, metrics = optim.apply_ascent(recipes, state, one([0.1], [0.1], [0.1]))
        seen.append([float(metrics[f"lr/{label}"]) for label in ("base", "shadow", "lora")])
    assert seen == [[1.0, 1.0, 0.5], [0.75, 1.0, 0.5], [0.5, 0.75, 0.5]]
    _, alone = optim.apply_ascent(recipes, state, one(None, None, [0.1]))
    assert {key for key in alone if key.startswith("lr/")} == {"lr/lora"}
    _, skipped = optim.apply_ascent(recipes, state, one([np.nan], [0.1], [0.1]))
    assert skipped["update/skipped"] == 1 and skipped["lr/base"] == 0.25


def start(recipes: Recipes, params: Params) -> TrainState:
    """A state at step 0."""
    return TrainState(jnp.int32(0), params, recipes.optimizer().init(params))


def test_first_update_by_hand():
    """Adam's first step is lr g / (|g| + eps), UP the gradient; weight decay pulls matrices alone,
    by lr wd theta.
    """
    recipes = Recipes(
        Recipe(learning_rate=0.1, weight_decay=0.5, clip_norm=0.0),
        Recipe(learning_rate=0.01, clip_norm=0.0),
        matrices=(("theta/matrix", toys.SQUARE), ("theta/vector", None)),
    )
    params = Params(
        {"matrix": jnp.array([[2.0, -4.0]]), "vector": jnp.array([2.0])},
        w={"x": jnp.array([1.0, 1.0])},
    )
    ascent = Params(
        {"matrix": jnp.array([[3.0, -0.5]]), "vector": jnp.array([1.0])},
        w={"x": jnp.array([-7.0, 0.0])},
    )
    state, metrics = optim.apply_ascent(recipes, start(recipes, params), ascent)
    np.testing.assert_allclose(state.params.theta["matrix"], [[2.1 - 0.1, -4.1 + 0.2]], rtol=1e-5)
    np.testing.assert_allclose(state.params.theta["vector"], [2.1], rtol=1e-5)
    np.testing.assert_allclose(state.params.w["x"], [0.99, 1.0], rtol=1e-5)
    assert state.step == 1 and metrics["update/skipped"] == 0
    np.testing.assert_allclose(metrics["grad/norm_w"], 7.0)
    np.testing.assert_allclose(metrics["grad/norm_theta"], (9 + 0.25 + 1) ** 0.5, rtol=1e-6)
    assert "grad/norm_theta_hat" not in metrics and state.params.theta_hat is None


def test_clip_is_per_label():
    """A gradient of norm 5 is clipped to 1; the first moment keeps 0.1 of it. The shadow's own norm
    is another one.
    """
    recipes = Recipes(Recipe(clip_norm=1.0), Recipe(clip_norm=1.0))
    params = one([0.0, 0.0], [0.0, 0.0], [0.0, 0.0])
    state, _ = optim.apply_ascent(
        recipes, start(recipes, params), one([3.0, 4.0], [300.0, 400.0], [0.3, 0.4])
    )
    moments = {
        label: optax.tree.get(state.opt_state.inner_states[label], "mu")
        for label in ("base", "shadow", "lora")
    }
    np.testing.assert_allclose(moments["base"].theta["x"], [-0.06, -0.08], rtol=1e-5)
    np.testing.assert_allclose(moments["shadow"].theta_hat["x"], [-0.06, -0.08], rtol=1e-5)
    np.testing.assert_allclose(moments["lora"].w["x"], [-0.03, -0.04], rtol=1e-5)


def test_a_huge_shadow_gradient_does_not_touch_theta():
    """Bit for bit under three labels. Under one label it shrinks theta's step: the control that
    this can be seen.
    """
    recipes = toys.recipes(1.0, 1.0, clip_norm=1.0, eps=1.0)
    params = one([0.0, 0.0], [0.0, 0.0], [0.0])
    small, huge = one([0.3, 0.4], [0.3, 0.4], [0.1]), one([0.3, 0.4], [3e4, 4e4], [0.1])
    moved = [
        optim.apply_ascent(recipes, start(recipes, params), ascent)[0].params
        for ascent in (small, huge)
    ]
    assert toys.same_bits(moved[0].theta, moved[1].theta) and toys.same_bits(moved[0].w, moved[1].w)

    together = optim.adamw(recipes.base)
    lone = [
        together.update(jax.tree.map(jnp.negative, ascent), together.init(params), params)[0]
        for ascent in (small, huge)
    ]
    assert np.abs(lone[1].theta["x"]).max() < 1e-3 * np.abs(lone[0].theta["x"]).max()


def test_theta_and_its_shadow_share_one_recipe():
    """Equal directions keep them equal bit for bit, warm-up, decay and all; w follows the other
    recipe.
    """
    recipes = Recipes(
        Recipe(
            learning_rate=0.1, warmup_steps=2, schedule="cosine", decay_steps=5, weight_decay=0.1
        ),
        Recipe(learning_rate=0.3),
        matrices=toys.MATRICES,
    )
    theta = toys.bigram_theta()
    state = start(recipes, Params(theta, jax.tree.map(jnp.copy, theta), {"x": jnp.ones(3)}))
    move = jax.jit(
        lambda state, G: optim.apply_ascent(recipes, state, Params(G, G, {"x": jnp.ones(3)}))[0]
    )
    for seed in range(6):
        state = move(state, toys.noise_like(theta, seed, 1.0))
        assert toys.same_bits(state.params.theta, state.params.theta_hat)
    assert toys.change(state.params.theta, theta) > 0.1


@pytest.mark.parametrize("bad", ["theta", "theta_hat", "w", "value"])
@pytest.mark.parametrize("what", [np.nan, np.inf])
def test_non_finite_skips_everything(bad, what):
    """One bad number anywhere: no part moves, no optimizer state changes, the step still counts,
    and it is reported.
    """
    recipes = toys.recipes()
    state = start(recipes, one([1.0, 2.0], [1.0, 2.0], [3.0]))
    state, _ = optim.apply_ascent(recipes, state, one([0.1, 0.2], [0.1, 0.2], [0.3]))
    gradient = {"theta": [0.1, 0.2], "theta_hat": [0.1, 0.2], "w": [0.3]}
    value = what if bad == "value" else 0.5
    if bad != "value":
        gradient[bad] = [what, *gradient[bad][1:]]
    after, metrics = jax.jit(lambda s, g, v: optim.apply_ascent(recipes, s, g, (v,)))(
        state, one(**gradient), jnp.float32(value)
    )
    assert toys.same_bits((after.params, after.opt_state), (state.params, state.opt_state))
    assert after.step == state.step + 1 and metrics["update/skipped"] == 1


@pytest.mark.parametrize("family", params.families())
def test_weight_decay_reaches_matrices_alone(family):
    """Zero gradients: a step is the decay alone. Stacked norms and biases stay; projections,
    embedding, head, A and B shrink.
    """
    tree, matrices, vectors = declared(family, size=2, layers=3)
    recipe = Recipe(learning_rate=0.5, weight_decay=0.5, clip_norm=0.0)
    tx = Recipes(recipe, recipe, matrices=matrices).optimizer()

    def step(tree):
        zeros = jax.tree.map(jnp.zeros_like, tree)
        updates, _ = tx.update(zeros, tx.init(tree), tree)
        return jax.tree.map(lambda x: x.reshape(-1)[0], updates)

    ones = jax.tree.map(lambda x: jnp.ones(x.shape), tree)
    found = by_name(jax.jit(step)(ones))
    decayed = {name for name, change in found.items() if change}
    assert all(float(found[name]) == -0.25 for name in decayed)
    assert found.keys() - decayed == vectors
    assert {"theta/embed", "theta/head", "theta_hat/layers/o", "w/layers/o/A"} <= decayed
