"""Terms of the objectives J: likelihood, importance-weighted surrogates, KL, advantages.

Objectives are maximised. Each is a sum over tokens divided by a count of the GLOBAL batch, so that
the number of micro-batches changes nothing. Masks follow from lengths.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bridge_jax.objectives.fusion import fusion_boundary
from bridge_jax.objectives.microbatch import logp_of
from bridge_jax.types import Policy, Rollouts, Sequences, Tree

LOG_RATIO_BOUND = 20.0  # applied before exp: a bound after it leaves 0 * inf in the gradient


def token_mask(length_B: jax.Array, T: int) -> jax.Array:
    """1.0 where position t < length, [B,T] fp32."""
    return (jnp.arange(T) < length_B[:, None]).astype(jnp.float32)


def ratio(logp: jax.Array, behaviour: jax.Array) -> jax.Array:
    """rho = exp(logp - behaviour), the difference bounded to +-20; no gradient in the behaviour."""
    return jnp.exp(
        jnp.clip(logp - jax.lax.stop_gradient(behaviour), -LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    )


def surrogate(logp_BT, behaviour_BT, A_B, cap: float = 0.0) -> jax.Array:
    """rho_t A per token, [B,T]; its gradient is the importance-weighted policy gradient.

    cap > 1 bounds the weight to [1/cap, cap] for both signs of A, and every token keeps a gradient;
    0: no bound.
    """
    rho = ratio(logp_BT, behaviour_BT)
    # a clip alone would remove the gradient of all tokens beyond it
    if cap:
        rho *= jax.lax.stop_gradient(jnp.clip(rho, 1.0 / cap, cap) / rho)
    return rho * A_B[:, None]


def clipped_surrogate(logp_BT, behaviour_BT, A_B, low: float, high: float) -> jax.Array:
    """min(rho A, clip(rho, 1 - low, 1 + high) A) per token, [B,T] (PPO, Schulman et al. 2017)."""
    rho, A = ratio(logp_BT, behaviour_BT), A_B[:, None]
    return jnp.minimum(rho * A, jnp.clip(rho, 1.0 - low, 1.0 + high) * A)


def k3(logp: jax.Array, logp_ref: jax.Array) -> jax.Array:
    """e^d - d - 1 with d = logp_ref - logp: KL(pi || ref) from samples of pi (Schulman 2020).

    d is bounded to +-20.
    """
    d = jnp.clip(logp_ref - logp, -LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    return jnp.exp(d) - d - 1.0


def check_advantage(key: str, kind: str) -> None:
    """ValueError for an unknown kind of advantage; key: the setting."""
    if kind not in ("group", "mean"):
        raise ValueError(f"{key}={kind!r}; allowed: 'group', 'mean'")


def group_advantages(reward_B: jax.Array, M: int, kind: str = "group") -> jax.Array:
    """A = (R - mean) / (std + 1e-6) over the M samples of a prompt (GRPO).

    kind "mean": A = R - mean (Dr. GRPO). std divides by M - 1, as in verl, TRL and Trinity. For RL
    alone this is a factor that Adam cancels; mixed with SFT it weighs RL by sqrt((M - 1) / M)
    relative to a division by M. A group of one sample has A = 0.
    """
    check_advantage("advantage", kind)
    R_PM = reward_B.reshape(-1, M)
    # equal rewards become exact zeros; otherwise the rounding error of their mean, divided by 1e-6,
    # would be an advantage
    R_PM = R_PM - R_PM[:, :1]
    centred = R_PM - R_PM.mean(axis=1, keepdims=True)
    if kind == "group":
        centred = centred / (R_PM.std(axis=1, ddof=min(1, M - 1), keepdims=True) + 1e-6)
    return centred.reshape(-1)


def advantages_with_demo(
    rollouts: Rollouts, demos: Sequences, kind: str
) -> tuple[jax.Array, jax.Array]:
    """A of the samples [B] and of the demos [D]: demo p, of reward 1, joins the group of prompt p.

    Padding rows of demos get 0.
    """
    M, P = group_size(rollouts), rollouts.seqs.prompt_len_P.shape[0]
    R_PN = jnp.concatenate([rollouts.reward_B.reshape(P, M), jnp.ones((P, 1))], axis=1)
    A_PN = group_advantages(R_PN.reshape(-1), M + 1, kind).reshape(P, M + 1)
    return A_PN[:, :M].reshape(-1), jnp.pad(A_PN[:, M], (0, demos.length_B.shape[0] - P))


def score(policy: Policy, phi: Tree, seqs: Sequences, temperature, entropy_coef: float):
    """logp_BT and entropy_BT; without entropy_coef the entropy is a metric and has no gradient."""
    logp_BT, entropy_BT = policy.logp(phi, seqs, temperature)
    return logp_BT, entropy_BT if entropy_coef else jax.lax.stop_gradient(entropy_BT)


def J_SFT(
    policy: Policy,
    demos: Sequences,
    term=lambda logp_BT, rows: logp_BT,
    total=None,
    entropy_coef: float = 0.0,
):
    """J_SFT(phi) = mean log pi_phi(y*_t) over the demo tokens of the whole batch.

    term(logp_BT, rows) [B,T] replaces log pi where a method weighs the tokens. total: the divisor
    of the sum. entropy_coef times the token's entropy is added. rows may have included_B, 0 for
    rows that are left out.
    """
    total = token_total(demos) if total is None else total

    def J(phi, seqs: Sequences, rows):
        logp_BT, entropy_BT = score(policy, phi, seqs, 1.0, entropy_coef)
        value_BT = term(logp_BT, rows)
        if entropy_coef:
            value_BT += entropy_coef * entropy_BT
        aux = {"logp_BT": logp_BT, "entropy_BT": entropy_BT}
        return jnp.sum(value_BT * row_mask(seqs, rows, logp_BT.shape[1])) / total, aux

    return J


def J_RL(
    policy: Policy,
    rollouts: Rollouts,
    term,
    kl_coef: float = 0.0,
    total=None,
    entropy_coef: float = 0.0,
):
    """J_RL(phi) = mean over tokens of term(log pi, behaviour, A) - kl_coef KL + entropy_coef H.

    term: surrogate or clipped_surrogate with its bounds set. KL is k3(pi_phi || ref), weighted by
    the importance ratio; the entropy H is not. total: the divisor of the sum; None: the number of
    sampled tokens. rows: A_B; behaviour_BT (absent: the policy itself, with ratio 1, as in the
    first update on its own samples); ref_BT (if kl_coef > 0); included_B (0 for rows left out).
    """
    total = token_total(rollouts.seqs) if total is None else total

    def J(phi, seqs: Sequences, rows: dict):
        logp_BT, entropy_BT = fusion_boundary(
            score(policy, phi, seqs, rollouts.temperature, entropy_coef)
        )
        behaviour_BT = rows.get("behaviour_BT", logp_BT)
        value_BT = term(logp_BT, behaviour_BT, rows["A_B"])
        aux = {"logp_BT": logp_BT, "entropy_BT": entropy_BT}
        if kl_coef:
            aux["kl_BT"] = k3(logp_BT, rows["ref_BT"])
            value_BT -= kl_coef * jax.lax.stop_gradient(ratio(logp_BT, behaviour_BT)) * aux["kl_BT"]
        if entropy_coef:
            value_BT += entropy_coef * entropy_BT
        return jnp.sum(value_BT * row_mask(seqs, rows, logp_BT.shape[1])) / total, aux

    return J


def row_mask(seqs: Sequences, rows: dict, T: int) -> jax.Array:
    """1.0 at the tokens of the included rows, [B,T]."""
    mask_BT = token_mask(seqs.length_B, T)
    return mask_BT * rows["included_B"][:, None] if "included_B" in rows else mask_BT


def group_size(rollouts: Rollouts) -> int:
    """M, samples of each prompt."""
    return rollouts.seqs.length_B.shape[0] // rollouts.seqs.prompt_len_P.shape[0]


def reference(policy: Policy, theta: Tree, kl_coef: float) -> Tree | None:
    """phi of the initial policy for the KL term; None without one."""
    return policy.merge(theta, None) if kl_coef else None


def rl_rows(
    policy: Policy,
    ref: Tree,
    rollouts: Rollouts,
    advantage: str,
    kl_coef: float,
    microbatch_rows: int,
) -> dict:
    """The rows of J_RL: advantages, and the reference's log-probabilities if kl_coef > 0."""
    rows = {"A_B": group_advantages(rollouts.reward_B, group_size(rollouts), advantage)}
    if kl_coef:
        rows["ref_BT"] = logp_of(policy, ref, rollouts, microbatch_rows)
    return rows


def token_total(seqs: Sequences) -> jax.Array:
    """Completion tokens of the whole batch, at least 1, fp32."""
    return jnp.maximum(seqs.length_B.sum(), 1).astype(jnp.float32)


def mean_tokens(x_BT: jax.Array, seqs: Sequences) -> jax.Array:
    """Mean of x over the tokens of the batch."""
    return jnp.sum(x_BT * token_mask(seqs.length_B, x_BT.shape[1])) / token_total(seqs)
