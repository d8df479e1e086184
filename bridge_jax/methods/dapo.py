"""DAPO (Yu et al. 2025, arXiv 2503.14476): GRPO with a wider clip, re-sampling, a length penalty.

    ascend < min(r A, clip(r, 1 - 0.2, 1 + 0.28) A) >
    A = (R' - mean) / (std + 1e-6),   R' = R + penalty(length)

    penalty = 0 up to T - buffer tokens, then linear down to -0.5 at T = rollout.max_new

Tokens are averaged over the global batch; there is no KL term. Groups with all samples right or all
wrong have no gradient: the loop replaces them by groups of the next prompts, in at most
`resample_rounds` further rounds. Groups that are still equal have A = 0, except for their lengths.
One backward pass, one copy of the parameters; further rounds cost further samples.

Differences from the paper: its rewards are +1 and -1, so that its penalty of -1 is half the
difference between a right and a wrong answer, as ours of 0.5 is with rewards of 1 and 0; a right
answer is then better than a wrong one at any length. The paper re-samples until the batch is full,
ours is bounded. Set the buffer (a share of T) so that complete answers end before it.
"""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp

from bridge_jax import objectives
from bridge_jax.config import checks
from bridge_jax.methods import grpo
from bridge_jax.optim import Recipes, init_train_state
from bridge_jax.types import Batch, BatchSpec, Method, Params, Policy, Rollouts, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of DAPO."""

    clip_low: float = 0.2
    clip_high: float = 0.28
    # share of T over which the penalty grows to its full size; 0: no penalty
    overlong_buffer: float = 0.2
    # subtracted from the reward of a completion of length T
    overlong_penalty: float = 0.5
    # maximum of further sampling rounds that replace groups with equal rewards
    resample_rounds: int = 2
    updates_per_batch: int = 1


def penalised(rollouts: Rollouts, buffer: float, penalty: float):
    """R minus the penalty of the length, [B]."""
    T = rollouts.seqs.tokens_BT.shape[1]
    if not buffer:
        return rollouts.reward_B
    over_B = (rollouts.seqs.length_B - (1.0 - buffer) * T) / (buffer * T)
    return rollouts.reward_B - penalty * jnp.clip(over_B, 0.0, 1.0)


def check(cfg: Config) -> None:
    """ValueError for settings that are invalid."""
    for key, least, most in (
        ("clip_low", 0.0, 1.0),
        ("clip_high", 0.0, float("inf")),
        ("overlong_buffer", 0.0, 1.0),
        ("overlong_penalty", 0.0, float("inf")),
        ("resample_rounds", 0, float("inf")),
        ("updates_per_batch", 1, float("inf")),
    ):
        checks.check_range(f"method.dapo.{key}", getattr(cfg, key), least, most)


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """DAPO of all base weights; state: Params(theta)."""
    check(cfg)
    bounds = {"low": cfg.clip_low, "high": cfg.clip_high}
    term = functools.partial(objectives.clipped_surrogate, **bounds)
    ascend = grpo.updates_on_a_batch(cfg.updates_per_batch, policy, recipes, microbatch_rows)

    def update(state: TrainState, batch: Batch):
        rollouts = batch.rollouts["theta"]
        J_RL = objectives.J_RL(policy, rollouts, term)
        penalised_B = penalised(rollouts, cfg.overlong_buffer, cfg.overlong_penalty)
        rows = {"A_B": objectives.group_advantages(penalised_B, objectives.group_size(rollouts))}
        clip_fraction = grpo.clip_fraction_of(rollouts.seqs, rows["A_B"], **bounds)
        state, metrics = ascend(state, rollouts, J_RL, rows, clip_fraction)
        seqs = [rollouts.seqs] * cfg.updates_per_batch
        return state, metrics | objectives.token_counts(*seqs)

    return Method(
        init=lambda theta, key: init_train_state(recipes, Params(theta=theta)),
        update=update,
        policy=lambda params, name="theta": policy.merge(params.theta, None),
        step_kinds=(BatchSpec(sampled_by=("theta",), demos=False),),
        resample_rounds=cfg.resample_rounds,
    )
