"""LUFFY (Yan et al. 2025, arXiv 2504.14945): the demo of a prompt joins the group of its samples.

    J = < r A + c H > over own samples + < f(pi) A + c H > over demo tokens
    f(p) = p / (p + gamma)

as one mean over all their tokens. A = R - mean over the group of M samples and the demo (R = 1),
without a standard deviation; no clip; H: entropy of a token, c = 0.001 as in the authors' script. f
has a gradient even where a demo token is improbable, unlike a plain ratio with a behaviour
probability of 1. The paper's group of 8 is batch.samples_per_prompt = 7 here. Needs demos of the
sampled prompts. Two backward passes, one copy of the parameters.

Differences from the authors' code: it divides the sum over tokens by the maximal length of a
completion rather than by their number. There a batch of longer completions has a larger gradient,
relative to which the bonus, a mean over tokens, is smaller.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from bridge_jax import objectives
from bridge_jax.config import checks
from bridge_jax.optim import Recipes, apply_ascent, init_train_state
from bridge_jax.types import Batch, BatchSpec, Method, Params, Policy, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of LUFFY."""

    gamma: float = 0.1  # f(p) is 1/2 where p = gamma
    entropy_coef: float = 0.001  # c


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """LUFFY of all base weights; state: Params(theta)."""
    if not cfg.gamma > 0:
        raise ValueError(f"method.luffy.gamma={cfg.gamma}; allowed: above 0")
    checks.check_range("method.luffy.entropy_coef", cfg.entropy_coef, 0.0)

    def shaped(logp_BT, rows):
        p = jnp.exp(logp_BT)
        return p / (p + cfg.gamma) * rows["A_B"][:, None]

    def init(theta, key) -> TrainState:
        return init_train_state(recipes, Params(theta=theta))

    def update(state: TrainState, batch: Batch):
        rollouts, demos, phi = (
            batch.rollouts["theta"],
            batch.demos,
            policy.merge(state.params.theta, None),
        )
        own_A_B, demo_A_D = objectives.advantages_with_demo(rollouts, demos, "mean")
        total = objectives.token_total(rollouts.seqs) + objectives.token_total(demos)
        c = cfg.entropy_coef
        J_own = objectives.J_RL(policy, rollouts, objectives.surrogate, total=total, entropy_coef=c)
        J_demo = objectives.J_SFT(policy, demos, shaped, total, entropy_coef=c)
        G_own, own_J, own = objectives.gradient(
            J_own, phi, rollouts.seqs, {"A_B": own_A_B}, microbatch_rows
        )
        G_demo, demo_J, demo = objectives.gradient(
            J_demo, phi, demos, {"A_B": demo_A_D}, microbatch_rows
        )
        G = jax.tree.map(jnp.add, G_own, G_demo)
        seen = objectives.rollout_metrics(own, rollouts) | objectives.demo_metrics(demo, demos)
        # f hides a demo token of probability 0, which indicates an invalid policy
        state, metrics = apply_ascent(
            recipes, state, Params(theta=G), (own_J, demo_J, seen["sft/logp"])
        )
        metrics |= seen
        metrics |= {"rl/J": own_J + demo_J} | objectives.gradient_alignment(G_demo, G_own)
        return state, metrics | objectives.token_counts(demos, rollouts.seqs)

    return Method(
        init,
        update,
        policy=lambda params, name="theta": policy.merge(params.theta, None),
        step_kinds=(BatchSpec(sampled_by=("theta",), demos=True),),
        paired=True,
    )
