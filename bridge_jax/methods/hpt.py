"""HPT (Lv et al. 2025, arXiv 2509.04419): for each prompt SFT on its expert if every sample failed, else GRPO.

    J = (1 - f) < r A > over samples of the prompts that were solved at least once + f < log pi(y*) > over experts of the others

f: share of the prompts that nobody solved. The two means are over tokens; weighing them by the shares of prompts is ours.
Needs demonstrations of the very prompts. Two backward passes, one copy of the parameters.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from bridge_jax import objectives
from bridge_jax.optim import Recipes, apply_ascent, begin
from bridge_jax.types import Batch, Method, Params, Policy, Reads, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of HPT."""

    advantage: str = "group"


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """HPT of all base weights; state: Params(theta)."""
    objectives.check_advantage(cfg.advantage)

    def init(theta, key) -> TrainState:
        return begin(recipes, Params(theta=theta))

    def update(state: TrainState, batch: Batch):
        rollouts, demos, phi = (
            batch.rollouts["theta"],
            batch.demos,
            policy.merge(state.params.theta, None),
        )
        M, D = objectives.group_size(rollouts), demos.length_B.shape[0]
        failed_P = jnp.all(rollouts.reward_B.reshape(-1, M) < 0.5, axis=1).astype(jnp.float32)
        failed_D = jnp.pad(failed_P, (0, D - failed_P.size))
        tokens = lambda length_B, chosen_B: jnp.maximum(jnp.sum(length_B * chosen_B), 1.0)
        solved_total = tokens(rollouts.seqs.length_B, jnp.repeat(1.0 - failed_P, M))
        J_RL = objectives.J_RL(
            policy, rollouts, objectives.surrogate, total=solved_total
        )  # A is 0 in groups that failed
        J_SFT = objectives.J_SFT(
            policy,
            demos,
            lambda logp_BT, rows: logp_BT * rows["failed_B"][:, None],
            tokens(demos.length_B, failed_D),
        )
        rows = objectives.rl_rows(policy, None, rollouts, cfg.advantage, 0.0, microbatch_rows)
        G_RL, rl_J, rl = objectives.gradient(J_RL, phi, rollouts.seqs, rows, microbatch_rows)
        G_SFT, sft_J, sft = objectives.gradient(
            J_SFT, phi, demos, {"failed_B": failed_D}, microbatch_rows
        )
        f = failed_P.mean()
        G = jax.tree.map(lambda r, s: (1 - f) * r + f * s, G_RL, G_SFT)
        state, metrics = apply_ascent(
            recipes, state, Params(theta=G), (rl_J, sft_J, rollouts.reward_B.sum())
        )
        metrics |= objectives.rollout_metrics(rl, rollouts) | objectives.demo_metrics(sft, demos)
        metrics |= {"rl/J": rl_J, "hpt/failed": f} | objectives.cooperation(G_SFT, G_RL)
        return state, metrics | objectives.passed(demos, rollouts.seqs)

    return Method(
        init,
        update,
        policy=lambda params, actor="theta": policy.merge(params.theta, None),
        kinds=(Reads(actors=("theta",), demos=True),),
        paired=True,
    )
