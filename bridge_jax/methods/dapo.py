"""DAPO (Yu et al. 2025, arXiv 2503.14476): GRPO with a wider upper clip, no idle groups, and a price on overlong answers.

    ascend < min(r A, clip(r, 1 - 0.2, 1 + 0.28) A) >,   A = (R' - mean) / (std + 1e-6),   R' = R + penalty(length)

    penalty = 0 up to T - buffer tokens, then falling linearly to -0.5 at T, the longest completion allowed (rollout.max_new)

Tokens are averaged over the global batch; there is no KL term. Groups that all succeed or all fail teach nothing: the loop
replaces them by groups of the next prompts, in at most `dapo_resample` further rounds; what is still equal then stays, and
has A = 0 but for its lengths. One backward pass, one copy of the parameters; further rounds are further samples.

Other than in the source: its rewards are +1 and -1, so that its penalty of -1 is half of what a right answer is worth, as ours
of 0.5 is with rewards of 1 and 0. A right answer is then worth more than a wrong one at any length. Its re-sampling goes
on until the batch is full, ours is bounded. Set the buffer (a share of T) so that worked answers end before it.
"""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp

from bridge_jax import objectives
from bridge_jax.config import checks
from bridge_jax.optim import Recipes, apply_ascent, begin
from bridge_jax.types import Batch, Method, Params, Policy, Reads, Rollouts, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of DAPO."""

    dapo_low: float = 0.2
    dapo_high: float = 0.28
    dapo_buffer: float = 0.2  # share of the longest completion over which the penalty grows to its full size; 0: none
    dapo_penalty: float = 0.5  # taken off the reward of a completion as long as is allowed
    dapo_resample: int = 2  # further rounds of sampling in place of groups with equal rewards
    updates_per_batch: int = 1


def penalised(rollouts: Rollouts, buffer: float, penalty: float):
    """R less the price of the length, [B]."""
    T = rollouts.seqs.tokens_BT.shape[1]
    if not buffer:
        return rollouts.reward_B
    over_B = (rollouts.seqs.length_B - (1.0 - buffer) * T) / (buffer * T)
    return rollouts.reward_B - penalty * jnp.clip(over_B, 0.0, 1.0)


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """DAPO of all base weights; state: Params(theta)."""
    for key, least, most in (
        ("dapo_low", 0.0, 1.0),
        ("dapo_high", 0.0, float("inf")),
        ("dapo_buffer", 0.0, 1.0),
        ("dapo_penalty", 0.0, float("inf")),
        ("dapo_resample", 0, float("inf")),
        ("updates_per_batch", 1, float("inf")),
    ):
        checks.check_range(f"method.{key}", getattr(cfg, key), least, most)
    bounds = {"low": cfg.dapo_low, "high": cfg.dapo_high}
    term = functools.partial(objectives.clipped_surrogate, **bounds)
    recipes = dataclasses.replace(recipes, base_updates=cfg.updates_per_batch)

    def update(state: TrainState, batch: Batch):
        rollouts = batch.rollouts["theta"]
        M, J_RL = objectives.group_size(rollouts), objectives.J_RL(policy, rollouts, term)
        paid_B = penalised(rollouts, cfg.dapo_buffer, cfg.dapo_penalty)
        rows = {"A_B": objectives.group_advantages(paid_B, M)}
        first, step, skipped, clipped = None, state.step, 0.0, 0.0
        for _ in range(cfg.updates_per_batch):
            phi = policy.merge(state.params.theta, None)
            G, J, facts = objectives.gradient(J_RL, phi, rollouts.seqs, rows, microbatch_rows)
            state, applied = apply_ascent(recipes, state, Params(theta=G), (J,))
            first, skipped = first or facts, jnp.maximum(skipped, applied["update/skipped"])
            rows["behaviour_BT"] = first["logp_BT"]
            clipped += objectives.clip_fraction(
                facts["logp_BT"], first["logp_BT"], rows["A_B"], **bounds, seqs=rollouts.seqs
            )
        metrics = (
            objectives.rollout_metrics(first, rollouts)
            | applied
            | {"rl/J": J, "update/skipped": skipped}
            | {"rl/clip_fraction": clipped / cfg.updates_per_batch}
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
