"""Hybrid: ascend J_RL(theta) + mu J_SFT(theta) in one update, with independent prompts and demos.

The "SFT+RL hybrid" of the BRIDGE paper's comparison (arXiv 2509.06948 v3). J_RL is GRPO's with one
update per batch, hence without a clip; J_SFT is the mean log-likelihood of demo tokens. Gradients
are mixed before the optimizer. With mu = (1 - lam) / lam this is BRIDGE with a frozen adapter (beta
= 0), up to the scale 1 / lam, which Adam cancels: the first control of every comparison. Two
backward passes, one copy of the parameters.
"""

from __future__ import annotations

import dataclasses

import jax

from bridge_jax import objectives
from bridge_jax.config import checks
from bridge_jax.objectives import Pass
from bridge_jax.optim import Recipes, apply_ascent, init_train_state
from bridge_jax.types import Batch, BatchSpec, Method, Metrics, Params, Policy, TrainState, Tree


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the hybrid."""

    mu: float = 1.0  # weight of J_SFT
    advantage: str = "group"
    kl_coef: float = 0.0


def rl_and_sft(
    cfg, policy: Policy, ref: Tree, batch: Batch, microbatch_rows: int, J_SFT=objectives.J_SFT
):
    """phi -> (pass of J_RL, pass of J_SFT); shared with joint and chord.

    cfg: with advantage and kl_coef. J_SFT(policy, demos) -> objective.
    """
    rollouts = batch.rollouts["theta"]
    rows = objectives.rl_rows(policy, ref, rollouts, cfg.advantage, cfg.kl_coef, microbatch_rows)
    J_RL = objectives.J_RL(policy, rollouts, objectives.surrogate, cfg.kl_coef)
    J_demos = J_SFT(policy, batch.demos)

    def passes(phi: Tree) -> tuple[Pass, Pass]:
        rl = objectives.gradient(J_RL, phi, rollouts.seqs, rows, microbatch_rows)
        sft = objectives.gradient(J_demos, phi, batch.demos, {}, microbatch_rows)
        return rl, sft

    return passes


def metrics_of(batch: Batch, rl: Pass, sft: Pass, kl_coef: float = 0.0) -> Metrics:
    """Metrics of a method with these two passes; shared with joint, chord and hpt."""
    rollouts, demos = batch.rollouts["theta"], batch.demos
    metrics = objectives.rollout_metrics(rl.aux, rollouts) | objectives.demo_metrics(sft.aux, demos)
    metrics |= {"rl/J": rl.J} | objectives.gradient_alignment(sft.G, rl.G)
    forward = (rollouts.seqs,) * bool(kl_coef)
    return metrics | objectives.token_counts(demos, rollouts.seqs, forward=forward)


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """The hybrid of all base weights; state: Params(theta), and ref when kl_coef > 0."""
    objectives.check_advantage("method.hybrid.advantage", cfg.advantage)
    checks.check_range("method.hybrid.mu", cfg.mu, 0.0)
    checks.check_range("method.hybrid.kl_coef", cfg.kl_coef, 0.0)

    def init(theta, key) -> TrainState:
        ref = objectives.reference(policy, theta, cfg.kl_coef)
        return init_train_state(recipes, Params(theta=theta), ref)

    def update(state: TrainState, batch: Batch):
        passes = rl_and_sft(cfg, policy, state.ref, batch, microbatch_rows)
        rl, sft = passes(policy.merge(state.params.theta, None))
        G = jax.tree.map(lambda r, s: r + cfg.mu * s, rl.G, sft.G)
        state, metrics = apply_ascent(recipes, state, Params(theta=G), (rl.J, sft.J))
        return state, metrics | metrics_of(batch, rl, sft, cfg.kl_coef)

    return Method(
        init,
        update,
        policy=lambda params, name="theta": policy.merge(params.theta, None),
        step_kinds=(BatchSpec(sampled_by=("theta",), demos=True),),
    )
