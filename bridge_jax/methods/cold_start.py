"""Cold start: SFT for the first sft_steps, then GRPO, in one run.

    theta += alpha dJ_SFT(theta)    in steps 0, ..., sft_steps - 1
    theta += alpha dJ_RL(theta)     in later steps

The first two stages of DeepSeek-R1 (arXiv 2501.12948); the "cold-start" of the BRIDGE paper's
comparison (arXiv 2509.06948). RL begins with a new optimizer state and learning-rate schedule,
since the moments belong to another objective. With a KL term the policy after SFT becomes the
reference. sft_steps = 0 is GRPO. One backward pass, one copy of the parameters (two with a KL
term).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from bridge_jax import objectives
from bridge_jax.config import checks
from bridge_jax.methods import grpo, sft
from bridge_jax.optim import Recipes
from bridge_jax.types import Batch, Method, Policy, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of cold start."""

    sft_steps: int = 50
    advantage: str = "group"
    kl_coef: float = 0.0  # weight of the KL to the policy after SFT


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """SFT, then GRPO of all base weights; state: Params(theta), and ref when kl_coef > 0."""
    checks.check_range("method.cold_start.sft_steps", cfg.sft_steps, 0)
    rl_cfg = grpo.Config(advantage=cfg.advantage, kl_coef=cfg.kl_coef)
    rl = grpo.make(rl_cfg, policy, recipes, microbatch_rows, "method.cold_start")
    sft_method = sft.make(sft.Config(), policy, recipes, microbatch_rows)

    def begin_rl(state: TrainState) -> TrainState:
        ref = objectives.reference(policy, state.params.theta, cfg.kl_coef)
        ref = jax.tree.map(jnp.copy, ref)
        return state.replace(opt_state=recipes.optimizer().init(state.params), ref=ref)

    def update(state: TrainState, batch: Batch):
        if not batch.rollouts:
            return sft_method.update(state, batch)
        # `step` counts a skipped first step of RL too, whose optimizer state is still new
        return rl.update(
            jax.lax.cond(state.step == cfg.sft_steps, begin_rl, lambda state: state, state), batch
        )

    return Method(
        rl.init,
        update,
        rl.policy,
        step_kinds=(*sft_method.step_kinds, *rl.step_kinds),
        kind_of_step=lambda step: int(step >= cfg.sft_steps),
        restarts=(cfg.sft_steps,),
        milestones={"method.cold_start.sft_steps": cfg.sft_steps + 1},
    )
