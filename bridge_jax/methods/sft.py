"""Supervised fine-tuning: ascend J_SFT(theta) = mean log pi(y*_t), tokens averaged over the global batch (METHOD section 5).

Expert completions are scored, prompts are not. Samples nothing. One backward pass, one copy of the parameters.
"""
from __future__ import annotations

import dataclasses

from bridge_jax import objectives
from bridge_jax.optim import Recipes, apply_ascent
from bridge_jax.types import Batch, Method, Params, Policy, Sequences, TrainState

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Config:
    """SFT has no settings of its own; its learning rate is optim.base."""


def likelihood(policy: Policy, tokens_total):
    """J_SFT(phi, demos) as a share of the batch's total: sum of log pi(y*_t) over expert tokens / tokens_total."""
    def J_SFT(phi, demos: Sequences, _):
        logp_BT, entropy_BT = policy.logp(phi, demos, 1.0)
        mask_BT = objectives.token_mask(demos.length_B, logp_BT.shape[1])
        last_B = jnp.maximum(demos.length_B - 1, 0)
        facts = {"stop_B": jnp.take_along_axis(logp_BT, last_B[:, None], 1)[:, 0], "entropy_BT": entropy_BT * mask_BT}
        return jnp.sum(logp_BT * mask_BT) / tokens_total, facts
    return J_SFT


def tokens_total(demos: Sequences):
    """Expert tokens in the global batch, at least 1, fp32."""
    return jnp.maximum(demos.length_B.sum(), 1).astype(jnp.float32)


def metrics(J, facts, demos: Sequences) -> dict:
    """What every method that reads demonstrations reports of them; stop_prob is the probability of ending where the expert does."""
    real_B = (demos.length_B > 0).astype(jnp.float32)
    return {"sft/logp": J, "sft/entropy": facts["entropy_BT"].sum() / tokens_total(demos),
            "sft/stop_prob": jnp.sum(jnp.exp(facts["stop_B"]) * real_B) / jnp.maximum(real_B.sum(), 1.0),
            "budget/demo_tokens": demos.length_B.sum(), "budget/gradient_tokens": demos.length_B.sum()}


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """SFT of all base weights; state: Params(theta)."""
    def init(theta, key) -> TrainState:
        params = Params(theta=theta)
        return TrainState(jnp.int32(0), params, recipes.optimizer().init(params))

    def update(state: TrainState, batch: Batch):
        phi = policy.merge(state.params.theta, None)
        J_SFT = likelihood(policy, tokens_total(batch.demos))
        G, J, facts = objectives.gradient(J_SFT, phi, batch.demos, {}, microbatch_rows)
        state, applied = apply_ascent(recipes, state, Params(theta=G), (J,))
        return state, metrics(J, facts, batch.demos) | applied

    return Method(init, actors=lambda step: (), demos=True, update=update,
                  policy=lambda params, actor="theta": policy.merge(params.theta, None))
