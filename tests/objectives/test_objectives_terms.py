"""Every term of an objective equals numbers by hand and is finite at the extremes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_derivatives import SymbolicZero

from bridge_jax import objectives
from tests import errors, toys
from tests.objectives.examples import close, on_policy, rows


def column(*values):
    """[B, 1] fp32."""
    return jnp.asarray(values, jnp.float32)[:, None]


def test_token_mask():
    """Position t counts where t < length; length 0 is a padding row."""
    expected = [[0, 0, 0], [1, 1, 0], [1, 1, 1]]
    np.testing.assert_array_equal(objectives.token_mask(jnp.array([0, 2, 3]), 3), expected)


def test_group_advantages():
    """Rewards 1 0 0 0 have mean 1/4 and unbiased std 1/2, 0 1 1 0 one of sqrt(1/3); an all-equal
    group gets exactly 0.
    """
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
    with errors.raises(ValueError, "advantage='rank'", "'group', 'mean'"):
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
    """Exactly 0 for any number of samples: a mean that rounds to 1 + 6e-8, divided by 1e-6, would
    be an advantage of .06.
    """
    for M in (3, 5, 15, 41, 63):
        A = jax.jit(lambda R, M=M: objectives.group_advantages(R, M), compiler_options=options)(
            jnp.ones(2 * M)
        )
        assert not A.any(), M


def test_surrogate():
    """rho A with rho = pi / behaviour; a cap of 2 bounds rho to [1/2, 2] whatever the sign of A;
    the gradient is the same as the value.
    """
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
    """min(rho A, clip(rho, 0.8, 1.3) A): flat where a step further along A would leave the range,
    never elsewhere.
    """
    rho, A = column(1.5, 1.5, 0.5, 0.5, 1.0), jnp.array([2.0, -2.0, 2.0, -2.0, 3.0])
    J = lambda logp: objectives.clipped_surrogate(logp, jnp.zeros((5, 1)), A, low=0.2, high=0.3)
    close(J(jnp.log(rho))[:, 0], [2.6, -3.0, 1.0, -1.6, 3.0])
    close(jax.grad(lambda x: J(x).sum())(jnp.log(rho))[:, 0], [0.0, -3.0, 1.0, 0.0, 3.0])


def test_k3():
    """e^d - d - 1 with d = log ref - log pi: 0 at equality, positive elsewhere; gradient in log pi
    is 1 - e^d.
    """
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
    """Ragged lengths 2, 1, 0, 0: the mean over the 3 tokens that count, and its gradient (onehot -
    p) / 3 per token.
    """
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
    """Tokens, not rows, are averaged: lengths 1 and 3 make 4 tokens, each weighted with its row's
    advantage.
    """
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
    """A table of logits; `asked` is told, in each backward pass, whether a gradient of the entropy
    was wanted.
    """

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


@pytest.mark.slow
@pytest.mark.parametrize("coef", [0.0, 0.3])
def test_bonus_of_entropy(coef):
    """coef times the mean entropy is added to either objective, value and gradient, of the rows
    that are kept; without it nobody asks for a gradient of the entropy, so that its backward pass
    is none the dearer.
    """
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
    """One state, every token seen once. As samples of a uniform behaviour the ratio makes it an
    expectation under pi: -c E_pi[(1 - ref/pi) (onehot - pi)] = -c (pi - ref). Without a behaviour
    the tokens count alike.
    """
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


def test_token_means():
    """Sums over the tokens of the whole batch; a batch of nothing but padding rows divides by 1."""
    seqs = rows([0, 0], [[1, 1, 1], [1, 1, 1]], [1, 2])
    close(objectives.mean_tokens(jnp.array([[1.0, 9, 9], [2, 6, 9]]), seqs), 3.0)
    assert (
        objectives.token_total(seqs) == 3
        and objectives.token_total(seqs.replace(length_B=jnp.zeros(2, jnp.int32))) == 1
    )
