"""SRFT (Fu et al. 2025, arXiv 2506.19767): SFT and RL in one stage, weighted by entropy.

    J = < a sg(e^-H) log pi(y*) > + < pi(y*) A >             over demo tokens
      + < b sg(e^+H) log pi [R = 1]  -  log pi [R = 0] >     over own samples

a = 0.5, b = 0.1; H is the mean token entropy of the completion; A as in GRPO with the demo (R = 1)
in the group, with a behaviour probability of 1 and no clip. Needs demos of the sampled prompts. Two
backward passes, one copy of the parameters.

H per completion is our choice (a batch's mean would need another pass); the public code of HPT's
authors, which includes this method, does the same. Differences from that code: it divides the sum
of the last three terms by the maximal length of a completion rather than by their tokens, uses A
without a standard deviation, and adds an entropy bonus of 0.001.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from bridge_jax import objectives
from bridge_jax.config import checks
from bridge_jax.optim import Recipes, apply_ascent, init_train_state
from bridge_jax.types import Batch, BatchSpec, Method, Params, Policy, Sequences, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of SRFT."""

    expert_coef: float = 0.5  # a, weight of the likelihood of demo tokens
    rewarded_coef: float = 0.1  # b, weight of the likelihood of rewarded samples


def J_weighed(policy: Policy, value, temperature, total):
    """Sum over tokens of value(logp_BT, H_B1, rows) / total.

    H_B1: mean token entropy of each completion, no gradient.
    """

    def J(phi, seqs: Sequences, rows: dict):
        logp_BT, entropy_BT = policy.logp(phi, seqs, temperature)
        mask_BT = objectives.token_mask(seqs.length_B, logp_BT.shape[1])
        H_B = jnp.sum(entropy_BT * mask_BT, axis=1) / jnp.maximum(seqs.length_B, 1)
        value_BT = value(logp_BT, jax.lax.stop_gradient(H_B)[:, None], rows)
        return jnp.sum(value_BT * mask_BT) / total, {"logp_BT": logp_BT, "entropy_BT": entropy_BT}

    return J


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """SRFT of all base weights; state: Params(theta)."""
    for key in ("expert_coef", "rewarded_coef"):
        checks.check_range(f"method.srft.{key}", getattr(cfg, key), 0.0)

    def demo_value(logp_BT, H_B1, rows):
        return cfg.expert_coef * jnp.exp(-H_B1) * logp_BT + jnp.exp(logp_BT) * rows["A_B"][:, None]

    def own_value(logp_BT, H_B1, rows):
        return (
            jnp.where(rows["R_B"][:, None] > 0.5, cfg.rewarded_coef * jnp.exp(H_B1), -1.0) * logp_BT
        )

    def init(theta, key) -> TrainState:
        return init_train_state(recipes, Params(theta=theta))

    def update(state: TrainState, batch: Batch):
        rollouts, demos, phi = (
            batch.rollouts["theta"],
            batch.demos,
            policy.merge(state.params.theta, None),
        )
        _, demo_A_D = objectives.advantages_with_demo(rollouts, demos, "group")
        J_demo = J_weighed(policy, demo_value, 1.0, objectives.token_total(demos))
        J_own = J_weighed(
            policy, own_value, rollouts.temperature, objectives.token_total(rollouts.seqs)
        )
        G_demo, demo_J, demo = objectives.gradient(
            J_demo, phi, demos, {"A_B": demo_A_D}, microbatch_rows
        )
        G_own, own_J, own = objectives.gradient(
            J_own, phi, rollouts.seqs, {"R_B": rollouts.reward_B}, microbatch_rows
        )
        G = jax.tree.map(jnp.add, G_own, G_demo)
        finite = (own_J, demo_J, rollouts.reward_B.sum())
        state, metrics = apply_ascent(recipes, state, Params(theta=G), finite)
        metrics |= objectives.rollout_metrics(own, rollouts) | objectives.demo_metrics(demo, demos)
        metrics |= {"rl/J": own_J + demo_J} | objectives.gradient_alignment(G_demo, G_own)
        return state, metrics | objectives.token_counts(demos, rollouts.seqs)

    return Method(
        init,
        update,
        policy=lambda params, name="theta": policy.merge(params.theta, None),
        step_kinds=(BatchSpec(sampled_by=("theta",), demos=True),),
        paired=True,
    )
