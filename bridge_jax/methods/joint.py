"""The control without theta_hat: theta and the adapter w both ascend (1 - lam) J_SFT + lam J_RL.

    theta += alpha [ (1-lam) dJ_SFT/dtheta + lam dJ_RL/dtheta ],   w += beta [ (1-lam) dJ_SFT/dw + lam dJ_RL/dw ]

This is BRIDGE with the bracket's second term left out ("w/o J_meta" in arXiv 2509.06948): what BRIDGE gains over it is due to the
cooperative gain, not to the adapter's extra parameters or to its learning rate. Two backward passes, one copy of the parameters
and the adapter.
"""

from __future__ import annotations

import dataclasses

import jax

from bridge_jax import objectives
from bridge_jax.config import checks
from bridge_jax.optim import Recipes, apply_ascent, begin, lam_milestones, schedule
from bridge_jax.types import Batch, Method, Params, Policy, Reads, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of BRIDGE that are left without a shadow."""

    lam: float = 0.5
    lam_schedule: str = "constant"
    lam_end: float = 1.0
    lam_steps: int = 0
    lam_boundaries: tuple[int, ...] = ()
    lam_values: tuple[float, ...] = ()
    advantage: str = "group"
    kl_coef: float = 0.0


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """theta and w on the mixture; state: Params(theta, w), and ref when kl_coef > 0."""
    objectives.check_advantage(cfg.advantage)
    checks.check_range("method.kl_coef", cfg.kl_coef, 0.0)
    for lam in (cfg.lam, cfg.lam_end, *cfg.lam_values):
        checks.check_range("method.lam, lam_end and lam_values", lam, 0.0, 1.0)
    lam_at = schedule(
        cfg.lam_schedule, cfg.lam, cfg.lam_end, cfg.lam_steps, cfg.lam_boundaries, cfg.lam_values
    )

    def init(theta, key) -> TrainState:
        ref = policy.merge(theta, None) if cfg.kl_coef else None
        return begin(recipes, Params(theta=theta, w=policy.init_w(key)), ref)

    def update(state: TrainState, batch: Batch):
        rollouts, lam, w = batch.rollouts["theta"], lam_at(state.step), state.params.w
        phi = policy.merge(state.params.theta, w)
        rows = objectives.rl_rows(
            policy, state.ref, rollouts, cfg.advantage, cfg.kl_coef, microbatch_rows
        )
        J_RL = objectives.J_RL(policy, rollouts, objectives.surrogate, cfg.kl_coef)
        G_SFT, sft_J, sft = objectives.gradient(
            objectives.J_SFT(policy, batch.demos), phi, batch.demos, {}, microbatch_rows
        )
        G_RL, rl_J, rl = objectives.gradient(J_RL, phi, rollouts.seqs, rows, microbatch_rows)
        G = jax.tree.map(lambda s, r: (1 - lam) * s + lam * r, G_SFT, G_RL)
        state, metrics = apply_ascent(
            recipes, state, Params(theta=G, w=policy.pull(w, G)), (rl_J, sft_J)
        )
        metrics |= objectives.rollout_metrics(rl, rollouts) | objectives.demo_metrics(
            sft, batch.demos
        )
        metrics |= {"rl/J": rl_J, "bridge/lam": lam} | objectives.cooperation(G_SFT, G_RL)
        return state, metrics | objectives.passed(
            batch.demos, rollouts.seqs, forward=(rollouts.seqs,) * bool(cfg.kl_coef)
        )

    return Method(
        init,
        update,
        policy=lambda params, actor="theta": policy.merge(params.theta, params.w),
        kinds=(Reads(actors=("theta",), demos=True),),
        milestones=lam_milestones(cfg),
    )
