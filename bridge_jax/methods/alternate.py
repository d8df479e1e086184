"""Alternating: a step of GRPO, then a step of SFT, on the same theta and optimizer state.

    theta += alpha dJ_RL(theta)     in steps 0, 2, ...
    theta += alpha dJ_SFT(theta)    in steps 1, 3, ...

The "naive alternating" of the BRIDGE paper's comparison (arXiv 2509.06948). Each counts as a step
of the run, so that the method samples half as much as one that samples in every step. One backward
pass, one copy of the parameters (two with a KL term).
"""

from __future__ import annotations

import dataclasses

from bridge_jax.methods import grpo, sft
from bridge_jax.optim import Recipes
from bridge_jax.types import Batch, Method, Policy, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the GRPO half; SFT has none."""

    advantage: str = "group"
    kl_coef: float = 0.0


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """Both halves share one state: Params(theta), and ref when kl_coef > 0."""
    rl_cfg = grpo.Config(advantage=cfg.advantage, kl_coef=cfg.kl_coef)
    rl = grpo.make(rl_cfg, policy, recipes, microbatch_rows, "method.alternate")
    sft_method = sft.make(sft.Config(), policy, recipes, microbatch_rows)

    def update(state: TrainState, batch: Batch):
        return (rl if batch.rollouts else sft_method).update(state, batch)

    return Method(
        rl.init,
        update,
        rl.policy,
        step_kinds=(*rl.step_kinds, *sft_method.step_kinds),
        kind_of_step=lambda step: step % 2,
    )
