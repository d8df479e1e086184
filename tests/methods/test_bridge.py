"""BRIDGE meets its exact equalities at step 0, at lam 0 and 1, and at beta 0."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bridge_jax import objectives
from bridge_jax.methods import bridge, bridge_variants, grpo, sft
from bridge_jax.types import Batch, Params
from tests import errors, toys
from tests.methods.bigram_bridge import advanced, bigram_batch, bigram_method, start

AT_HOME = pytest.param({}, id="quick")
AS_USERS = pytest.param(toys.AS_USERS, id="as-users", marks=pytest.mark.slow)


# ---- step 0


@pytest.mark.parametrize("shadow", ["shared", "own"])
@pytest.mark.parametrize("options", [AT_HOME, AS_USERS])
def test_step_0_on_the_table(shadow, options):
    """Gain exactly 0, ESS exactly 1, KL to theta_hat exactly 0, both J_RL bit-equal, and w moves
    all the same.
    """
    method, _ = bigram_method(variant__shadow_rollouts=shadow)
    state, metrics = jax.jit(method.update, compiler_options=options)(
        start(method, toys.bigram_theta(), 0.5), bigram_batch(0)
    )
    assert metrics["bridge/gain"] == 0 and metrics["bridge/lam"] == 0.5
    if shadow == "shared":
        assert metrics["bridge/ess"] == 1 and metrics["bridge/kl_hat"] == 0
    assert metrics["rl/J"] == metrics["bridge/J_hat"]
    assert metrics["grad/norm_w"] > 0


def directions(policy, params: Params, batch: Batch, lam: float, term=objectives.surrogate):
    """bridge.step with the objectives that bridge.update gives it."""
    rolled, demos = batch.rollouts["theta"], batch.demos
    rows = {"A_B": objectives.group_advantages(rolled.reward_B, 4)}
    J_RL, J_SFT = objectives.J_RL(policy, rolled, term), objectives.J_SFT(policy, demos)
    behaved = lambda rl: rows | {"behaviour_BT": rl.aux["logp_BT"]}
    return toys.directions(
        lambda phi: objectives.gradient(J_RL, phi, rolled.seqs, rows),
        lambda phi: objectives.gradient(J_SFT, phi, demos, {}),
        lambda phi, rl: objectives.gradient(J_RL, phi, rolled.seqs, behaved(rl)),
        lam=lam,
        params=params,
        policy=policy,
    )


@pytest.mark.parametrize("lam", [0.25, 0.5, 0.75])
def test_step_0_w_gradient_is_that_of_sft(lam):
    """At theta_hat == theta the bracket vanishes: d_w = (1 - lam) pull(dJ_SFT)."""
    policy, theta, demos = toys.bigram(), toys.bigram_theta(), bigram_batch(0).demos
    w = toys.noise_like(policy.init_w(jax.random.key(0)), 1, 1.0)
    found = jax.jit(lambda p: directions(policy, p, bigram_batch(0), lam))(Params(theta, theta, w))
    G_SFT = objectives.gradient(objectives.J_SFT(policy, demos), policy.merge(theta, w), demos, {})[
        0
    ]
    expected = policy.pull(w, jax.tree.map(lambda x: (1 - lam) * x, G_SFT))
    assert toys.change(found.w, expected) < 1e-6


# ---- lam = 1, lam = 0, beta = 0


# with a KL and without optimisation XLA rounds the last bit of the two log_softmax differently, and
# Adam makes steps of it
@pytest.mark.parametrize(
    "kl_coef, options",
    [
        (0.0, {}),
        pytest.param(0.0, toys.AS_USERS, marks=pytest.mark.slow),
        pytest.param(0.1, toys.AS_USERS, marks=pytest.mark.slow),
    ],
    ids=["quick", "as-users", "kl-as-users"],
)
def test_lam_1_is_grpo(kl_coef, options):
    """theta == theta_hat and B == 0 bit for bit through Adam steps; theta follows grpo's
    trajectory.
    """
    method, _ = bigram_method(kl_coef=kl_coef)
    other = grpo.make(grpo.Config(kl_coef=kl_coef), toys.bigram(), toys.recipes(3e-2, 3e-2))
    compiled = lambda update: jax.jit(update, compiler_options=options)
    theta = toys.bigram_theta()
    ours = advanced(compiled(method.update), start(method, theta, 1.0), 8)
    theirs = advanced(compiled(other.update), other.init(theta, jax.random.key(0)), 8)
    for a, b in zip(ours, theirs):
        assert toys.same_bits(a.params.theta, a.params.theta_hat)
        assert not a.params.w["B"].any() and toys.same_bits(a.params.w["A"], ours[0].params.w["A"])
        assert (
            toys.change(a.params.theta, b.params.theta) < 1e-6
        )  # two programs: XLA may fuse their sums in another order
    assert toys.change(ours[-1].params.theta, theta) > 0.05


def test_lam_0_is_sft():
    """theta follows sft's trajectory when w stands still (beta 0), and SFT's gradient at theta + w
    when it does not.
    """
    recipes = toys.recipes(3e-2, 0.0)
    method, update = bigram_method(recipes)
    other = sft.make(sft.Config(), toys.bigram(), recipes)
    theta = toys.bigram_theta()
    ours = advanced(update, start(method, theta, 0.0), 6)
    theirs = advanced(jax.jit(other.update), other.init(theta, jax.random.key(0)), 6)
    for a, b in zip(ours, theirs):
        assert toys.change(a.params.theta, b.params.theta) < 1e-6
    assert toys.change(ours[-1].params.theta, theta) > 0.05


def test_beta_0_is_naive_mixing():
    """With w frozen theta ascends (1 - lam) SFT + lam RL, computed here with plain jax.grad and
    Adam by hand.
    """
    method, update = bigram_method(toys.recipes(3e-2, 0.0, clip_norm=0.0))
    theta, batches = toys.bigram_theta(), [bigram_batch(seed) for seed in range(5)]
    state = start(method, theta, 0.5)

    def mixed(table, batch):
        def mean_logp(seqs, weight_B):
            logp_BT, _ = toys.bigram_logp({"table": table}, seqs, 1.0)
            mask_BT = np.arange(logp_BT.shape[1]) < np.asarray(seqs.length_B)[:, None]
            return jnp.where(mask_BT, logp_BT * weight_B[:, None], 0.0).sum() / mask_BT.sum()

        rolled = batch.rollouts["theta"]
        R = np.asarray(rolled.reward_B).reshape(-1, 4)
        A = ((R - R.mean(1, keepdims=True)) / (R.std(1, ddof=1, keepdims=True) + 1e-6)).reshape(-1)
        return 0.5 * mean_logp(batch.demos, np.ones(8)) + 0.5 * mean_logp(rolled.seqs, A)

    table, m, v = theta["table"], 0.0, 0.0
    for k, batch in enumerate(batches, start=1):
        g = jax.grad(mixed)(table, batch)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        table = table + 3e-2 * (m / (1 - 0.9**k)) / (jnp.sqrt(v / (1 - 0.999**k)) + 1e-8)
        state, _ = update(state, batch)
        assert toys.change(state.params.theta, {"table": table}) < 1e-5
    assert not state.params.w["B"].any()


def test_step_0_on_the_model():
    """The same exact zeros through attention, norms and the adapter."""
    (method, update), theta = toys.transformer_bridge(), toys.transformer_theta()
    state, metrics = update(start(method, theta, 0.5), toys.model_batch(0))
    assert (
        metrics["bridge/gain"] == 0 and metrics["bridge/ess"] == 1 and metrics["bridge/kl_hat"] == 0
    )
    state, metrics = update(state, toys.model_batch(1))
    assert (
        metrics["bridge/gain"] != 0
        and metrics["bridge/kl_hat"] > 0
        and 0 < metrics["bridge/ess"] < 1
    )
    assert all(pair["B"].any() for pair in state.params.w.values())


@pytest.mark.slow
def test_lam_1_and_0_on_the_model():
    """lam 1: theta == theta_hat, B == 0, theta as grpo's. lam 0: theta's first step is sft's."""
    (method, update), theta = toys.transformer_bridge(), toys.transformer_theta()
    other = grpo.make(grpo.Config(), toys.transformer(), toys.linear())
    ours = advanced(update, start(method, theta, 1.0), 4, toys.model_batch)
    theirs = advanced(
        jax.jit(other.update), other.init(theta, jax.random.key(0)), 4, toys.model_batch
    )
    for a, b in zip(ours, theirs):
        assert toys.same_bits(a.params.theta, a.params.theta_hat)
        assert not any(pair["B"].any() for pair in a.params.w.values())
        assert toys.change(a.params.theta, b.params.theta) < 1e-6
    plain = sft.make(sft.Config(), toys.transformer(), toys.linear())
    first = advanced(update, start(method, theta, 0.0), 1, toys.model_batch)[0]
    expected = advanced(
        jax.jit(plain.update), plain.init(theta, jax.random.key(0)), 1, toys.model_batch
    )[0]
    assert toys.change(first.params.theta, expected.params.theta) < 1e-6


# ---- settings


def test_bad_settings():
    """Unknown choices are refused at make, or where the advantage is first computed."""
    make = lambda **fields: bridge.make(
        toys.method_config("bridge", **fields), toys.bigram(), toys.recipes()
    )
    with errors.raises(ValueError, "variant.shadow_rollouts='both'", "'shared', 'own'"):
        make(variant__shadow_rollouts="both")
    with errors.raises(ValueError, "lam_schedule.kind='rise'", "constant"):
        make(lam_schedule__kind="rise")
    assert make().batch_spec(0) == (("theta",), True) and make(
        variant__shadow_rollouts="own"
    ).batch_spec(7) == (
        ("theta", "theta_hat"),
        True,
    )


@pytest.mark.parametrize(
    "given, message",
    [
        (
            dict(lam_schedule__kind="gain"),
            ("bridge.lam_schedule.end=1.0", "below 1"),
        ),
        (
            dict(lam_schedule__kind="gain", lam_schedule__end=0.99999999),
            "lam_schedule.end=0.99999999",
        ),
        (dict(lam_schedule__kind="gain", lam_schedule__end=0.5), ("lam_schedule", "0.5")),
        (
            dict(lam_schedule__kind="gain", lam_schedule__end=0.8, variant__resync_every=1),
            "variant.resync_every=1",
        ),
        (
            dict(lam_schedule__kind="linear", lam=1.0, lam_schedule__steps=5),
            ("lam_schedule", "1.0"),
        ),
        (
            dict(lam_schedule__kind="cosine", lam_schedule__steps=0),
            ("lam_schedule.steps=0", "kind='cosine'"),
        ),
        (
            dict(lam_schedule__kind="step", lam_schedule__boundaries=(), lam_schedule__values=()),
            ("lam_schedule", "boundaries"),
        ),
        (
            dict(
                lam_schedule__kind="step",
                lam_schedule__boundaries=(9,),
                lam_schedule__values=(0.5,),
            ),
            ("lam_schedule", "start"),
        ),
    ],
)
def test_schedules_of_lam_that_could_never_leave_their_start(given, message):
    """Refused, however long the run; the nearest that can move is not."""
    with errors.raises(ValueError, message):
        bridge_variants.check(toys.method_config("bridge", **given))
    bridge_variants.check(
        toys.method_config(
            "bridge", lam_schedule__kind="gain", lam_schedule__end=0.8, variant__resync_every=2
        )
    )


@pytest.mark.parametrize("lam_end, moves", [(1.0, False), (0.8, True)])
def test_lam_by_the_gain_is_stuck_at_1_alone(monkeypatch, lam_end, moves):
    """Why lam_end = 1 is refused: let through, gain and lam stay at 0 and 1 for ever; from 0.8 they
    leave.
    """
    monkeypatch.setattr(bridge_variants, "check_gain_schedule", lambda cfg: None)
    cfg = toys.method_config(
        "bridge", lam_schedule__kind="gain", lam=0.2, lam_schedule__end=lam_end
    )
    method = bridge.make(cfg, toys.bigram(), toys.recipes(3e-2, 3e-2))
    update, state, seen = (
        jax.jit(method.update),
        method.init(toys.bigram_theta(), jax.random.key(0)),
        [],
    )
    for seed in range(6):
        state, metrics = update(state, bigram_batch(seed))
        seen.append((float(metrics["bridge/gain"]), float(metrics["bridge/lam"])))
    assert seen[0] == (0.0, pytest.approx(lam_end))
    assert (len({lam for _, lam in seen}) > 1) == moves == any(gain for gain, _ in seen)


def test_policies():
    """theta acts as theta + w, the shadow as theta_hat + w."""
    method, _ = bigram_method()
    params = Params(
        toys.bigram_theta(0),
        toys.bigram_theta(1),
        {"A": jnp.ones((toys.V, 2)), "B": jnp.ones((2, toys.V))},
    )
    for policy, table in (("theta", params.theta), ("theta_hat", params.theta_hat)):
        np.testing.assert_allclose(method.policy(params, policy)["table"], table["table"] + 2)
    assert toys.same_bits(method.policy(params), method.policy(params, "theta"))


def test_kl_is_in_both_objectives():
    """ref is the initial policy, KL to it is 0 at step 0; with all rewards equal the KL alone moves
    theta AND theta_hat.
    """
    method, update = bigram_method(kl_coef=0.5)
    state = start(method, toys.bigram_theta(), 1.0)
    batch = bigram_batch(0)
    flat = {
        name: rolled.replace(reward_B=jnp.ones_like(rolled.reward_B))
        for name, rolled in batch.rollouts.items()
    }
    same, metrics = update(state, batch.replace(rollouts=flat))
    assert (
        metrics["rollout/kl_ref"] == 0 and metrics["rl/J"] == 0 and metrics["grad/norm_theta"] == 0
    )
    away = {"table": state.params.theta["table"] + jnp.eye(toys.V)}
    moved = state.replace(
        params=state.params.replace(theta=away, theta_hat=jax.tree.map(jnp.copy, away))
    )
    after, metrics = update(moved, batch.replace(rollouts=flat))
    assert metrics["rollout/kl_ref"] > 0 and metrics["rl/J"] == metrics["bridge/J_hat"] < 0
    assert metrics["grad/norm_theta"] > 0
    np.testing.assert_allclose(
        metrics["grad/norm_theta"], metrics["grad/norm_theta_hat"], rtol=1e-6
    )


# ---- the shadow's own rollouts


def test_gain_of_own_rollouts_by_hand():
    """mean R(theta) - mean R(theta_hat)."""
    _, update = bigram_method(variant__shadow_rollouts="own")
    method, _ = bigram_method(variant__shadow_rollouts="own")
    batch = bigram_batch(0)
    theirs = batch.rollouts["theta_hat"].replace(reward_B=jnp.zeros(16).at[3].set(1.0))
    ours = batch.rollouts["theta"].replace(reward_B=jnp.zeros(16).at[:5].set(1.0))
    _, metrics = update(
        start(method, toys.bigram_theta(), 0.5),
        batch.replace(rollouts={"theta": ours, "theta_hat": theirs}),
    )
    np.testing.assert_allclose(metrics["bridge/gain"], 4 / 16)
    np.testing.assert_allclose(metrics["bridge/reward_hat"], 1 / 16)
    assert metrics["bridge/kl_hat"] == 0 and metrics["bridge/ess"] == 1


def test_distances_of_own_rollouts():
    """KL and ESS are those of theta_hat on theta's samples; the sampler's error is that on
    theta_hat's own.
    """
    method, update = bigram_method(variant__shadow_rollouts="own")
    state, batch = start(method, toys.bigram_theta(), 0.5), bigram_batch(0)
    far = toys.bigram_theta(5)
    theirs = batch.rollouts["theta_hat"]
    theirs = theirs.replace(logp_BT=toys.bigram_logp(far, theirs.seqs, 1.0)[0] + 0.25)
    batch = batch.replace(rollouts=batch.rollouts | {"theta_hat": theirs})
    _, metrics = update(state.replace(params=state.params.replace(theta_hat=far)), batch)
    rolled = batch.rollouts["theta"]
    logp_BT, hat_BT = (
        toys.bigram_logp(table, rolled.seqs, 1.0)[0] for table in (toys.bigram_theta(), far)
    )
    expected = objectives.shared_gain(rolled, logp_BT, hat_BT)
    for key in ("bridge/kl_hat", "bridge/ess"):
        np.testing.assert_allclose(metrics[key], expected[key], rtol=1e-4)
    assert metrics["bridge/ess"] < 0.9
    np.testing.assert_allclose(
        [metrics["rollout/logp_error_hat"], metrics["rollout/logp_error_hat_max"]], 0.25, rtol=1e-4
    )


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(lam=1.5), r"method.bridge.lam=1.5; allowed: from 0.0 to 1.0"),
        (dict(lam=float("nan")), "method.bridge.lam=nan"),
        (dict(lam_schedule__end=-0.1), "lam_schedule.end=-0.1"),
        (dict(lam_schedule__values=(2.0,)), "lam_schedule.values=2.0"),
        (
            dict(variant__ratio_cap=0.5),
            ("bridge.variant.ratio_cap=0.5", "0", "above 1"),
        ),
        (dict(variant__ratio_cap=-2.0), "variant.ratio_cap=-2.0"),
        (dict(kl_coef=-1.0), ("method.bridge.kl_coef=-1.0", "0.0")),
        (dict(advantage="z"), ("method.bridge.advantage='z'", "'group', 'mean'")),
    ],
)
def test_invalid_numbers(given, message):
    """A setting outside its range is refused under its full key."""
    with errors.raises(ValueError, message):
        bigram_method(**given)


@pytest.mark.slow
def test_ratio_cap_reaches_the_shadow():
    """With theta_hat far away the cap bounds the weight of each of its tokens, by hand; theta
    (ratio 1) it does not touch.
    """
    far = Params(
        toys.bigram_theta(0),
        toys.bigram_theta(5, 3.0),
        {"A": jnp.ones((toys.V, 2)), "B": jnp.zeros((2, toys.V))},
    )
    found = []
    for cap in (0.0, 2.0):
        method, update = bigram_method(variant__ratio_cap=cap)
        found.append(
            update(start(method, toys.bigram_theta(), 0.5).replace(params=far), bigram_batch(0))[1]
        )
    assert found[0]["grad/norm_theta"] == found[1]["grad/norm_theta"]
    policy, rolled = toys.bigram(), bigram_batch(0).rollouts["theta"]
    score = lambda theta: policy.logp(policy.merge(theta, far.w), rolled.seqs, rolled.temperature)[
        0
    ]
    R_PM = rolled.reward_B.reshape(rolled.seqs.prompt_len_P.shape[0], -1)
    std_P = R_PM.std(1, ddof=1, keepdims=True)
    A_B = ((R_PM - R_PM.mean(1, keepdims=True)) / (std_P + 1e-6)).reshape(-1)
    mask_BT = jnp.arange(rolled.seqs.tokens_BT.shape[1]) < rolled.seqs.length_B[:, None]
    rho_BT = jnp.exp(score(far.theta_hat) - score(far.theta))
    assert (rho_BT > 2).any() and (rho_BT < 0.5).any()
    capped = mask_BT & ((rho_BT > 2) | (rho_BT < 0.5))
    assert found[0]["bridge/clip_fraction"] == 0
    assert found[1]["bridge/clip_fraction"] == pytest.approx(float(capped.sum() / mask_BT.sum()))
    for metrics, weight_BT in zip(found, (rho_BT, jnp.clip(rho_BT, 0.5, 2.0))):
        G = jax.grad(
            lambda theta: jnp.sum(mask_BT * weight_BT * A_B[:, None] * score(theta)) / mask_BT.sum()
        )(far.theta_hat)
        assert metrics["grad/norm_theta_hat"] == pytest.approx(
            float(optax.global_norm(G)), rel=1e-4
        )
