"""What BRIDGE is meant to ascend, in float64: the analytic bilevel problem, finite differences, and
the exact estimator.

Everything here goes through `bridge.step` and the objectives that `bridge.update` gives it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax import objectives, optim
from bridge_jax.methods import bridge
from bridge_jax.types import Params, Policy, Rollouts, Sequences
from tests import toys


@pytest.fixture(autouse=True)
def float64():
    """fp64 in this file alone."""
    with jax.enable_x64(True):
        yield


# ---- the quadratic problem of METHOD section 5: merge is the pair, the base's slot for w is
# ignored

PAIR = Policy(
    logp=None,
    merge=lambda theta, w: {"theta": theta, "w": w},
    pull=lambda w, G: G["w"],
    init_w=None,
)


def problem(seed: int, n: int = 3, m: int = 2) -> dict:
    """Random a, b, C, d; c and e must not matter."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape))
    return dict(a=draw(n), b=draw(n), C=draw(n, m), d=draw(m), c=0.7, e=draw(m))


def fixed_point(p: dict, lam: float):
    """theta, theta_hat, w in closed form."""
    C, a, b, d = (np.asarray(p[key]) for key in "Cabd")
    w = np.linalg.solve(np.eye(C.shape[1]) + lam * C.T @ C, d + lam * C.T @ (b - a))
    return (1 - lam) * b + lam * (C @ w + a), C @ w + a, w


def ascend(
    p: dict,
    lam: float,
    hat_in_w: float = 1.0,
    hat_rate: float = 1.0,
    steps: int = 4000,
    rate: float = 0.1,
):
    """Plain gradient ascent by bridge.step. hat_in_w 0 drops the shadow's gradient from w; hat_rate
    -1 flips its step.
    """
    square = lambda x: jnp.sum(x**2)
    J_RL = lambda phi: (
        -square(phi["theta"] - p["C"] @ phi["w"] - p["a"]) / 2
        - p["c"] / 2 * square(phi["w"] - p["e"])
    )
    J_SFT = lambda phi: -square(phi["theta"] - p["b"]) / 2 - square(phi["w"] - p["d"]) / 2
    grad = lambda J: lambda phi, *_: (jax.grad(J)(phi), J(phi), {})

    def hat(phi, *_):
        G, J, aux = grad(J_RL)(phi)
        return G | {"w": hat_in_w * G["w"]}, J, aux

    def step(params, _):
        up = toys.directions(grad(J_RL), grad(J_SFT), hat, lam=lam, params=params, policy=PAIR)
        return Params(
            params.theta + rate * up.theta["theta"],
            params.theta_hat + hat_rate * rate * up.theta_hat["theta"],
            params.w + rate * up.w,
        ), None

    theta = jnp.zeros(p["a"].shape)
    end, _ = jax.jit(lambda start: jax.lax.scan(step, start, length=steps))(
        Params(theta, theta, jnp.zeros(p["d"].shape))
    )
    return np.asarray(end.theta), np.asarray(end.theta_hat), np.asarray(end.w)


@pytest.mark.parametrize("lam", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bilevel_fixed_point(seed, lam):
    """The closed form to 1e-6; c and e, which only the upper level sees, change nothing."""
    p = problem(seed)
    expected = fixed_point(p, lam)
    for found in (ascend(p, lam), ascend(p | {"c": 3.0, "e": p["e"] + 5.0}, lam)):
        for a, b in zip(found, expected):
            np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("lam", [0.2, 0.5, 0.8])
def test_without_the_shadow_the_fixed_point_is_missed(lam):
    """Dropping theta_hat from w's direction ends elsewhere, and then c and e do matter."""
    p = problem(0)
    found, elsewhere = (
        ascend(p, lam, hat_in_w=0.0),
        ascend(p | {"e": p["e"] + 5.0}, lam, hat_in_w=0.0),
    )
    assert (
        np.abs(found[2] - fixed_point(p, lam)[2]).max() > 0.02
        and np.abs(found[2] - elsewhere[2]).max() > 0.2
    )


def test_a_descending_shadow_diverges():
    """The minus sign that some print."""
    assert not np.abs(ascend(problem(0), 0.5, hat_rate=-1.0, steps=500)[1]).max() < 1e6


# ---- directions against finite differences


def test_directions_are_the_gradients_of_their_objectives():
    """Central differences on the table, theta_hat elsewhere: of (1-lam) J_SFT + lam J_RL in theta,
    of J_RL in theta_hat, and of (1-lam) J_SFT + lam (J_RL(theta, w) - J_RL(theta_hat, w)) in w, as
    each is estimated from theta's samples.
    """
    policy, lam, batch = toys.bigram(), 0.3, toys.batch(0, vocab=toys.V)
    rolled, demos = batch.rollouts["theta"], batch.demos
    double = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)
    w = double(toys.noise_like({"A": np.zeros((toys.V, 2)), "B": np.zeros((2, toys.V))}, 3, 0.5))
    params = double(Params(toys.bigram_theta(0), toys.bigram_theta(1), w))
    A_B = objectives.group_advantages(rolled.reward_B, 4)
    sampled_BT = toys.bigram_logp(policy.merge(params.theta, w), rolled.seqs, 1.0)[0]
    ref_BT = toys.bigram_logp(double(toys.bigram_theta(2)), rolled.seqs, 1.0)[0]
    rows = {"A_B": A_B, "ref_BT": ref_BT, "behaviour_BT": sampled_BT}
    J_SFT = objectives.J_SFT(policy, demos)
    # without the KL: its off-policy ratio is held constant in the gradient, so differences would
    # not show the same
    J_RL = objectives.J_RL(policy, rolled, objectives.surrogate)
    value = lambda J, theta, w, seqs: J(policy.merge(theta, w), seqs, rows)[0]
    upper = lambda p: (
        (1 - lam) * value(J_SFT, p.theta, p.w, demos) + lam * value(J_RL, p.theta, p.w, rolled.seqs)
    )
    gain = lambda p: upper(p) - lam * value(J_RL, p.theta_hat, p.w, rolled.seqs)
    lower = lambda p: value(J_RL, p.theta_hat, p.w, rolled.seqs)

    exact = lambda J, seqs: (
        lambda phi, *_: (jax.grad(lambda phi: J(phi, seqs, rows)[0])(phi), 0.0, {})
    )
    up = toys.directions(
        exact(J_RL, rolled.seqs),
        exact(J_SFT, demos),
        exact(J_RL, rolled.seqs),
        lam=lam,
        params=params,
        policy=policy,
    )
    for part, J in (("theta", upper), ("theta_hat", lower), ("w", gain)):
        for seed in range(3):
            along = toys.noise_like(getattr(params, part), seed, 1.0)
            moved = lambda h: J(
                params.replace(
                    **{part: jax.tree.map(lambda x, d: x + h * d, getattr(params, part), along)}
                )
            )
            slope = float(moved(1e-5) - moved(-1e-5)) / 2e-5
            np.testing.assert_allclose(
                objectives.inner_product(getattr(up, part), along), slope, rtol=1e-6, atol=1e-9
            )


@pytest.mark.parametrize("storage", ["full", "difference"])
def test_update_applies_these_directions(storage):
    """bridge.update's first moments are 0.1 times the directions, for theta, theta_hat and w,
    theta_hat elsewhere; all three are taken at the iterate before, although theta moves first, and
    what is stored of theta_hat has followed both moves.
    """
    policy, lam, batch = toys.bigram(), 0.3, toys.batch(0, vocab=toys.V)
    single = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    w = single(toys.noise_like({"A": np.zeros((toys.V, 2)), "B": np.zeros((2, toys.V))}, 3, 0.5))
    apart = jax.tree.map(
        lambda there, here: ((there - here) / 8).astype(jnp.bfloat16),
        toys.bigram_theta(1),
        toys.bigram_theta(0),
    )
    params = Params(
        toys.bigram_theta(0),
        jax.tree.map(lambda t, d: t + d.astype(t.dtype), toys.bigram_theta(0), apart),
        w,
    )
    recipes = toys.recipes(clip_norm=0.0)
    method = bridge.make(
        toys.method_config("bridge", lam=lam, kl_coef=0.2, shadow__storage=storage), policy, recipes
    )
    stored = params if storage == "full" else params.replace(theta_hat=apart)
    state = method.init(toys.bigram_theta(2), jax.random.key(0)).replace(params=stored)
    after, _ = jax.jit(method.update)(state, batch)

    rolled = batch.rollouts["theta"]
    term = objectives.surrogate
    J_SFT, J_RL = objectives.J_SFT(policy, batch.demos), objectives.J_RL(policy, rolled, term, 0.2)
    rows = {
        "A_B": objectives.group_advantages(rolled.reward_B, 4),
        "ref_BT": toys.bigram_logp(state.ref, rolled.seqs, 1.0)[0],
    }
    rows["behaviour_BT"] = toys.bigram_logp(policy.merge(params.theta, w), rolled.seqs, 1.0)[0]
    grad = lambda J, theta, seqs: jax.grad(lambda phi: J(phi, seqs, rows)[0])(
        policy.merge(theta, w)
    )["table"]
    G = (1 - lam) * grad(J_SFT, params.theta, batch.demos) + lam * grad(
        J_RL, params.theta, rolled.seqs
    )
    G_hat = grad(J_RL, params.theta_hat, rolled.seqs)
    D = G - lam * G_hat
    states = after.opt_state.inner_states
    mu = lambda label: next(
        s.mu
        for s in jax.tree.leaves(states[label], is_leaf=lambda x: hasattr(x, "mu"))
        if hasattr(s, "mu")
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7)
    close(-10 * mu("base").theta["table"], G)
    if storage == "difference":  # rounded to bfloat16 when theta moved, before theta_hat's pass
        close = functools.partial(
            np.testing.assert_allclose, rtol=0, atol=2e-3 * np.abs(G_hat).max()
        )
    close(-10 * mu("shadow").theta_hat["table"], G_hat)
    close(-10 * mu("lora").w["A"], D @ w["B"].T)
    close(-10 * mu("lora").w["B"], w["A"].T @ D)
    rate, found = recipes.base.learning_rate, optim.STORAGE[storage].read(after.params)
    for part, up in (
        ("theta", G),
        ("theta_hat", G_hat),
    ):  # Adam's first step is the sign of the direction
        moved = getattr(found, part)["table"] - getattr(params, part)["table"]
        error = np.max(np.abs(moved - rate * np.sign(up) * (np.abs(up) > 1e-6)))
        assert error < (1e-5 if storage == "full" or part == "theta" else 2**-8), (
            part,
            error,
        )  # bfloat16 of differences below 1


# ---- the estimator at theta_hat, exact: every sequence enumerated instead of sampled


def everything(P: int, tokens: int, T: int, table, reward_PB) -> Rollouts:
    """All tokens**T completions of each one-token prompt; row weights pi * count make the batch
    mean an expectation.
    """
    all_BT = np.stack(np.meshgrid(*[np.arange(tokens)] * T, indexing="ij"), axis=-1).reshape(-1, T)
    n = len(all_BT)
    seqs = Sequences(
        jnp.arange(P)[:, None],
        jnp.ones(P, int),
        jnp.asarray(np.tile(all_BT, (P, 1))),
        jnp.full(P * n, T),
    )
    return Rollouts(
        seqs,
        toys.bigram_logp(table, seqs, 1.0)[0],
        jnp.asarray(reward_PB).reshape(-1),
        jnp.asarray(1.0),
    )


def estimates(T: int, distance: float, seed: int = 0, P: int = 3, tokens: int = 4) -> dict:
    """Expected G_hat per estimator, and the exact policy gradient at theta_hat, as flat arrays."""
    rng = np.random.default_rng(seed)
    table = {"table": jnp.asarray(rng.standard_normal((tokens, tokens)))}
    hat = {"table": table["table"] + distance * rng.standard_normal((tokens, tokens))}
    rolled = everything(P, tokens, T, table, rng.integers(0, 2, (P, tokens**T)).astype(float))
    n = tokens**T
    behaviour_BT = rolled.logp_BT
    chance = lambda logp_BT: jnp.exp(logp_BT.sum(axis=1))
    J = lambda phi: (
        jnp.sum(chance(toys.bigram_logp(phi, rolled.seqs, 1.0)[0]) * rolled.reward_B) / P
    )
    # mean-centred per prompt under theta, as a group's baseline is
    centred = rolled.reward_B - jnp.repeat(
        (chance(behaviour_BT) * rolled.reward_B).reshape(P, n).sum(axis=1), n
    )
    A_B = chance(behaviour_BT) * n * T * centred  # J_RL divides by P n T tokens
    policy = toys.bigram()

    def G(term, rows):
        J_hat = objectives.J_RL(policy, rolled, term)
        found = jax.grad(lambda phi: J_hat(phi, rolled.seqs, {"A_B": A_B} | rows)[0])(hat)
        return np.asarray(found["table"]).reshape(-1)

    behaved = {"behaviour_BT": behaviour_BT}
    clipped = functools.partial(objectives.clipped_surrogate, low=0.2, high=0.2)
    return {
        "exact": np.asarray(jax.grad(J)(hat)["table"]).reshape(-1),
        "ours": G(objectives.surrogate, behaved),
        "clipped": G(clipped, behaved),
        "no ratio": G(objectives.surrogate, {}),
    }


def cosine(a, b) -> float:
    """Of two flat arrays."""
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.fixture
def far():
    """8 problems of one token, theta_hat far away."""
    return [estimates(T=1, distance=3.0, seed=seed) for seed in range(8)]


def mean_cosine(many: list, name: str) -> float:
    """Of an estimator with the exact gradient."""
    return np.mean([cosine(found[name], found["exact"]) for found in many])


def test_importance_weighting_is_exact_for_one_token(far):
    """The expected G_hat is the policy gradient AT theta_hat. Measured mean cosines: clipped .55,
    without a ratio .67.
    """
    for found in far:
        np.testing.assert_allclose(found["ours"], found["exact"], rtol=1e-6, atol=1e-9)
    assert mean_cosine(far, "clipped") < 0.65 and mean_cosine(far, "no ratio") < 0.75


@pytest.mark.slow
def test_importance_weighting_of_longer_sequences():
    """3 tokens: the ratio is per token, not of the prefix, so no longer exact. Measured .85,
    clipped .23, without .71.
    """
    many = [estimates(T=3, distance=1.0, seed=seed) for seed in range(8)]
    assert (
        mean_cosine(many, "ours")
        > 0.8
        > mean_cosine(many, "no ratio")
        > mean_cosine(many, "clipped")
    )
    on_policy = estimates(T=3, distance=0.0)
    np.testing.assert_allclose(on_policy["ours"], on_policy["exact"], rtol=1e-6, atol=1e-9)
