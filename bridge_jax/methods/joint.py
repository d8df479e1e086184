"""The control without theta_hat: theta and the adapter w both ascend (1 - lam) J_SFT + lam J_RL.

    theta += alpha [ (1-lam) dJ_SFT/dtheta + lam dJ_RL/dtheta ]
    w     += beta  [ (1-lam) dJ_SFT/dw + lam dJ_RL/dw ]

This is BRIDGE without the theta_hat term ("w/o J_meta" in arXiv 2509.06948). An advantage of BRIDGE
over it comes from the cooperative gain, not from the adapter's extra parameters or learning rate.
Two backward passes, one copy of the parameters and the adapter.
"""

from __future__ import annotations

import dataclasses

import jax

from bridge_jax import objectives
from bridge_jax.config import checks
from bridge_jax.config.schedule import Schedule, check_schedule
from bridge_jax.methods import hybrid
from bridge_jax.optim import Recipes, apply_ascent, init_train_state, schedule
from bridge_jax.types import Batch, BatchSpec, Method, Params, Policy, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of BRIDGE that do not concern theta_hat."""

    lam: float = 0.5
    lam_schedule: Schedule = Schedule()
    advantage: str = "group"
    kl_coef: float = 0.0


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """theta and w on the mixture; state: Params(theta, w), and ref when kl_coef > 0."""
    objectives.check_advantage("method.joint.advantage", cfg.advantage)
    checks.check_range("method.joint.kl_coef", cfg.kl_coef, 0.0)
    check_schedule("method.joint.lam_schedule", cfg.lam, cfg.lam_schedule)
    lam_at = schedule(cfg.lam, cfg.lam_schedule)

    def init(theta, key) -> TrainState:
        ref = objectives.reference(policy, theta, cfg.kl_coef)
        return init_train_state(recipes, Params(theta=theta, w=policy.init_w(key)), ref)

    def update(state: TrainState, batch: Batch):
        lam, w = lam_at(state.step), state.params.w
        passes = hybrid.rl_and_sft(cfg, policy, state.ref, batch, microbatch_rows)
        rl, sft = passes(policy.merge(state.params.theta, w))
        G = jax.tree.map(lambda s, r: (1 - lam) * s + lam * r, sft.G, rl.G)
        ascent = Params(theta=G, w=policy.pull(w, G))
        state, metrics = apply_ascent(recipes, state, ascent, (rl.J, sft.J))
        return state, metrics | hybrid.metrics_of(batch, rl, sft, cfg.kl_coef) | {"bridge/lam": lam}

    return Method(
        init,
        update,
        policy=lambda params, name="theta": policy.merge(params.theta, params.w),
        step_kinds=(BatchSpec(sampled_by=("theta",), demos=True),),
        milestones=cfg.lam_schedule.milestones("method.joint.lam_schedule"),
    )
