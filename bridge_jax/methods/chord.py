"""CHORD (Zhang et al. 2025, arXiv 2508.11408): ascend (1 - mu) J_GRPO(theta) + mu J_SFT(theta), mu falling with the step.

mu: the share of SFT goes from chord_mu to chord_mu_end by a cosine over chord_steps. phi: chord_weighting="phi" weighs each
expert token by stop_grad(p (1 - p)), so that tokens the policy is sure of, either way, teach little; the paper pairs it with
a constant mu of 0.1 (chord_mu=0.1, chord_mu_end=0.1). With a constant mu and no weights it is the hybrid, up to scale.
Two backward passes, one copy of the parameters.

Other than in Trinity, the authors' code: J_GRPO has no clip here, which with one update on a batch of fresh samples would be
idle, and mu has no warm-up, which there is off by default.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from bridge_jax import objectives
from bridge_jax.config import checks
from bridge_jax.optim import Recipes, apply_ascent, begin, schedule
from bridge_jax.types import Batch, Method, Params, Policy, Reads, TrainState

WEIGHTINGS = {
    "mu": lambda logp_BT, rows: logp_BT,
    "phi": lambda logp_BT, rows: (
        jax.lax.stop_gradient(jnp.exp(logp_BT) * (1.0 - jnp.exp(logp_BT))) * logp_BT
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of CHORD."""

    chord_mu: float = 0.9  # at the first step
    chord_mu_end: float = 0.05
    chord_steps: int = 200  # over which a cosine leads from one to the other
    chord_weighting: str = "mu"  # "mu": all expert tokens alike; "phi": by p (1 - p)
    advantage: str = "group"
    kl_coef: float = 0.0


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """CHORD of all base weights; state: Params(theta), and ref when kl_coef > 0."""
    objectives.check_advantage(cfg.advantage)
    if cfg.chord_weighting not in WEIGHTINGS:
        raise ValueError(
            f"method.chord_weighting={cfg.chord_weighting!r}; allowed: {', '.join(WEIGHTINGS)}"
        )
    for key in ("chord_mu", "chord_mu_end"):
        checks.check_range(f"method.{key}", getattr(cfg, key), 0.0, 1.0)
    checks.check_range("method.kl_coef", cfg.kl_coef, 0.0)
    # equal ends are how a constant mu is said
    kind = "constant" if cfg.chord_mu == cfg.chord_mu_end else "cosine"
    checks.check_range("method.chord_steps", cfg.chord_steps, 1)
    mu_at = schedule(kind, cfg.chord_mu, cfg.chord_mu_end, cfg.chord_steps)

    def init(theta, key) -> TrainState:
        return begin(
            recipes, Params(theta=theta), policy.merge(theta, None) if cfg.kl_coef else None
        )

    def update(state: TrainState, batch: Batch):
        rollouts, phi, mu = (
            batch.rollouts["theta"],
            policy.merge(state.params.theta, None),
            mu_at(state.step),
        )
        rows = objectives.rl_rows(
            policy, state.ref, rollouts, cfg.advantage, cfg.kl_coef, microbatch_rows
        )
        J_RL = objectives.J_RL(policy, rollouts, objectives.surrogate, cfg.kl_coef)
        J_SFT = objectives.J_SFT(policy, batch.demos, WEIGHTINGS[cfg.chord_weighting])
        G_RL, rl_J, rl = objectives.gradient(J_RL, phi, rollouts.seqs, rows, microbatch_rows)
        G_SFT, sft_J, sft = objectives.gradient(J_SFT, phi, batch.demos, {}, microbatch_rows)
        G = jax.tree.map(lambda r, s: (1 - mu) * r + mu * s, G_RL, G_SFT)
        state, metrics = apply_ascent(recipes, state, Params(theta=G), (rl_J, sft_J))
        metrics |= objectives.rollout_metrics(rl, rollouts) | objectives.demo_metrics(
            sft, batch.demos
        )
        metrics |= {"rl/J": rl_J, "chord/mu": mu} | objectives.cooperation(G_SFT, G_RL)
        return state, metrics | objectives.passed(
            batch.demos, rollouts.seqs, forward=(rollouts.seqs,) * bool(cfg.kl_coef)
        )

    return Method(
        init,
        update,
        policy=lambda params, actor="theta": policy.merge(params.theta, None),
        kinds=(Reads(actors=("theta",), demos=True),),
        milestones={"method.chord_steps": cfg.chord_steps} if kind == "cosine" else {},
    )
