"""Supervised fine-tuning (Ouyang et al. 2022, arXiv 2203.02155, first stage) of all base weights.

    J_SFT = < log pi(y*_t | x, y*_<t) >,   < . > the mean over the demo tokens of the global batch

The tokens of prompts are not trained on. No sampling. One backward pass, one copy of the
parameters.
"""

from __future__ import annotations

import dataclasses

from bridge_jax import objectives
from bridge_jax.optim import Recipes, apply_ascent, init_train_state
from bridge_jax.types import Batch, BatchSpec, Method, Params, Policy, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """SFT has no settings of its own; its learning rate is optim.base.learning_rate."""


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """SFT of all base weights; state: Params(theta)."""

    def init(theta, key) -> TrainState:
        return init_train_state(recipes, Params(theta=theta))

    def update(state: TrainState, batch: Batch):
        phi = policy.merge(state.params.theta, None)
        J_SFT = objectives.J_SFT(policy, batch.demos)
        G, J, aux = objectives.gradient(J_SFT, phi, batch.demos, {}, microbatch_rows)
        state, applied = apply_ascent(recipes, state, Params(theta=G), (J,))
        applied |= objectives.token_counts(batch.demos)
        return state, objectives.demo_metrics(aux, batch.demos) | applied

    return Method(
        init,
        update,
        policy=lambda params, name="theta": policy.merge(params.theta, None),
        step_kinds=(BatchSpec(sampled_by=(), demos=True),),
    )
