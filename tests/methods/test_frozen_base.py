"""Every method over a frozen base: w takes the pull of the method's own direction, theta stays."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax import methods, objectives
from bridge_jax.methods import frozen_base
from bridge_jax.optim import Recipe, Recipes
from bridge_jax.types import Batch
from tests import errors, toys
from tests.methods.test_conformance import make_batch

RATE, EPS = 1.0, 1e3
# nearly w += RATE / EPS * G; a base recipe that would show if it were read
LINEAR = Recipe(learning_rate=RATE, eps=EPS, clip_norm=0.0, b1=0.0)
RECIPES = Recipes(Recipe(learning_rate=9.0, weight_decay=0.5), LINEAR, matrices=toys.MATRICES)
PLAIN = Recipes(LINEAR, Recipe(learning_rate=9.0))
FIELDS = {"cold_start": {"sft_steps": 1, "kl_coef": 0.1}, "grpo": {"kl_coef": 0.1}}
W = {"A": (toys.V, toys.RANK), "B": (toys.RANK, toys.V)}


def trains_theta_alone(name: str) -> bool:
    """Whether the method's state has no adapter and no shadow."""
    state = jax.eval_shape(plain(name).init, toys.bigram_theta(), jax.random.key(0))
    return state.params.w is None and state.params.theta_hat is None


def make(name: str, recipes=RECIPES, policy=None, microbatch_rows: int = 0, **fields):
    """The method, for w alone."""
    of_w = frozen_base.adapter_alone(methods.load(name).make, name)
    cfg = toys.method_config(name, **(FIELDS.get(name, {}) | fields))
    return of_w(cfg, policy or toys.bigram(), recipes, microbatch_rows)


def plain(name: str):
    """The method of theta, whose direction in phi is the reference."""
    cfg = toys.method_config(name, **FIELDS.get(name, {}))
    return methods.load(name).make(cfg, toys.bigram(), PLAIN)


OF_THETA = [name for name in methods.names() if trains_theta_alone(name)]


def some_w(seed: int = 1):
    """An adapter away from its start, where B is 0."""
    rng = np.random.default_rng(seed)
    return {key: jnp.asarray(rng.standard_normal(shape), jnp.float32) for key, shape in W.items()}


def moved(new, old):
    """The direction of a nearly linear update."""
    return jax.tree.map(lambda a, b: np.asarray(a - b, np.float64) * EPS / RATE, new, old)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("sft", "grpo", "hybrid") else pytest.mark.slow)
        for name in OF_THETA
    ],
)
def test_w_takes_the_pull_of_the_methods_direction(name):
    """The change of w is the pull of what the method does to theta at phi = merge(theta, w); theta
    keeps its bits, also in the step after, and in another dtype than w's.
    """
    policy, w = toys.bigram(), some_w()
    theta = jax.tree.map(lambda x: x.astype(jnp.bfloat16), toys.bigram_theta())
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), theta)
    method, reference = make(name), plain(name)
    state = method.init(theta, jax.random.key(0))
    assert toys.same_bits(method.policy(state.params), wide)
    phi, batch = policy.merge(wide, w), make_batch(method, 0)
    start = state.replace(params=state.params.replace(w=w))
    update = jax.jit(method.update)
    new, metrics = update(start, batch)
    init = reference.init(phi, jax.random.key(0))
    # the reference policy of both is the base
    init = init if init.ref is None else init.replace(ref=wide)
    expected, known = jax.jit(reference.update)(init, batch)
    G = moved(expected.params.theta, phi)
    assert max(np.abs(x).max() for x in jax.tree.leaves(policy.pull(w, G))) > 0.01
    for key, direction in policy.pull(w, G).items():
        np.testing.assert_allclose(moved(new.params.w, w)[key], direction, rtol=0, atol=2e-3)
    own = {"grad/norm_w", "lr/lora"}
    assert set(metrics) - own == set(known) - {"grad/norm_theta", "lr/base"} and own < set(metrics)
    assert metrics["lr/lora"] == RATE and metrics["update/skipped"] == 0
    for value in ("rl/J", "sft/logp", "rollout/kl_ref"):
        if value in known:
            np.testing.assert_allclose(metrics[value], known[value], rtol=1e-5)
    after, _ = update(new, make_batch(method, 1))
    assert toys.same_bits(after.params.theta, theta) and after.step == 2
    assert not toys.same_bits(after.params.w, new.params.w)
    shape = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shape(after) == shape(start)


def test_the_state_holds_moments_of_w_alone():
    """Of theta there are neither moments nor a copy; a reference is one of w."""
    state = make("grpo").init(toys.bigram_theta(), jax.random.key(0))
    sizes = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert sizes == 2 * sum(leaf.size for leaf in jax.tree.leaves(state.params.w))
    assert jax.tree.structure(state.ref) == jax.tree.structure(state.params.w)
    names = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if leaf.ndim
    ]
    assert names and all("['lora']" in name and ".w['" in name for name in names)


@pytest.mark.slow
def test_gradient_of_a_model_by_jax_grad():
    """SFT of a transformer's adapter in micro-batches, over bfloat16 weights: the gradient in w of
    the objective as jax.grad gives it, and w with weight decay and factored moments is declared.
    """
    policy = toys.transformer()
    theta = jax.tree.map(lambda x: x.astype(jnp.bfloat16), toys.transformer_theta())
    w = toys.noise_like(policy.init_w(jax.random.key(1)), 2, 0.3)
    demos = toys.sequences(3, 8, 1)
    method = make("sft", policy=policy, microbatch_rows=4)
    state = method.init(theta, jax.random.key(0))
    state = state.replace(params=state.params.replace(w=w))
    new, _ = jax.jit(method.update)(state, Batch(demos, {}))
    J = objectives.J_SFT(policy, demos)
    expected = jax.jit(jax.grad(lambda w: J(policy.merge(theta, w), demos, {})[0]))(w)
    assert toys.change(moved(new.params.w, w), expected) < 2e-2
    assert toys.same_bits(new.params.theta, theta)
    low = Recipe(weight_decay=0.1, moments="factored")
    method = make("sft", Recipes(low, low, matrices=toys.MATRICES), policy)
    jax.eval_shape(method.init, theta, jax.random.key(0))


def test_gradients_of_w_are_grouped_by_layers():
    """The alignment of SFT and RL is logged for early and late layers, as with theta."""
    pair = {"A": jnp.ones((3, 4, 2)), "B": jnp.zeros((3, 2, 4))}
    found = objectives.by_layer_group({"layers/q": pair}, {"layers/q": pair})
    assert {key: float(value) for key, value in found.items()} == dict(early=8, middle=8, late=8)


@pytest.mark.parametrize("name", ["bridge", "joint"])
def test_methods_with_parts_of_their_own_are_refused(name):
    """Where the method is made, before any weights are read; the message names the way out."""
    with errors.raises(ValueError, "method.train='w'", repr(name), "hybrid"):
        make(name)


def test_a_method_with_a_shadow_is_refused():
    """One that asks for no adapter, but has a copy of theta to train."""
    sft = methods.load("sft")

    def with_shadow(*given):
        method = sft.make(*given)

        def init(theta, key):
            state = method.init(theta, key)
            return state.replace(params=state.params.replace(theta_hat=theta))

        return type(method)(init, method.update, method.policy, method.step_kinds)

    of_w = frozen_base.adapter_alone(with_shadow, "mine")
    with errors.raises(ValueError, "'mine'"):
        of_w(sft.Config(), toys.bigram(), RECIPES)


def test_learns():
    """GRPO of the adapter alone, on freshly sampled answers: the expected reward rises."""
    method = make("grpo", toys.recipes(0.0, 0.1), kl_coef=0.0)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, key):
        batch = toys.bigram_batch({"theta": method.policy(state.params)}, key)
        return method.update(state, Batch(None, batch.rollouts))[0]

    state = method.init(toys.bigram_theta(), jax.random.key(0))
    before = toys.bigram_success(method.policy(state.params))
    for key in jax.random.split(jax.random.key(1), 60):
        state = step(state, key)
    assert toys.bigram_success(method.policy(state.params)) > max(0.4, before + 0.2)
