"""The methods that BRIDGE is compared with: first updates by hand, and the equalities between them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax import methods
from bridge_jax.optim import Recipe, Recipes
from bridge_jax.types import Batch, Rollouts, Sequences
from tests import toys

RATE = 0.1
PLAIN = Recipes(
    *[Recipe(learning_rate=RATE, eps=1e3, clip_norm=0.0, b1=0.0)] * 2
)  # theta += RATE / 1000 * G, nearly
UNIFORM = {"table": jnp.zeros((toys.V, toys.V))}
P_TOKEN = 1 / toys.V
e = np.eye(toys.V) - P_TOKEN  # e[t]: gradient of log pi(t) in the row of the token before it
A = (
    0.5 / 0.5**0.5
)  # of a right sample beside a wrong one: their rewards have an unbiased variance of 1/2


def rows(prompts, tokens) -> Sequences:
    """One-token prompts; completions as lists of tokens, those of a prompt contiguous."""
    T, ints = max(map(len, tokens)), lambda x: jnp.asarray(x, jnp.int32)
    padded = [[*row, *[0] * (T - len(row))] for row in tokens]
    return Sequences(
        ints(prompts)[:, None],
        jnp.ones(len(prompts), jnp.int32),
        ints(padded),
        ints([len(row) for row in tokens]),
    )


def batch(prompts=(0,), tokens=((1,), (2,)), reward=(1, 0), asked=(0,), experts=((3,),)) -> Batch:
    """By default prompt 0 with a right sample 1 and a wrong sample 2, and its expert 3; one token each."""
    seqs = rows(prompts, tokens)
    rolled = Rollouts(
        seqs, jnp.zeros(seqs.tokens_BT.shape), jnp.asarray(reward, jnp.float32), jnp.float32(1.0)
    )
    return Batch(rows(asked, experts), {"theta": rolled})


def made(name: str, recipes=PLAIN, **fields):
    module = methods.load(name)
    return module.make(toys.method_config(name, **fields), toys.bigram(), recipes)


def G_of(name: str, given: Batch = None, theta=UNIFORM, **fields) -> np.ndarray:
    """The direction [V,V] of theta in the first update."""
    method = made(name, **fields)
    spec = method.batch_spec(0)
    given = given or batch()
    given = Batch(given.demos if spec.demos else None, given.rollouts if spec.sampled_by else {})
    state, metrics = jax.jit(method.update)(method.init(theta, jax.random.key(0)), given)
    assert metrics["update/skipped"] == 0
    return (
        (
            np.asarray(state.params.theta["table"], np.float64)
            - np.asarray(theta["table"], np.float64)
        )
        * 1e3
        / RATE
    )


def close(G, first, second=0.0):
    """G has these rows 0 and 1, and nothing else."""
    expected = np.zeros((toys.V, toys.V))
    expected[0], expected[1] = first, second
    np.testing.assert_allclose(G, expected, rtol=3e-3, atol=2e-4)


def test_hybrid():
    """A / 2 of (e1 - e2), and mu times the expert's e3."""
    close(G_of("hybrid", mu=2.0), A * (e[1] - e[2]) / 2 + 2 * e[3])
    close(G_of("hybrid", mu=0.0), A * (e[1] - e[2]) / 2)
    close(G_of("hybrid", mu=2.0, advantage="mean"), (e[1] - e[2]) / 4 + 2 * e[3])


def test_chord():
    """(1 - mu) and mu; phi weighs the expert's token by p (1 - p) = 5/36."""
    close(G_of("chord", mu=0.9), 0.1 * A * (e[1] - e[2]) / 2 + 0.9 * e[3])
    weight = P_TOKEN * (1 - P_TOKEN)
    close(
        G_of("chord", mu=0.1, weighting="phi"),
        0.9 * A * (e[1] - e[2]) / 2 + 0.1 * weight * e[3],
    )


def test_chord_falls_by_a_cosine():
    """mu at steps 0, half and end: 0.9, the middle, 0.05, and there it stays."""
    method = made("chord", mu_schedule__steps=10)
    start, update = method.init(UNIFORM, jax.random.key(0)), jax.jit(method.update)
    seen = [
        float(update(start.replace(step=jnp.int32(step)), batch())[1]["chord/mu"])
        for step in (0, 5, 10, 99)
    ]
    np.testing.assert_allclose(seen, [0.9, 0.475, 0.05, 0.05], rtol=1e-6)


def test_luffy():
    """Rewards 1, 0 and the expert's 1: A = 1/3, -2/3, 1/3 over three tokens; f'(p) p = gamma p / (p + gamma)^2."""
    slope = 0.1 * P_TOKEN / (P_TOKEN + 0.1) ** 2
    close(G_of("luffy"), (e[1] / 3 - 2 * e[2] / 3 + slope * e[3] / 3) / 3)


def test_luffy_learns_from_the_expert_where_every_sample_fails():
    """Rewards 0, 0: A = -1/3, -1/3, 2/3, so the expert is still learned; where all are right there is nothing to learn."""
    slope = 0.1 * P_TOKEN / (P_TOKEN + 0.1) ** 2
    close(G_of("luffy", batch(reward=(0, 0))), (-e[1] - e[2] + 2 * slope * e[3]) / 9)
    close(G_of("luffy", batch(reward=(1, 1))), 0.0)


def test_srft():
    """H = log 6 on both sides: 0.5 / 6 and A p on the expert, A = (1/3) / sqrt(1/3); 0.1 * 6 on the right sample, -1 on the wrong."""
    A = (1 / 3) / np.sqrt(1 / 3)
    close(G_of("srft"), 0.5 * P_TOKEN * e[3] + A * P_TOKEN * e[3] + (0.6 * e[1] - e[2]) / 2)


def test_srft_entropy_is_a_weight():
    """Where H has a gradient, none flows through it: probabilities 1/2 and five of 1/10, so e^H = 2^(1/2) 10^(1/2)."""
    p = np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    sharp = {"table": UNIFORM["table"].at[0].set(jnp.log(p))}
    score, A, e_H = np.eye(toys.V) - p, (1 / 3) / np.sqrt(1 / 3), np.sqrt(20)
    G = (0.5 / e_H + A * 0.1) * score[3] + (0.1 * e_H * score[1] - score[2]) / 2
    np.testing.assert_allclose(
        G_of("srft", theta=sharp)[0], G, rtol=3e-3, atol=3e-3
    )  # a step of a table that is not 0 rounds


def test_hpt():
    """Prompt 0 is solved once: GRPO with A = +-1/2; prompt 1 never: its expert 4. Each half counts by its share of prompts."""
    two = batch((0, 1), ((1,), (2,), (3,), (5,)), (1, 0, 0, 0), (0, 1), ((3,), (4,)))
    close(G_of("hpt", two), 0.5 * (e[1] - e[2]) / 4, 0.5 * e[4])
    close(G_of("hpt", two, advantage="group"), 0.5 * A * (e[1] - e[2]) / 2, 0.5 * e[4])
    solved = batch((0, 1), ((1,), (2,), (3,), (5,)), (1, 0, 1, 0), (0, 1), ((3,), (4,)))
    close(G_of("hpt", solved), (e[1] - e[2]) / 8, (e[3] - e[5]) / 8)


def test_hpts_gate():
    """One of prompt 0's three samples is right, two of prompt 1's: with a gate of 1 prompt 0 goes to its expert, its samples
    count no more; with one of 3 RL would never take place."""
    tokens = ((1,), (2,), (4,), (3,), (3,), (5,))
    given = batch((0, 1), tokens, (1, 0, 0, 1, 1, 0), (0, 1), ((3,), (4,)))
    right = (2 * e[3] - 2 * e[5]) / 9  # A = 1/3, 1/3 and -2/3 over three tokens
    close(G_of("hpt", given, gate=1), 0.5 * e[3], 0.5 * right)
    close(G_of("hpt", given), (2 * e[1] - e[2] - e[4]) / 18, right / 2)
    with pytest.raises(ValueError, match="gate=3 of batch.samples_per_prompt=3"):
        G_of("hpt", given, gate=3)


def test_gspo():
    """Samples [1, 1] and [2]: each counts a half, the tokens of the first a quarter each."""
    uneven = batch(tokens=((1, 1), (2,)))
    close(G_of("gspo", uneven), A * (e[1] / 2 - e[2]) / 2, A * e[1] / 4)


def test_gspo_clips_whole_sequences():
    """After a strong first update both sequences are outside the narrow clip: the second finds nothing."""
    recipes = Recipes(Recipe(learning_rate=3e3, eps=1e3, clip_norm=0.0, b1=0.0, b2=0.0), Recipe())
    method = made("gspo", recipes, updates_per_batch=2)
    _, metrics = jax.jit(method.update)(
        method.init(UNIFORM, jax.random.key(0)), batch().replace(demos=None)
    )
    assert metrics["grad/norm_theta"] == 0
    assert (
        metrics["rl/clip_fraction"] == 0.5
    )  # all of it in the second update, nothing in the first
    wide = made("gspo", recipes, updates_per_batch=2, clip_low=10.0, clip_high=10.0)
    _, metrics = jax.jit(wide.update)(
        wide.init(UNIFORM, jax.random.key(0)), batch().replace(demos=None)
    )
    assert metrics["grad/norm_theta"] > 0.1 and metrics["rl/clip_fraction"] == 0


@pytest.mark.parametrize(
    "name, low, high",
    [
        ("grpo", "clip_low", "clip_high"),
        ("dr_grpo", "clip_low", "clip_high"),
        ("dapo", "clip_low", "clip_high"),
        ("gspo", "clip_low", "clip_high"),
    ],
)
def test_each_side_of_the_clip(name, low, high):
    """A second update on one batch, r above 1 for the right answer and below for the wrong: `high` bounds the first alone, `low`
    the second. What is left is r A / 2 times onehot - p, of which the norm is known; half of the second update's tokens are cut,
    none of the first one's."""
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
    """Falling to 0 over 2 steps: with 2 updates a step the second step still learns, at half the rate."""
    falling = Recipe(learning_rate=0.1, schedule="linear", decay_steps=2)
    method = made(name, Recipes(falling, Recipe()), updates_per_batch=2)
    update, state = jax.jit(method.update), method.init(UNIFORM, jax.random.key(0))
    seen = []
    for _ in range(3):
        before = state.params.theta
        state, metrics = update(state, batch().replace(demos=None))
        seen.append((float(metrics["lr/base"]), toys.same_bits(before, state.params.theta)))
    assert seen == [(pytest.approx(0.1), False), (pytest.approx(0.05), False), (0.0, True)]


def test_dr_grpo():
    """A = +-1/2 without the deviation; divided by 2 samples x 3 positions, not by the 3 tokens there are."""
    uneven = batch(tokens=((1, 1, 1), (2,)))
    close(G_of("dr_grpo", uneven), (e[1] - e[2]) / 12, 2 * e[1] / 12)


def run(name: str, steps: int, recipes=toys.recipes(0.1, 0.1), **fields):
    """States after each step on the same batches."""
    method, states = made(name, recipes, **fields), []
    state = method.init(toys.bigram_theta(), jax.random.key(0))
    for step in range(steps):
        spec, given = method.batch_spec(step), toys.batch(step, vocab=toys.V)
        given = Batch(
            given.demos if spec.demos else None,
            {"theta": given.rollouts["theta"]} if spec.sampled_by else {},
        )
        state, _ = jax.jit(method.update)(state, given)
        states.append(state)
    return method, states


def test_alternate_is_grpo_then_sft():
    """Bit for bit: step 0 is grpo's, step 1 is what sft makes of that state; and so on."""
    method, states = run("alternate", 2)
    assert [method.batch_spec(step) for step in range(4)] == [(("theta",), False), ((), True)] * 2
    assert toys.same_bits(states[0], run("grpo", 1)[1][0])
    expert = made("sft", toys.recipes(0.1, 0.1))
    after, _ = jax.jit(expert.update)(states[0], Batch(toys.batch(1, vocab=toys.V).demos, {}))
    assert toys.same_bits(states[1], after)


def test_cold_start_is_sft_then_grpo_with_a_fresh_optimizer():
    """Bit for bit; with a KL term, to the policy that SFT made."""
    for fields in ({}, {"kl_coef": 0.1}):
        method, states = run("cold_start", 4, sft_steps=2, **fields)
        assert [method.batch_spec(step) for step in (0, 1, 2, 9)] == [((), True)] * 2 + [
            (("theta",), False)
        ] * 2
        assert toys.same_bits(states[1].params, run("sft", 2)[1][1].params)
        rl = made("grpo", toys.recipes(0.1, 0.1), **fields)
        state = rl.init(states[1].params.theta, jax.random.key(0)).replace(step=jnp.int32(2))
        for step in (2, 3):
            given = toys.batch(step, vocab=toys.V)
            state, _ = jax.jit(rl.update)(state, Batch(None, {"theta": given.rollouts["theta"]}))
            assert toys.change(states[step].params, state.params) < 1e-6
            assert toys.change(states[step].opt_state, state.opt_state) < 1e-5
    assert toys.same_bits(
        run("cold_start", 2, sft_steps=0)[1][1].params, run("grpo", 2)[1][1].params
    )


def random_batch() -> Batch:
    given = toys.batch(3, vocab=toys.V)
    return Batch(given.demos, {"theta": given.rollouts["theta"]})


@pytest.mark.parametrize("lam", [0.25, 0.5, 0.8])
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


@pytest.mark.parametrize("mu", [0.2, 0.5])
def test_chord_with_a_constant_mu_is_the_hybrid_up_to_scale(mu):
    theta = toys.bigram_theta()
    G = G_of("chord", random_batch(), theta, mu=mu, mu_schedule__kind="constant")
    np.testing.assert_allclose(
        G, (1 - mu) * G_of("hybrid", random_batch(), theta, mu=mu / (1 - mu)), rtol=1e-3, atol=2e-3
    )
    assert np.abs(G).max() > 0.04


def test_joint_moves_the_adapter_along_the_mixture():
    """The pull of what theta ascends, where BRIDGE takes lam dJ_RL(theta_hat) off."""
    method, policy = made("joint", lam=0.5), toys.bigram()
    state = method.init(toys.bigram_theta(), jax.random.key(0))
    w = jax.tree.map(lambda x, n: x + n, state.params.w, toys.noise_like(state.params.w, 1, 3.0))
    state = state.replace(params=state.params.replace(w=w))
    after, _ = jax.jit(method.update)(state, random_batch())
    G = lambda new, old: jax.tree.map(
        lambda a, b: (np.asarray(a, np.float64) - np.asarray(b)) * 1e3 / RATE, new, old
    )
    pulled, found = policy.pull(w, G(after.params.theta, state.params.theta)), G(after.params.w, w)
    for key in w:
        np.testing.assert_allclose(found[key], pulled[key], rtol=5e-3, atol=5e-3)
        assert np.abs(found[key]).max() > 0.05


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
            "never leaves",
        ),
        ("joint", dict(lam_schedule__kind="step"), "needs rising boundaries"),
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
            "method.grpo.normaliser='mean'; allowed: 'tokens', 'longest'",
        ),
        ("joint", dict(lam=2.0), "method.joint.lam=2.0"),
        ("dr_grpo", dict(updates_per_batch=0), "method.dr_grpo.updates_per_batch=0"),
    ],
)
def test_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        made(name, **fields)
