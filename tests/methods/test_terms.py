"""Every term of every method against the formula, token by token, where nothing cancels.

Each policy gradient is a sum over tokens of c_t times d log pi(token) / d phi. The tests below
write down the c_t of METHOD's formulas in plain numpy for rows of uneven lengths, a table that is
not flat, a temperature that is not 1 and a reference that is not the policy; what divides what,
which tokens count, and whose probabilities are old are then all visible in the update.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax import methods
from bridge_jax.optim import Recipe, Recipes
from bridge_jax.types import Batch, Params, Rollouts
from tests import toys
from tests.methods.by_hand import rows

TEMPERATURE, KL = 0.7, 0.3
STILL = Recipe(learning_rate=0.0, eps=1e5, clip_norm=0.0)
ASCENT = Recipe(
    learning_rate=1e5, eps=1e5, clip_norm=0.0, b1=0.0
)  # a step is the direction, to 1e-5 of it
THETA, REF, HAT = (
    np.asarray(toys.bigram_theta(seed, 0.5)["table"], np.float64) for seed in (1, 2, 3)
)
PROMPTS = (0, 3)
SAMPLES = ((1,), (2, 4, 4), (5, 2), (4,), (3, 3, 1), (2, 5, 0))  # three of each prompt
REWARD = np.array([1.0, 0, 0, 1, 1, 0])
OWN = ((2, 2), (1, 5, 3), (4,), (5, 5, 5), (1, 0), (3,))  # what theta_hat samples
OWN_REWARD = np.array([0.0, 1, 0, 0, 1, 0])
DEMOS = ((3, 1, 0), (2,))
SFT = 1.0 / sum(map(len, DEMOS))  # c of a demo token in J_SFT


def softmax(x):
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


class Tokens:
    """Rows under a table: for each row the log-probabilities of its tokens; `score` sums c times
    their gradients.
    """

    def __init__(self, table, prompts, given, temperature=1.0):
        M = len(given) // len(prompts)
        self.rows = [list(zip((prompts[b // M], *row[:-1]), row)) for b, row in enumerate(given)]
        self.pi, self.temperature = softmax(table / temperature), temperature
        self.logp = [
            np.array([np.log(self.pi[before, token]) for before, token in row]) for row in self.rows
        ]
        self.entropy = np.array(
            [
                np.mean([-np.sum(self.pi[before] * np.log(self.pi[before])) for before, _ in row])
                for row in self.rows
            ]
        )
        self.total = sum(map(len, self.rows))

    def score(self, c) -> np.ndarray:
        """c: for each row one number, or one for each token."""
        G = np.zeros((toys.V, toys.V))
        for row, weights in zip(self.rows, c):
            for (before, token), weight in zip(row, np.broadcast_to(weights, len(row))):
                G[before] += weight * (np.eye(toys.V)[token] - self.pi[before]) / self.temperature
        return G

    def spread(self, c) -> np.ndarray:
        """The same for c times the gradients of the entropies."""
        G = np.zeros((toys.V, toys.V))
        for row, weights in zip(self.rows, c):
            for (before, _), weight in zip(row, np.broadcast_to(weights, len(row))):
                p = self.pi[before]
                G[before] -= weight * p * (np.log(p) - p @ np.log(p)) / self.temperature
        return G


def sampled(table, given=SAMPLES):
    return Tokens(table, PROMPTS, given, TEMPERATURE)


def demo_tokens(table):
    return Tokens(table, PROMPTS, DEMOS)


def advantages(kind="group", R=REWARD, M=3):
    R = R.reshape(-1, M)
    A = R - R.mean(axis=1, keepdims=True)
    return (A / (R.std(axis=1, ddof=1, keepdims=True) + 1e-6) if kind == "group" else A).reshape(-1)


def G_RL(table, kind="group", kl=0.0, behaviour=None, given=SAMPLES, R=REWARD):
    """sum of [rho A - kl rho (1 - pi_ref / pi)] over all sampled tokens; rho is 1 where nothing
    else is the behaviour.
    """
    seen, ref = sampled(table, given), sampled(REF, given)
    old = seen.logp if behaviour is None else sampled(behaviour, given).logp
    return seen.score(
        [
            np.exp(new - was) * (A - kl * (1 - np.exp(of_ref - new))) / seen.total
            for A, new, was, of_ref in zip(advantages(kind, R), seen.logp, old, ref.logp)
        ]
    )


def G_SFT(table):
    return demo_tokens(table).score([SFT] * len(DEMOS))


def rollouts(given, R, prompts=PROMPTS) -> Rollouts:
    seqs = rows(prompts, given)
    return Rollouts(
        seqs, jnp.zeros(seqs.tokens_BT.shape), jnp.asarray(R, jnp.float32), jnp.float32(TEMPERATURE)
    )


BATCH = Batch(
    rows(PROMPTS, DEMOS),
    {"theta": rollouts(SAMPLES, REWARD), "theta_hat": rollouts(OWN, OWN_REWARD)},
)


def updated(
    name: str,
    step: int = 0,
    hat=None,
    w=None,
    recipes=Recipes(ASCENT, ASCENT),
    batch: Batch | None = None,
    **fields,
):
    """The params before and after one update at THETA with the reference REF, and its metrics."""
    module = methods.load(name)
    method = module.make(toys.method_config(name, **fields), toys.bigram(), recipes)
    table = lambda x: {"table": jnp.asarray(x, jnp.float32)}
    state = method.init(table(THETA), jax.random.key(0)).replace(step=jnp.int32(step))
    params = state.params if w is None else state.params.replace(w=w)
    params = params if hat is None else params.replace(theta_hat=table(hat))
    state = state.replace(params=params, ref=None if state.ref is None else table(REF))
    batch, spec = batch or BATCH, method.batch_spec(step)
    read = Batch(
        batch.demos if spec.demos else None,
        {policy: batch.rollouts[policy] for policy in spec.sampled_by},
    )
    after, metrics = jax.jit(method.update)(state, read)
    assert metrics["update/skipped"] == 0
    return params, after.params, metrics


def moved(before: Params, after: Params, part: str = "theta") -> np.ndarray:
    old, new = (
        np.asarray(getattr(params, part)["table"], np.float64) for params in (before, after)
    )
    return new - old


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=3e-6)


def agree(metrics, sft, rl):
    """The two gradients are told apart: what is divided by what."""
    np.testing.assert_allclose(
        metrics["grad/norm_ratio_sft_rl"], np.linalg.norm(sft) / np.linalg.norm(rl), rtol=1e-4
    )
    np.testing.assert_allclose(metrics["grad/inner_sft_rl"], np.sum(sft * rl), rtol=1e-3, atol=1e-6)


kinds = pytest.mark.parametrize("kind", ["group", pytest.param("mean", marks=pytest.mark.slow)])


@kinds
def test_hybrid(kind):
    """The hybrid moves theta along G_RL + mu G_SFT and reports how the two agree."""
    before, after, metrics = updated("hybrid", mu=0.6, advantage=kind, kl_coef=KL)
    close(moved(before, after), G_RL(THETA, kind, KL) + 0.6 * G_SFT(THETA))
    agree(metrics, G_SFT(THETA), G_RL(THETA, kind, KL))


@kinds
@pytest.mark.parametrize("weighting", ["mu", "phi"])
def test_chord(kind, weighting):
    """phi: a demo's token counts by p (1 - p), at temperature 1, divided by the number of all
    tokens of demos.
    """
    seen = demo_tokens(THETA)
    weights = [
        np.exp(logp) * (1 - np.exp(logp)) if weighting == "phi" else 1.0 for logp in seen.logp
    ]
    demo = seen.score([SFT * weight for weight in weights])
    before, after, metrics = updated(
        "chord", mu=0.7, weighting=weighting, advantage=kind, kl_coef=KL
    )
    close(moved(before, after), 0.3 * G_RL(THETA, kind, KL) + 0.7 * demo)
    agree(metrics, demo, G_RL(THETA, kind, KL))


@kinds
def test_alternate(kind):
    """The first step of alternation moves theta along G_RL alone."""
    before, after, _ = updated("alternate", advantage=kind, kl_coef=KL)
    close(moved(before, after), G_RL(THETA, kind, KL))


def with_demo(kind):
    """A of the samples and of the demos, which are the fourth of their groups."""
    A = advantages(
        kind, np.concatenate([REWARD.reshape(2, 3), np.ones((2, 1))], axis=1).reshape(-1), 4
    ).reshape(2, 4)
    return A[:, :3].reshape(-1), A[:, 3]


def test_luffy():
    """All tokens, own and of demos, are one mean, and so is the bonus of entropy; f'(p) p = gamma p
    / (p + gamma)^2.
    """
    own, demo, gamma, c = sampled(THETA), demo_tokens(THETA), 0.2, 0.3
    A, A_demo = with_demo("mean")
    total = own.total + demo.total
    slope = [gamma * np.exp(logp) / (np.exp(logp) + gamma) ** 2 for logp in demo.logp]
    rl = own.score(A / total) + own.spread([c / total] * len(SAMPLES))
    sft = demo.score([a * f / total for a, f in zip(A_demo, slope)])
    sft += demo.spread([c / total] * len(DEMOS))
    before, after, metrics = updated("luffy", gamma=gamma, entropy_coef=c)
    close(moved(before, after), rl + sft)
    agree(metrics, sft, rl)


def test_srft():
    """H is the mean of a row's entropies, not their sum; each half is divided by its own number of
    tokens.
    """
    own, demo, a, b = sampled(THETA), demo_tokens(THETA), 0.4, 0.15
    sft = demo.score(
        [
            (a * np.exp(-H) + A * np.exp(logp)) / demo.total
            for H, A, logp in zip(demo.entropy, with_demo("group")[1], demo.logp)
        ]
    )
    rl = own.score(
        [(b * np.exp(H) if R else -1.0) / own.total for H, R in zip(own.entropy, REWARD)]
    )
    before, after, metrics = updated("srft", expert_coef=a, rewarded_coef=b)
    close(moved(before, after), rl + sft)
    agree(metrics, sft, rl)


@kinds
@pytest.mark.parametrize("gate, R", [(0, [0, 0, 0, 1, 1, 0]), (1, [0, 1, 0, 1, 1, 0])])
def test_hpt(kind, gate, R):
    """Prompt 0 failed: its demo alone, whatever its samples' advantages; prompt 3 did not: its
    samples, divided by THEIR tokens; the bonus of entropy likewise; each half by its share.
    """
    R, c = np.array(R, float), 0.3
    own, demo = sampled(THETA), demo_tokens(THETA)
    solved, tokens = np.array([0, 0, 0, 1, 1, 1]), sum(map(len, SAMPLES[3:]))
    rl = own.score(advantages(kind, R) * solved / tokens) + own.spread(c * solved / tokens)
    first = np.array([1 / len(DEMOS[0]), 0.0])
    sft = demo.score(first) + demo.spread(c * first)
    before, after, metrics = updated(
        "hpt",
        advantage=kind,
        gate=gate,
        entropy_coef=c,
        batch=Batch(BATCH.demos, {"theta": rollouts(SAMPLES, R)}),
    )
    close(moved(before, after), 0.5 * rl + 0.5 * sft)
    agree(metrics, sft, rl)


def test_hpt_shares_are_of_prompts():
    """Two of three prompts failed: 1/3 and 2/3, whatever the numbers of tokens."""
    prompts, given, demo_rows = (0, 3, 1), (*SAMPLES, (2, 2), (1,), (5,)), (*DEMOS, (4, 4))
    R = np.array([0.0, 0, 0, 1, 1, 0, 0, 0, 0])
    rl = Tokens(THETA, prompts, given, TEMPERATURE).score(
        advantages("group", R) / sum(map(len, given[3:6]))
    )
    sft = Tokens(THETA, prompts, demo_rows).score([1 / 5, 0.0, 1 / 5])
    before, after, metrics = updated(
        "hpt",
        advantage="group",
        entropy_coef=0.0,
        batch=Batch(rows(prompts, demo_rows), {"theta": rollouts(given, R, prompts)}),
    )
    close(moved(before, after), rl / 3 + 2 * sft / 3)
    assert float(metrics["hpt/failed"]) == pytest.approx(2 / 3)


@kinds
def test_gspo(kind):
    """Every sample counts alike, whatever its length."""
    before, after, _ = updated("gspo", advantage=kind)
    close(
        moved(before, after),
        sampled(THETA).score([A / len(row) / 6 for A, row in zip(advantages(kind), SAMPLES)]),
    )


WIDE = {
    "grpo": dict(clip_low=1.0, clip_high=50.0),
    "dapo": dict(clip_low=1.0, clip_high=50.0, overlong_buffer=0.0),
    "gspo": dict(clip_low=1.0, clip_high=50.0),
}


@pytest.mark.parametrize("name", list(WIDE))
def test_the_behaviour_is_who_sampled(name):
    """Three updates on one batch: the ratio of the third is to the policy before the first, not to
    the one before it.
    """
    table = THETA.copy()
    for _ in range(3):
        seen, old = sampled(table), sampled(THETA)
        ratios = [np.exp(new - was) for new, was in zip(seen.logp, old.logp)]
        if name == "gspo":
            ratios = [
                np.exp(np.mean(new - was)) / len(new) * seen.total / 6
                for new, was in zip(seen.logp, old.logp)
            ]
        table += seen.score([r * A / seen.total for r, A in zip(ratios, advantages())])
    before, after, _ = updated(name, updates_per_batch=3, **WIDE[name])
    close(moved(before, after), table - THETA)


BY_STEP = dict(
    lam_schedule__kind="step", lam_schedule__boundaries=(10,), lam=0.5, lam_schedule__values=(0.8,)
)
W = toys.noise_like(toys.bigram().init_w(jax.random.key(0)), 5, 0.5)
PHI = THETA + np.asarray(W["A"], np.float64) @ np.asarray(W["B"], np.float64)
PHI_HAT = PHI - THETA + HAT


def pulled(G):
    """The direction of W that a gradient in phi = theta + A B is."""
    A, B = (np.asarray(W[key], np.float64) for key in "AB")
    return {"A": G @ B.T, "B": A.T @ G}


def w_moved(before: Params, after: Params) -> dict:
    return {
        key: np.asarray(after.w[key], np.float64) - np.asarray(before.w[key]) for key in before.w
    }


@kinds
@pytest.mark.parametrize("step, lam", [(0, 0.5), (10, 0.8)])
def test_joint(kind, step, lam):
    """theta and w on the mixture, by the lam of the step."""
    before, after, metrics = updated("joint", step, w=W, advantage=kind, kl_coef=KL, **BY_STEP)
    G = (1 - lam) * G_SFT(PHI) + lam * G_RL(PHI, kind, KL)
    close(moved(before, after), G)
    for key, expected in pulled(G).items():
        close(w_moved(before, after)[key], expected)
    agree(metrics, G_SFT(PHI), G_RL(PHI, kind, KL))


@kinds
@pytest.mark.parametrize("shadow_rollouts", ["shared", "own"])
@pytest.mark.parametrize("step, lam", [(0, 0.5), (10, 0.8)])
def test_bridge(kind, shadow_rollouts, step, lam):
    """All three parts at one iterate, theta_hat apart from theta, by the lam of the step, with the
    KL term in both J_RL.
    """
    before, after, metrics = updated(
        "bridge",
        step,
        HAT,
        W,
        advantage=kind,
        kl_coef=KL,
        variant__shadow_rollouts=shadow_rollouts,
        **BY_STEP,
    )
    G = G_RL(PHI, kind, KL)
    hat = (
        G_RL(PHI_HAT, kind, KL, PHI)
        if shadow_rollouts == "shared"
        else G_RL(PHI_HAT, kind, KL, given=OWN, R=OWN_REWARD)
    )
    close(moved(before, after), (1 - lam) * G_SFT(PHI) + lam * G)
    close(moved(before, after, "theta_hat"), hat)
    for key, expected in pulled((1 - lam) * G_SFT(PHI) + lam * (G - hat)).items():
        close(w_moved(before, after)[key], expected)
    agree(metrics, G_SFT(PHI), G)


@pytest.mark.parametrize("shadow_rollouts", ["shared", "own"])
def test_bridge_with_inner_steps(shadow_rollouts):
    """w standing still: theta_hat's second and third step are weighed by whoever sampled, theta or
    theta_hat before the first.
    """
    fields = (
        dict(given=OWN, R=OWN_REWARD, behaviour=PHI_HAT)
        if shadow_rollouts == "own"
        else dict(behaviour=PHI)
    )
    table = PHI_HAT.copy()
    for _ in range(3):
        table += G_RL(table, **fields)
    recipes = Recipes(ASCENT, STILL)
    before, after, _ = updated(
        "bridge",
        0,
        HAT,
        W,
        recipes,
        variant__inner_steps=3,
        variant__shadow_rollouts=shadow_rollouts,
    )
    close(moved(before, after, "theta_hat"), table - PHI_HAT)
    assert toys.same_bits(before.w, after.w)
