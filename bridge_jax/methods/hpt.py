"""HPT (Lv et al. 2025, arXiv 2509.04419): SFT on the demos of unsolved prompts, GRPO on the others.

    J = (1 - f) < r A + c H > over samples of the solved prompts
      + f < log pi(y*) + c H > over demos of the unsolved prompts

A prompt is unsolved if at most `gate` of its samples are right; f: share of the unsolved prompts;
A = R - mean; H: entropy of a token, c = 0.001. Needs demos of the sampled prompts. Two backward
passes, one copy of the parameters.

Defaults are those of the authors' script for Qwen2.5-Math: no sample right (`gate=0`), no division
by the standard deviation (`advantage="mean"`), the entropy bonus, no clip. Their script for Llama
has `gate=2`, of 8 samples. Differences from their code: it divides the sum over sampled tokens by
the maximal length of a completion, that over demo tokens by their number, and adds the two; the
bonus is a mean over all tokens. Here each part is the mean over its own tokens, weighted by its
share of the prompts.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from bridge_jax import objectives
from bridge_jax.config import checks
from bridge_jax.methods import hybrid
from bridge_jax.objectives import Pass
from bridge_jax.optim import Recipes, apply_ascent, init_train_state
from bridge_jax.types import Batch, BatchSpec, Method, Params, Policy, Rollouts, TrainState, Tree


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of HPT."""

    gate: int = 0  # maximum of right samples with which a prompt is unsolved
    advantage: str = "mean"  # "group" divides by the standard deviation too
    entropy_coef: float = 0.001  # c


def unsolved(gate: int, rollouts: Rollouts) -> jax.Array:
    """[P] 1 where at most `gate` samples of the prompt are right, else 0.

    Raises ValueError where no prompt could be solved.
    """
    M = objectives.group_size(rollouts)
    if gate >= M:
        raise ValueError(
            f"method.hpt.gate={gate} of batch.samples_per_prompt={M}: every prompt would "
            "be one of SFT; allowed: below the number of samples"
        )
    right_P = jnp.sum(rollouts.reward_B.reshape(-1, M) > 0.5, axis=1)
    return (right_P <= gate).astype(jnp.float32)


def rl_and_sft(
    cfg: Config, policy: Policy, batch: Batch, failed_P: jax.Array, phi: Tree, microbatch_rows: int
) -> tuple[Pass, Pass]:
    """Passes of J_RL over the solved prompts' samples and of J_SFT over the others' demos."""
    rollouts, demos = batch.rollouts["theta"], batch.demos
    solved_B = jnp.repeat(1.0 - failed_P, objectives.group_size(rollouts))
    # behind the prompts' demos are rows that only fill up the micro-batches
    failed_D = jnp.pad(failed_P, (0, demos.length_B.shape[0] - failed_P.size))
    tokens = lambda seqs, included_B: jnp.maximum(jnp.sum(seqs.length_B * included_B), 1.0)
    J_RL = objectives.J_RL(
        policy,
        rollouts,
        objectives.surrogate,
        total=tokens(rollouts.seqs, solved_B),
        entropy_coef=cfg.entropy_coef,
    )
    J_SFT = objectives.J_SFT(
        policy, demos, total=tokens(demos, failed_D), entropy_coef=cfg.entropy_coef
    )
    rows = objectives.rl_rows(policy, None, rollouts, cfg.advantage, 0.0, microbatch_rows)
    rows |= {"included_B": solved_B}
    rl = objectives.gradient(J_RL, phi, rollouts.seqs, rows, microbatch_rows)
    sft = objectives.gradient(J_SFT, phi, demos, {"included_B": failed_D}, microbatch_rows)
    return rl, sft


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """HPT of all base weights; state: Params(theta)."""
    objectives.check_advantage("method.hpt.advantage", cfg.advantage)
    checks.check_range("method.hpt.gate", cfg.gate, 0)
    checks.check_range("method.hpt.entropy_coef", cfg.entropy_coef, 0.0)

    def init(theta, key) -> TrainState:
        return init_train_state(recipes, Params(theta=theta))

    def update(state: TrainState, batch: Batch):
        phi, rollouts = policy.merge(state.params.theta, None), batch.rollouts["theta"]
        failed_P = unsolved(cfg.gate, rollouts)
        rl, sft = rl_and_sft(cfg, policy, batch, failed_P, phi, microbatch_rows)
        f = failed_P.mean()
        G = jax.tree.map(lambda r, s: (1 - f) * r + f * s, rl.G, sft.G)
        finite = (rl.J, sft.J, rollouts.reward_B.sum())
        state, metrics = apply_ascent(recipes, state, Params(theta=G), finite)
        return state, metrics | hybrid.metrics_of(batch, rl, sft) | {"hpt/failed": f}

    return Method(
        init,
        update,
        policy=lambda params, name="theta": policy.merge(params.theta, None),
        step_kinds=(BatchSpec(sampled_by=("theta",), demos=True),),
        paired=True,
    )
