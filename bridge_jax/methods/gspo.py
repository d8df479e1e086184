"""GSPO (Zheng et al. 2025, arXiv 2507.18071): GRPO with one importance weight per sequence.

    J = mean over samples of min(s A, clip(s, 1 - low, 1 + high) A)
    s = exp( mean over tokens of log pi - log pi_behaviour )

A as in GRPO. All samples have equal weight, whatever their length, and the tokens of a sample share
one ratio, which is clipped close to 1. The clip has no effect on the first update of a batch; the
updates of a batch share the learning rate of their step. One backward pass per update, one copy of
the parameters.

Differences from the paper: it makes four updates on quarters of a batch, where the clip has an
effect; ours, `updates_per_batch` of them (one by default), are on the whole batch.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from bridge_jax import objectives
from bridge_jax.config import checks
from bridge_jax.methods import grpo
from bridge_jax.optim import Recipes, init_train_state
from bridge_jax.types import Batch, BatchSpec, Method, Params, Policy, Sequences, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of GSPO."""

    clip_low: float = 3e-4
    clip_high: float = 4e-4
    advantage: str = "group"
    updates_per_batch: int = 1


def mean_logp(logp_BT, seqs: Sequences):
    """Mean over the tokens of each sample, [B]."""
    mask_BT = objectives.token_mask(seqs.length_B, logp_BT.shape[1])
    return jnp.sum(logp_BT * mask_BT, axis=1) / jnp.maximum(seqs.length_B, 1)


def J_sequences(policy: Policy, B: int, temperature, low: float, high: float):
    """J as above over B samples; rows: A_B, and behaviour_BT from the second update on."""

    def J(phi, seqs: Sequences, rows: dict):
        logp_BT, entropy_BT = policy.logp(phi, seqs, temperature)
        behaviour_BT = rows.get("behaviour_BT", logp_BT)
        s_B = objectives.ratio(mean_logp(logp_BT, seqs), mean_logp(behaviour_BT, seqs))
        value_B = jnp.minimum(s_B * rows["A_B"], jnp.clip(s_B, 1.0 - low, 1.0 + high) * rows["A_B"])
        aux = {"logp_BT": logp_BT, "entropy_BT": entropy_BT}
        return jnp.sum(value_B * (seqs.length_B > 0)) / B, aux

    return J


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """GSPO of all base weights; state: Params(theta)."""
    objectives.check_advantage("method.gspo.advantage", cfg.advantage)
    checks.check_range("method.gspo.updates_per_batch", cfg.updates_per_batch, 1)
    for key in ("clip_low", "clip_high"):
        checks.check_range(f"method.gspo.{key}", getattr(cfg, key), 0.0)
    bounds = {"low": cfg.clip_low, "high": cfg.clip_high}
    ascend = grpo.updates_on_a_batch(cfg.updates_per_batch, policy, recipes, microbatch_rows)

    def init(theta, key) -> TrainState:
        return init_train_state(recipes, Params(theta=theta))

    def update(state: TrainState, batch: Batch):
        rollouts, seqs = batch.rollouts["theta"], batch.rollouts["theta"].seqs
        rows = objectives.rl_rows(policy, None, rollouts, cfg.advantage, 0.0, microbatch_rows)
        J = J_sequences(policy, seqs.length_B.shape[0], rollouts.temperature, **bounds)
        # one ratio for all tokens of a sample
        per_sample = lambda aux: mean_logp(aux["logp_BT"], seqs)[:, None]
        clip_fraction = grpo.clip_fraction_of(seqs, rows["A_B"], **bounds, logp_of=per_sample)
        state, metrics = ascend(state, rollouts, J, rows, clip_fraction)
        return state, metrics | objectives.token_counts(*[seqs] * cfg.updates_per_batch)

    return Method(
        init,
        update,
        policy=lambda params, name="theta": policy.merge(params.theta, None),
        step_kinds=(BatchSpec(sampled_by=("theta",), demos=False),),
    )
