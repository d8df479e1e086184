"""Every building block against numbers worked out by hand, and what it does at the extremes."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_derivatives import SymbolicZero

from bridge_jax import objectives
from bridge_jax.types import Rollouts, Sequences
from tests import toys

close = functools.partial(np.testing.assert_allclose, rtol=1e-6)


def column(*values):
    """[B, 1] fp32."""
    return jnp.asarray(values, jnp.float32)[:, None]


def rows(prompt, tokens, length) -> Sequences:
    """One-token prompts and their completions."""
    ints = lambda x: jnp.asarray(x, jnp.int32)
    return Sequences(
        ints(prompt)[:, None], jnp.ones(len(prompt), jnp.int32), ints(tokens), ints(length)
    )


def on_policy(seqs: Sequences, reward) -> Rollouts:
    """Rollouts at temperature 1 whose sampler is not asked."""
    return Rollouts(
        seqs, jnp.zeros(seqs.tokens_BT.shape), jnp.asarray(reward, jnp.float32), jnp.float32(1.0)
    )


def test_token_mask():
    """Position t counts where t < length; length 0 is a padding row."""
    expected = [[0, 0, 0], [1, 1, 0], [1, 1, 1]]
    np.testing.assert_array_equal(objectives.token_mask(jnp.array([0, 2, 3]), 3), expected)


def test_group_advantages():
    """Rewards 1 0 0 0 have mean 1/4 and unbiased std 1/2, 0 1 1 0 one of sqrt(1/3); an all-equal group gets exactly 0."""
    A = objectives.group_advantages(jnp.array([1.0, 0, 0, 0, 1, 1, 1, 1, 0, 1, 1, 0]), 4)
    std, half = 0.5 + 1e-6, math.sqrt(1 / 3) + 1e-6
    close(
        A,
        [
            0.75 / std,
            -0.25 / std,
            -0.25 / std,
            -0.25 / std,
            0,
            0,
            0,
            0,
            -0.5 / half,
            0.5 / half,
            0.5 / half,
            -0.5 / half,
        ],
    )
    assert not A[4:8].any()
    close(
        objectives.group_advantages(jnp.array([1.0, 0, 0, 0]), 4, "mean"),
        [0.75, -0.25, -0.25, -0.25],
    )
    with pytest.raises(ValueError, match="advantage='rank'; allowed: 'group', 'mean'"):
        objectives.group_advantages(jnp.zeros(4), 4, "rank")


@pytest.mark.parametrize("kind", ["group", "mean"])
def test_a_group_of_one_has_no_advantage(kind):
    """Finite, although its unbiased std is 0 / 0."""
    np.testing.assert_array_equal(
        objectives.group_advantages(jnp.array([1.0, 0.0]), 1, kind), [0, 0]
    )


@pytest.mark.parametrize("M", [2, 5, 8])
def test_advantages_of_a_group_have_unit_variance(M):
    """As numpy and torch have it with M - 1; numpy's default, with M, makes it M / (M - 1)."""
    R = np.random.default_rng(M).integers(0, 2, (6, M)).astype(np.float32)
    R[:, 0], R[:, 1] = 0, 1
    A = np.asarray(objectives.group_advantages(jnp.asarray(R.reshape(-1)), M)).reshape(6, M)
    np.testing.assert_allclose(A.var(axis=1, ddof=1), 1, rtol=1e-4)
    np.testing.assert_allclose(A.var(axis=1), (M - 1) / M, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, toys.AS_USERS], ids=["quick", "as-users"])
def test_equal_rewards_have_no_advantage(options):
    """Exactly 0 for any number of samples: a mean that rounds to 1 + 6e-8, divided by 1e-6, would be an advantage of .06."""
    for M in (3, 5, 15, 41, 63):
        A = jax.jit(lambda R, M=M: objectives.group_advantages(R, M), compiler_options=options)(
            jnp.ones(2 * M)
        )
        assert not A.any(), M


def test_surrogate():
    """rho A with rho = pi / behaviour; a cap of 2 bounds rho to [1/2, 2] whatever the sign of A; the gradient is the same as the value."""
    logp, behaviour = jnp.log(column(0.6, 0.1, 0.3, 0.6)), jnp.log(column(0.2, 0.4, 0.2, 0.2))
    A = jnp.array([2.0, 1.0, -1.0, -1.0])
    close(objectives.surrogate(logp, behaviour, A)[:, 0], [6.0, 0.25, -1.5, -3.0])
    close(objectives.surrogate(logp, behaviour, A, cap=2.0)[:, 0], [4.0, 0.5, -1.5, -2.0])
    gradient = lambda cap: jax.grad(lambda x: objectives.surrogate(x, behaviour, A, cap).sum())(
        logp
    )[:, 0]
    close(gradient(0.0), [6.0, 0.25, -1.5, -3.0])
    close(gradient(2.0), [4.0, 0.5, -1.5, -2.0])


def test_no_gradient_through_the_behaviour():
    """The behaviour may be the policy's own value: ratio 1, gradient A and not 0."""
    same = lambda x: objectives.surrogate(x, x, jnp.array([3.0])).sum()
    value, gradient = jax.value_and_grad(same)(column(-1.7))
    assert value == 3.0 and gradient[0, 0] == 3.0


def test_clipped_surrogate():
    """min(rho A, clip(rho, 0.8, 1.3) A): flat where a step further along A would leave the range, never elsewhere."""
    rho, A = column(1.5, 1.5, 0.5, 0.5, 1.0), jnp.array([2.0, -2.0, 2.0, -2.0, 3.0])
    J = lambda logp: objectives.clipped_surrogate(logp, jnp.zeros((5, 1)), A, low=0.2, high=0.3)
    close(J(jnp.log(rho))[:, 0], [2.6, -3.0, 1.0, -1.6, 3.0])
    close(jax.grad(lambda x: J(x).sum())(jnp.log(rho))[:, 0], [0.0, -3.0, 1.0, 0.0, 3.0])


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


def test_k3():
    """e^d - d - 1 with d = log ref - log pi: 0 at equality, positive elsewhere; gradient in log pi is 1 - e^d."""
    d = jnp.log(jnp.array([1.0, 2.0, 0.5]))
    close(
        objectives.k3(-d, jnp.zeros(3)),
        [0.0, 1 - math.log(2), -0.5 + math.log(2)],
        rtol=1e-5,
        atol=1e-7,
    )
    close(
        jax.grad(lambda logp: objectives.k3(logp, jnp.zeros(3)).sum())(-d),
        [0.0, -1.0, 0.5],
        atol=1e-7,
    )


@pytest.mark.parametrize("gap", [1e4, -1e4])
def test_extremes_are_finite(gap):
    """A log-ratio of +-1e4 is bounded before exp: values and gradients stay finite."""
    functions = (
        lambda x: objectives.ratio(x, jnp.zeros(1)),
        lambda x: objectives.k3(x, jnp.zeros(1)),
        lambda x: objectives.surrogate(x[:, None], jnp.zeros((1, 1)), jnp.array([1.0])),
        lambda x: objectives.clipped_surrogate(
            x[:, None], jnp.zeros((1, 1)), jnp.array([-1.0]), 0.2, 0.2
        ),
    )
    for function in functions:
        value, gradient = jax.value_and_grad(lambda x, f=function: f(x).sum())(jnp.array([gap]))
        assert jnp.isfinite(value) and jnp.isfinite(gradient).all()
    close(objectives.ratio(jnp.array([gap]), jnp.zeros(1)), math.exp(math.copysign(20, gap)))


def test_J_SFT_by_hand():
    """Ragged lengths 2, 1, 0, 0: the mean over the 3 tokens that count, and its gradient (onehot - p) / 3 per token."""
    table = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [1 / 3, 1 / 3, 1 / 3]]))
    demos = rows([0, 1, 2, 2], [[1, 2, 0], [0, 2, 2], [1, 1, 1], [2, 2, 2]], [2, 1, 0, 0])
    J = objectives.J_SFT(toys.bigram(), demos)
    G, value, aux = objectives.gradient(J, {"table": table}, demos, {})
    close(value, (math.log(0.25) + math.log(0.7) + math.log(0.1)) / 3)
    close(
        G["table"],
        np.array([[-0.5, 0.75, -0.25], [0.9 - 0.1, -0.4, 0.3 - 0.7], [0, 0, 0]]) / 3,
        atol=1e-7,
    )
    close(aux["logp_BT"][0, :2], [math.log(0.25), math.log(0.7)])


def test_J_RL_by_hand():
    """Tokens, not rows, are averaged: lengths 1 and 3 make 4 tokens, each weighted with its row's advantage."""
    table = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
    rolled = on_policy(rows([0], [[1, 0, 0], [1, 1, 0]], [1, 3]), [1, 0])
    J = objectives.J_RL(toys.bigram(), rolled, objectives.surrogate)
    G, value, _ = objectives.gradient(
        J, {"table": table}, rolled.seqs, {"A_B": jnp.array([2.0, -1.0])}
    )
    close(value, (1 * 2.0 + 3 * -1.0) / 4)
    # row 0 of the table: token 1 with A = 2, token 1 with A = -1; row 1: tokens 1 and 0 with A = -1
    first = 2.0 * np.array([-0.5, 0.5]) - np.array([-0.5, 0.5])
    second = -np.array([-0.25, 0.25]) - np.array([0.75, -0.75])
    close(G["table"], np.array([first, second]) / 4)
    # off policy: behaviour twice as likely halves the first row's share
    given = {
        "A_B": jnp.array([2.0, 0.0]),
        "behaviour_BT": jnp.log(jnp.array([[1.0, 1, 1], [1, 1, 1]])),
    }
    G, value, _ = objectives.gradient(J, {"table": table}, rolled.seqs, given)
    close(value, 0.5 * 2.0 / 4)
    close(G["table"], np.array([[-0.5, 0.5], [0, 0]]) / 4)


def spread_policy(asked: list):
    """A table of logits; `asked` is told, in each backward pass, whether a gradient of the entropy was wanted."""

    @jax.custom_vjp
    def scored(table):
        logp_TV = jax.nn.log_softmax(table)
        return logp_TV, -jnp.sum(jnp.exp(logp_TV) * logp_TV, axis=-1)

    def forward(table):
        return scored(table.value), table.value

    def backward(table, gradients):
        asked.append(not isinstance(gradients[1], SymbolicZero))
        whole = [jnp.zeros(g.shape) if isinstance(g, SymbolicZero) else g for g in gradients]
        return jax.vjp(lambda x: scored.fun(x), table)[1](tuple(whole))

    scored.defvjp(forward, backward, symbolic_zeros=True)

    def logp(phi, seqs, temperature):
        logp_TV, entropy_T = scored(phi / temperature)
        B, T = seqs.tokens_BT.shape
        logp_BT = jnp.take_along_axis(logp_TV[None].repeat(B, 0), seqs.tokens_BT[..., None], 2)
        return logp_BT[..., 0], entropy_T[None].repeat(B, 0)

    return toys.bigram()._replace(logp=logp)


@pytest.mark.parametrize("coef", [0.0, 0.3])
def test_bonus_of_entropy(coef):
    """coef times the mean entropy is added to either objective, value and gradient, of the rows that are kept; without it nobody
    asks for a gradient of the entropy, so that its backward pass is none the dearer."""
    asked, seqs = [], rows([0, 1], [[1, 2], [0, 0], [2, 1]], [2, 1, 2])
    seqs = seqs.replace(prompt_PS=jnp.ones((3, 1), int), prompt_len_P=jnp.ones(3, int))
    policy, phi = spread_policy(asked), jnp.array([[0.3, -0.2, 1.0], [0.1, 0.7, -0.4]])
    A, kept = jnp.array([2.0, -1.0, 0.5]), jnp.array([1.0, 0.0, 1.0])
    total = 4.0

    def expected(phi, weight_B, temperature):
        logp_TV = jax.nn.log_softmax(phi / temperature)
        H_T = -jnp.sum(jnp.exp(logp_TV) * logp_TV, axis=-1)
        value = sum(
            kept[b] * (weight_B[b] * logp_TV[t, seqs.tokens_BT[b, t]] + coef * H_T[t])
            for b, length in enumerate((2, 1, 2))
            for t in range(length)
        )
        return value / total

    rolled = on_policy(seqs, [1, 0, 1]).replace(temperature=jnp.float32(0.7))
    of = dict(total=total, entropy_coef=coef)
    cases = {
        "sft": (objectives.J_SFT(policy, seqs, **of), {"included_B": kept}, jnp.ones(3), 1.0),
        "rl": (
            objectives.J_RL(policy, rolled, objectives.surrogate, **of),
            {"included_B": kept, "A_B": A},
            A,
            0.7,
        ),
    }
    for J, given, weight_B, temperature in cases.values():
        G, _, aux = objectives.gradient(J, phi, seqs, given)
        close(G, jax.grad(expected)(phi, weight_B, temperature), rtol=1e-5, atol=1e-7)
        assert aux["entropy_BT"].shape == (3, 2)
    assert asked == [coef > 0] * 2


def test_temperature_reaches_the_policy():
    """J_RL scores at the rollouts' temperature; J_SFT always at 1."""
    seen = []
    policy = toys.bigram()._replace(
        logp=lambda phi, seqs, temperature: (
            seen.append(float(temperature)),
            toys.bigram_logp(phi, seqs, temperature),
        )[1]
    )
    rolled = on_policy(rows([0], [[1]], [1]), [1]).replace(temperature=jnp.float32(0.5))
    phi = toys.bigram_theta()
    objectives.J_RL(policy, rolled, objectives.surrogate)(phi, rolled.seqs, {"A_B": jnp.ones(1)})
    objectives.J_SFT(policy, rolled.seqs)(phi, rolled.seqs, {})
    assert seen == [0.5, 1.0]


@pytest.mark.parametrize("behaved", [False, True])
def test_gradient_of_the_kl_by_hand(behaved):
    """One state, every token seen once. As samples of a uniform behaviour the ratio makes it an expectation under pi:
    -c E_pi[(1 - ref/pi) (onehot - pi)] = -c (pi - ref). Without a behaviour the tokens count alike."""
    p, ref, c = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5]), 0.7
    rolled = on_policy(rows([0, 0, 0], [[0], [1], [2]], [1, 1, 1]), [0, 0, 0])
    J = objectives.J_RL(toys.bigram(), rolled, objectives.surrogate, kl_coef=c)
    given = {"A_B": jnp.zeros(3), "ref_BT": jnp.log(ref)[:, None]}
    if behaved:
        given["behaviour_BT"] = jnp.log(column(1 / 3, 1 / 3, 1 / 3))
    G, value, aux = objectives.gradient(
        J, {"table": jnp.log(jnp.asarray([p, p, p]))}, rolled.seqs, given
    )
    k3 = ref / p - np.log(ref / p) - 1
    weights = 3 * p if behaved else np.ones(3)
    by_hand = -c * np.sum((weights * (1 - ref / p))[:, None] * (np.eye(3) - p), axis=0) / 3
    close(value, -c * np.sum(weights * k3) / 3, rtol=1e-5)
    close(G["table"][0], by_hand, rtol=1e-5, atol=1e-7)
    if behaved:
        close(by_hand, -c * (p - ref), atol=1e-12)
    close(aux["kl_BT"][:, 0], k3, rtol=1e-5, atol=1e-6)


def test_micro_split():
    """16 rows of 4 prompts: whole groups per micro-batch, or parts of one; a row keeps its own prompt; join undoes it."""
    seqs = toys.sequences(0, P=4, M=4)
    for count in (1, 2, 4, 8, 16):
        split, (index,) = objectives.micro_split(seqs, (jnp.arange(16),), count)
        rows = index.shape[1]
        assert index.shape[0] == count and sorted(index.reshape(-1).tolist()) == list(range(16))
        assert split.prompt_len_P.shape == (count, max(1, rows // 4))
        prompts = np.repeat(split.prompt_PS, rows // split.prompt_len_P.shape[1], axis=1)
        np.testing.assert_array_equal(prompts, seqs.prompt_PS[index // 4])
        np.testing.assert_array_equal(split.tokens_BT, seqs.tokens_BT[index])
        np.testing.assert_array_equal(split.length_B, seqs.length_B[index])
        np.testing.assert_array_equal(objectives.micro_join(index, 4), np.arange(16))
    for P, count in ((2, 3), (4, 6), (3, 2)):
        with pytest.raises(
            ValueError, match=f"rows of {P} prompts cannot be cut into {count} micro-batches"
        ):
            objectives.micro_split(toys.sequences(0, P=P, M=4 if P < 4 else 3), {}, count)
    assert [objectives.micro_count(8, rows) for rows in (0, 1, 2, 8, 64)] == [1, 8, 4, 1, 1]


def test_gradient_over_micro_batches():
    """1, 2, 4, 8 micro-batches: the same gradient, value and aux, since the count is global. G is fp32 for bf16 weights."""
    policy, demos = toys.bigram(), toys.sequences(1, P=8, M=1, vocab=toys.V)
    J, phi = objectives.J_SFT(policy, demos), toys.bigram_theta()
    whole = objectives.gradient(J, phi, demos, {})
    for microbatch_rows in (4, 2, 1):
        assert toys.change(objectives.gradient(J, phi, demos, {}, microbatch_rows), whole) < 1e-6
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), phi)
    assert objectives.gradient(J, half, demos, {})[0]["table"].dtype == jnp.float32


def test_a_pass_of_a_lost_step_is_not_made():
    """Before a finite number the pass is what it is without one; after any other its J is NaN, and it costs nothing."""
    seqs = rows([0, 1, 2, 0], [[1, 2], [2, 0], [1, 1], [0, 0]], [2, 1, 2, 1])
    J, theta = objectives.J_SFT(toys.bigram(), seqs), toys.bigram_theta()
    of = jax.jit(lambda done: objectives.gradient(J, theta, seqs, {}, 2, done))
    whole = objectives.gradient(J, theta, seqs, {}, 2)
    for mine, theirs in zip(
        jax.tree.leaves(of(jnp.float32(-3.0))), jax.tree.leaves(whole), strict=True
    ):
        close(mine, theirs, atol=1e-7)
    for done in (jnp.inf, -jnp.inf, jnp.nan):
        G, value, aux = of(jnp.float32(done))
        assert jnp.isnan(value) and not any(x.any() for x in jax.tree.leaves((G, aux)))


def test_logp_of_is_the_policy_at_its_temperature():
    """Forward only, in micro-batches, equal to one call."""
    rolled = toys.rollouts(3, P=2, M=4, temperature=0.6, vocab=toys.V)
    phi = toys.bigram_theta()
    expected = toys.bigram_logp(phi, rolled.seqs, 0.6)[0]
    for microbatch_rows in (0, 4, 2):
        close(objectives.logp_of(toys.bigram(), phi, rolled, microbatch_rows), expected)


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


def test_token_means():
    """Sums over the tokens of the whole batch; a batch of nothing but padding rows divides by 1."""
    seqs = rows([0, 0], [[1, 1, 1], [1, 1, 1]], [1, 2])
    close(objectives.mean_tokens(jnp.array([[1.0, 9, 9], [2, 6, 9]]), seqs), 3.0)
    assert (
        objectives.token_total(seqs) == 3
        and objectives.token_total(seqs.replace(length_B=jnp.zeros(2, jnp.int32))) == 1
    )


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
