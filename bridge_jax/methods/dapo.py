"""DAPO (Yu et al. 2025, arXiv 2503.14476): GRPO with a wider upper clip, no idle groups, and a price on overlong answers.

    ascend < min(r A, clip(r, 1 - 0.2, 1 + 0.28) A) >,   A = (R' - mean) / (std + 1e-6),   R' = R + penalty(length)

    penalty = 0 up to T - buffer tokens, then falling linearly to -1 at T, the longest completion allowed (rollout.max_new)

Tokens are averaged over the global batch; there is no KL term. Groups that all succeed or all fail teach nothing: the loop
replaces them by groups of the next prompts, in at most `dapo_resample` further rounds; what is still equal then stays, and
has A = 0 but for its lengths. One backward pass, one copy of the parameters; further rounds are further samples.
"""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp

from bridge_jax import objectives
from bridge_jax.optim import Recipes, apply_ascent, begin
from bridge_jax.types import Batch, Method, Params, Policy, Reads, Rollouts, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of DAPO."""

    dapo_low: float = 0.2
    dapo_high: float = 0.28
    dapo_buffer: float = (
        0.2  # share of the longest completion over which the penalty falls to -1; 0: no penalty
    )
    dapo_resample: int = 2  # further rounds of sampling in place of groups with equal rewards
    updates_per_batch: int = 1


def penalised(rollouts: Rollouts, buffer: float):
    """R plus the price of the length, [B]."""
    T = rollouts.seqs.tokens_BT.shape[1]
    if not buffer:
        return rollouts.reward_B
    over_B = (rollouts.seqs.length_B - (1.0 - buffer) * T) / (buffer * T)
    return rollouts.reward_B - jnp.clip(over_B, 0.0, 1.0)


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """DAPO of all base weights; state: Params(theta)."""
    for key, least, most in (
        ("dapo_low", 0.0, 1.0),
        ("dapo_high", 0.0, float("inf")),
        ("dapo_buffer", 0.0, 1.0),
        ("dapo_resample", 0, float("inf")),
        ("updates_per_batch", 1, float("inf")),
    ):
        objectives.check_range(f"method.{key}", getattr(cfg, key), least, most)
    term = functools.partial(objectives.clipped_surrogate, low=cfg.dapo_low, high=cfg.dapo_high)

    def update(state: TrainState, batch: Batch):
        rollouts = batch.rollouts["theta"]
        M, J_RL = objectives.group_size(rollouts), objectives.J_RL(policy, rollouts, term)
        rows = {"A_B": objectives.group_advantages(penalised(rollouts, cfg.dapo_buffer), M)}
        first, step, skipped = None, state.step, 0.0
        for _ in range(cfg.updates_per_batch):
            phi = policy.merge(state.params.theta, None)
            G, J, facts = objectives.gradient(J_RL, phi, rollouts.seqs, rows, microbatch_rows)
            state, applied = apply_ascent(recipes, state, Params(theta=G), (J,))
            first, skipped = first or facts, jnp.maximum(skipped, applied["update/skipped"])
            rows["behaviour_BT"] = first["logp_BT"]
        metrics = (
            objectives.rollout_metrics(first, rollouts)
            | applied
            | {"rl/J": J, "update/skipped": skipped}
        )
        return state.replace(step=step + 1), metrics | objectives.passed(
            *[rollouts.seqs] * cfg.updates_per_batch
        )

    return Method(
        init=lambda theta, key: begin(recipes, Params(theta=theta)),
        update=update,
        policy=lambda params, actor="theta": policy.merge(params.theta, None),
        kinds=(Reads(actors=("theta",), demos=False),),
        resample=cfg.dapo_resample,
    )
