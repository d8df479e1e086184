"""Hybrid: ascend J_RL(theta) + mu J_SFT(theta) in one update, on separate prompts and experts.

The "SFT+RL hybrid" of the BRIDGE paper's comparison (arXiv 2509.06948 v3). J_RL is GRPO's with one update per batch, so without
a clip; J_SFT the mean log-likelihood of expert tokens. The gradients are mixed before the optimizer. With mu = (1 - lam) / lam
this is BRIDGE with a frozen adapter (beta = 0), up to the scale 1 / lam, which Adam takes out: the first control of every
comparison. Two backward passes, one copy of the parameters.
"""

from __future__ import annotations

import dataclasses

import jax

from bridge_jax import objectives
from bridge_jax.config import checks
from bridge_jax.optim import Recipes, apply_ascent, begin
from bridge_jax.types import Batch, Method, Params, Policy, Reads, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the hybrid."""

    mu: float = 1.0  # weight of J_SFT
    advantage: str = "group"
    kl_coef: float = 0.0


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """The hybrid of all base weights; state: Params(theta), and ref when kl_coef > 0."""
    objectives.check_advantage(cfg.advantage)
    checks.check_range("method.mu", cfg.mu, 0.0)
    checks.check_range("method.kl_coef", cfg.kl_coef, 0.0)

    def init(theta, key) -> TrainState:
        return begin(
            recipes, Params(theta=theta), policy.merge(theta, None) if cfg.kl_coef else None
        )

    def update(state: TrainState, batch: Batch):
        rollouts, phi = batch.rollouts["theta"], policy.merge(state.params.theta, None)
        rows = objectives.rl_rows(
            policy, state.ref, rollouts, cfg.advantage, cfg.kl_coef, microbatch_rows
        )
        J_RL = objectives.J_RL(policy, rollouts, objectives.surrogate, cfg.kl_coef)
        G_RL, rl_J, rl = objectives.gradient(J_RL, phi, rollouts.seqs, rows, microbatch_rows)
        G_SFT, sft_J, sft = objectives.gradient(
            objectives.J_SFT(policy, batch.demos), phi, batch.demos, {}, microbatch_rows
        )
        G = jax.tree.map(lambda r, s: r + cfg.mu * s, G_RL, G_SFT)
        state, metrics = apply_ascent(recipes, state, Params(theta=G), (rl_J, sft_J))
        metrics |= objectives.rollout_metrics(rl, rollouts) | objectives.demo_metrics(
            sft, batch.demos
        )
        metrics |= {"rl/J": rl_J} | objectives.cooperation(G_SFT, G_RL)
        return state, metrics | objectives.passed(
            batch.demos, rollouts.seqs, forward=(rollouts.seqs,) * bool(cfg.kl_coef)
        )

    return Method(
        init,
        update,
        policy=lambda params, actor="theta": policy.merge(params.theta, None),
        kinds=(Reads(actors=("theta",), demos=True),),
    )
