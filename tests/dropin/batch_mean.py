"""REINFORCE (Williams 1992) with the mean reward of the batch as its baseline.

    J = < r A >,   A = R - baseline * mean(R),   r = pi / pi_behaviour, which is 1 here

< . > is the mean over the sampled tokens of the global batch, mean(R) the one over its samples. One
backward pass, one copy of the parameters. A method for the tests alone: tests/test_dropin.py drops
it into a copy of the package. A method that differs from GRPO in its advantages alone is shorter:
its make returns grpo.make(grpo.Config(...), ..., advantages=lambda rollouts: A_B).
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from bridge_jax import objectives
from bridge_jax.config.schedule import Schedule, check_schedule
from bridge_jax.optim import Recipes, apply_ascent, init_train_state, schedule
from bridge_jax.types import Batch, BatchSpec, Method, Params, Policy, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of REINFORCE."""

    baseline: float = 1.0  # share of the mean reward that is taken off, at the first step
    baseline_schedule: Schedule = Schedule()
    weighting: str = "samples"  # of mean(R): "samples", all alike; "tokens", by their lengths


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """REINFORCE of all base weights; state: Params(theta)."""
    if cfg.weighting not in ("samples", "tokens"):
        raise ValueError(
            f"method.batch_mean.weighting={cfg.weighting!r}; allowed: 'samples', 'tokens'"
        )
    check_schedule("method.batch_mean.baseline_schedule", cfg.baseline, cfg.baseline_schedule)
    share_at = schedule(cfg.baseline, cfg.baseline_schedule)

    def init(theta, key) -> TrainState:
        return init_train_state(recipes, Params(theta=theta))

    def update(state: TrainState, batch: Batch):
        rollouts = batch.rollouts["theta"]
        weight_B = rollouts.seqs.length_B if cfg.weighting == "tokens" else None
        mean = jnp.average(rollouts.reward_B, weights=weight_B)
        baseline = share_at(state.step) * mean
        rows = {"A_B": rollouts.reward_B - baseline}
        phi = policy.merge(state.params.theta, None)
        J_RL = objectives.J_RL(policy, rollouts, objectives.surrogate)
        G, J, aux = objectives.gradient(J_RL, phi, rollouts.seqs, rows, microbatch_rows)
        state, metrics = apply_ascent(recipes, state, Params(theta=G), (J,))
        metrics |= objectives.rollout_metrics(aux, rollouts)
        metrics |= objectives.token_counts(rollouts.seqs)
        return state, metrics | {"rl/J": J, "batch_mean/baseline": baseline}

    return Method(
        init,
        update,
        policy=lambda params, name="theta": policy.merge(params.theta, None),
        step_kinds=(BatchSpec(sampled_by=("theta",), demos=False),),
        milestones=cfg.baseline_schedule.milestones("method.batch_mean.baseline_schedule"),
    )
