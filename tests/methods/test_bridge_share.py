"""BRIDGE with a cheaper theta_hat: it learns from a part of the groups, or in every n-th step."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax import objectives
from bridge_jax.config import checks
from bridge_jax.methods import bridge, bridge_variants, sft
from bridge_jax.types import Params
from tests import errors, toys
from tests.methods.bigram_bridge import start

ROWS = 4  # of a micro-batch: 8 micro-batches of a group each
# a step is a tenth of the gradient, up to its thousandth part
PLAIN = toys.recipes(1e3, 1e3, eps=1e4, clip_norm=0.0)
P, M = 8, 4


@functools.cache
def made(recipes=toys.recipes(3e-2, 3e-2), microbatch_rows=ROWS, **fields):
    """BRIDGE on the table of bigrams in micro-batches, and its compiled update."""
    cfg = toys.method_config("bridge", **toys.LAM_BY_STEP | fields)
    method = bridge.make(cfg, toys.bigram(), recipes, microbatch_rows)
    return method, jax.jit(method.update)


def a_batch(seed: int):
    """8 groups of 4 samples, and 8 demonstrations."""
    return toys.batch(seed, P=P, M=M, vocab=toys.V)


def apart(state, scale: float = 0.5):
    """The state with theta_hat away from theta, and w away from 0."""
    params = state.params
    return state.replace(
        params=Params(
            params.theta,
            toys.add(params.theta, toys.noise_like(params.theta, 1, scale)),
            toys.noise_like(params.w, 2, scale),
        )
    )


def moved(after, before, part: str):
    """How far a part of the parameters moved."""
    return jax.tree.map(jnp.subtract, getattr(after.params, part), getattr(before.params, part))


# ---- a part of the groups


@pytest.mark.parametrize("n", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_step_0_of_a_part(n):
    """Gain 0, ESS 1 and KL 0 exactly, and w's direction is that of SFT alone: its RL term is of
    theta_hat's part, so that the two cancel.
    """
    policy, batch = toys.bigram(), a_batch(0)
    method, update = made(toys.linear(), shadow__share=1 / n)
    before = start(method, toys.bigram_theta(), 0.5)
    after, metrics = update(before, batch)
    assert metrics["bridge/gain"] == 0 and metrics["bridge/ess"] == 1
    assert metrics["bridge/kl_hat"] == 0 and metrics["grad/norm_theta_hat"] > 0
    phi = policy.merge(before.params.theta, before.params.w)
    G = objectives.gradient(objectives.J_SFT(policy, batch.demos), phi, batch.demos).G
    expected = policy.pull(before.params.w, jax.tree.map(lambda x: 0.5 * x, G))
    norm = np.sqrt(float(objectives.inner_product(expected, expected)))
    assert float(metrics["grad/norm_w"]) == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("n", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_the_mean_over_the_parts_is_the_whole(n):
    """At the same iterate, theta_hat elsewhere: the directions of theta_hat and of w, over all
    parts in turn, have those of all samples as their mean. theta's is the same with every part.
    """
    batch, recipes = a_batch(3), PLAIN
    whole, whole_update = made(recipes)
    before = apart(start(whole, toys.bigram_theta(), 0.5))
    full, full_metrics = whole_update(before, batch)
    _, update = made(recipes, shadow__share=1 / n)
    found = [update(before.replace(step=jnp.int32(k)), batch) for k in range(n)]
    mean = lambda part: jax.tree.map(
        lambda *x: sum(x) / n, *[moved(state, before, part) for state, _ in found]
    )
    for part in ("theta_hat", "w"):
        assert toys.change(mean(part), moved(full, before, part)) < 2e-3
    assert all(toys.change(state.params.theta, full.params.theta) < 1e-6 for state, _ in found)
    gains = [float(metrics["bridge/gain"]) for _, metrics in found]
    assert np.mean(gains) == pytest.approx(float(full_metrics["bridge/gain"]), abs=1e-5)
    assert len(set(gains)) == n
    # and each costs its part
    tokens = lambda metrics, of="gradient": float(metrics[f"budget/{of}_tokens"])
    samples = float(batch.rollouts["theta"].seqs.length_B.sum())
    saved = [tokens(full_metrics) - tokens(metrics) for _, metrics in found]
    assert sum(saved) == (n - 1) * samples and min(saved) > 0


@pytest.mark.slow
def test_the_part_is_that_of_every_division():
    """Part k has the groups k, k + n, ...: 2, 4 and 8 micro-batches, and parts of groups, give the
    same update.
    """
    batch, recipes, found = a_batch(4), toys.linear(), []
    for microbatch_rows in (2, 4, 8, 16):
        method, update = made(recipes, microbatch_rows, shadow__share=0.5)
        before = apart(start(method, toys.bigram_theta(), 0.5).replace(step=jnp.int32(1)))
        found.append(update(before, batch)[0].params)
    for params in found[1:]:
        assert toys.change(params, found[0]) < 1e-6
    seqs = batch.rollouts["theta"].seqs
    divided = objectives.parts_of(seqs, 8, 2, "k")
    groups = divided.first(divided.ordered({"row": jnp.arange(P * M)}, 1))["row"] // M
    np.testing.assert_array_equal(groups, np.repeat([1, 3, 5, 7], M))


def test_lam_0_is_sft_with_a_part():
    """theta and w follow as without: neither has a term of RL."""
    recipes, batch = toys.linear(1.0, 0.0), a_batch(5)
    method, update = made(recipes, shadow__share=0.25, shadow__every=2)
    other = sft.make(sft.Config(), toys.bigram(), recipes)
    ours = update(start(method, toys.bigram_theta(), 0.0), batch)[0]
    theirs = jax.jit(other.update)(other.init(toys.bigram_theta(), jax.random.key(0)), batch)[0]
    assert toys.change(ours.params.theta, theirs.params.theta) < 1e-6


# ---- every n-th step


def test_every_third_step():
    """theta_hat and its moments rest for two steps, bit for bit, while w ascends SFT alone; theirs
    are no skipped steps, and have no gain. In the third the gain's gradient counts three times.
    """
    recipes, batch = PLAIN, a_batch(6)
    method, update = made(recipes, shadow__every=3)
    _, plain_update = made(recipes)
    before = apart(start(method, toys.bigram_theta(), 0.5))
    policy, params, found = toys.bigram(), before.params, []
    phi = policy.merge(params.theta, params.w)
    G = objectives.gradient(objectives.J_SFT(policy, batch.demos), phi, batch.demos).G
    for k in range(4):
        after, metrics = update(before.replace(step=jnp.int32(k)), batch)
        found.append(moved(after, before, "w"))
        rests = k % 3 != 0
        assert metrics["update/skipped"] == 0 and int(after.step) == k + 1
        for key in method.not_in_every_step:
            assert bool(jnp.isnan(metrics[key])) == rests
        same = toys.same_bits(
            (after.params.theta_hat, after.opt_state.inner_states["shadow"]),
            (params.theta_hat, before.opt_state.inner_states["shadow"]),
        )
        assert same == rests
    once = moved(plain_update(before, batch)[0], before, "w")
    # half of a tenth: lam is 1/2
    sft_alone = jax.tree.map(lambda x: 0.05 * x, policy.pull(params.w, G))
    assert toys.change(found[1], sft_alone) < 2e-3 and toys.change(found[2], found[1]) < 1e-6
    three = jax.tree.map(lambda a, b: a - b, found[0], found[1])
    one = jax.tree.map(lambda a, b: a - b, once, found[1])
    assert toys.change(three, jax.tree.map(lambda x: 3 * x, one)) < 2e-3
    assert toys.change(found[3], found[0]) < 1e-6


@pytest.mark.slow
def test_tokens_of_steps_in_which_it_rests():
    """The ledger has theta_hat's pass over a quarter of the samples in every second step."""
    _, update = made(shadow__every=2, shadow__share=0.25)
    method, _ = made(shadow__every=2, shadow__share=0.25)
    batch, state = a_batch(7), None
    state = start(method, toys.bigram_theta(), 0.5)
    seqs, counted = batch.rollouts["theta"].seqs, []
    for _ in range(4):
        state, metrics = update(state, batch)
        counted.append(float(metrics["budget/gradient_tokens"]))
    base = float(seqs.length_B.sum() + batch.demos.length_B.sum())
    of_group = np.asarray(seqs.length_B).reshape(P, M).sum(1)
    # parts 0 and 1 of 4, in the steps 0 and 2
    assert counted == [base + of_group[0::4].sum(), base, base + of_group[1::4].sum(), base]


def test_thetas_rate_at_its_steps():
    """theta_hat learns at theta's rate of that step, although it has fewer updates."""
    from bridge_jax.optim import Recipe, learning_rate

    falling = Recipe(learning_rate=1.0, schedule="linear", decay_steps=8, warmup_steps=2)
    rates = [float(learning_rate(falling)(step)) for step in range(12)]
    found = [
        float(learning_rate(falling, updates_per_step=2, steps_per_update=3)(count))
        for count in range(8)
    ]
    assert found == [rates[step] for step in (0, 0, 3, 3, 6, 6, 9, 9)]


# ---- settings


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(shadow__share=0.3), ("method.bridge.shadow.share=0.3", "0.25")),
        (dict(shadow__share=0.0), ("shadow.share=0.0", "1.0")),
        (dict(shadow__share=2.0), ("shadow.share=2.0", "1.0")),
        (dict(shadow__every=0), "method.bridge.shadow.every=0"),
        (
            dict(shadow__share=0.5, variant__shadow_rollouts="own"),
            ("shadow.share=0.5", "'shared'"),
        ),
        (
            dict(shadow__every=2, variant__resync_every=3),
            ("resync_every=3", "shadow.every=2", "from 4"),
        ),
        (dict(shadow__every=2, variant__resync_every=2), ("resync_every=2", "from 4")),
    ],
)
def test_what_cannot_be(given, message):
    """One line with what was given and what is allowed."""
    with errors.raises(ValueError, message):
        bridge_variants.check(toys.method_config("bridge", **given))


def test_a_part_is_whole_micro_batches():
    """On every device, of whole groups; packed rows have no parts."""
    check = functools.partial(checks.check_parts, "k.share")
    for n in (1, 2, 4):
        check(n, P=64, count=4, packed=False)
    with errors.raises(ValueError, "k.share=0.125", "4 micro-batch", "1, 0.5, 0.25"):
        check(8, P=64, count=4, packed=False)
    check(2, P=2, count=8, packed=False)
    with errors.raises(ValueError, "k.share=0.25", "1, 0.5"):
        check(4, P=2, count=8, packed=False)
    check(1, P=8, count=8, packed=True)
    with errors.raises(ValueError, "k.share=0.5", "batch.pack", "allowed: 1"):
        check(2, P=8, count=8, packed=True)
