"""GRPO, the "RL-zero" baseline: ascend < min(r A, clip(r, 1 - low, 1 + high) A) > - kl_coef < k3 > in theta.

A = (R - mean) / (std + 1e-6) within a prompt's samples (Shao et al. 2024, arXiv 2402.03300), tokens averaged over the global
batch; r = pi / pi_behaviour. With one update per batch of samples r is 1 and the clip idle; more updates reuse the first
pass's log-probabilities as the behaviour, and share the learning rate of their step. One backward pass per update, one copy of
the parameters (two with a KL term).

Other than in the source: it averages each sample over its own tokens and then over samples, we average over all tokens, as
verl does; its std is unbiased in verl, TRL and Trinity, which we follow; its KL term is on (0.04), ours off by default.
"""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp

from bridge_jax import objectives
from bridge_jax.config import checks
from bridge_jax.optim import Recipes, apply_ascent, begin
from bridge_jax.types import Batch, Method, Params, Policy, Reads, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of GRPO."""

    advantage: str = "group"  # "group": mean and std; "mean": mean alone
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0  # times KL(pi || initial policy); SimpleRL-Zoo uses 1e-4
    updates_per_batch: int = 1
    normaliser: str = "tokens"  # the sum over tokens is divided by their number; "longest": by samples times max_new


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """GRPO of all base weights; state: Params(theta), and ref when kl_coef > 0."""
    objectives.check_advantage(cfg.advantage)
    if cfg.normaliser not in ("tokens", "longest"):
        raise ValueError(f"method.normaliser={cfg.normaliser!r}; allowed: 'tokens', 'longest'")
    checks.check_range("method.updates_per_batch", cfg.updates_per_batch, 1)
    for key in ("clip_low", "clip_high", "kl_coef"):
        checks.check_range(f"method.{key}", getattr(cfg, key), 0.0)
    bounds = {"low": cfg.clip_low, "high": cfg.clip_high}
    term = functools.partial(objectives.clipped_surrogate, **bounds)
    recipes = dataclasses.replace(recipes, base_updates=cfg.updates_per_batch)

    def init(theta, key) -> TrainState:
        return begin(
            recipes, Params(theta=theta), policy.merge(theta, None) if cfg.kl_coef else None
        )

    def update(state: TrainState, batch: Batch):
        rollouts = batch.rollouts["theta"]
        rows = objectives.rl_rows(
            policy, state.ref, rollouts, cfg.advantage, cfg.kl_coef, microbatch_rows
        )
        total = rollouts.seqs.tokens_BT.size if cfg.normaliser == "longest" else None
        J_RL = objectives.J_RL(policy, rollouts, term, cfg.kl_coef, total)
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
        metrics |= objectives.passed(
            *[rollouts.seqs] * cfg.updates_per_batch, forward=(rollouts.seqs,) * bool(cfg.kl_coef)
        )
        return state.replace(step=step + 1), metrics

    return Method(
        init,
        update,
        policy=lambda params, actor="theta": policy.merge(params.theta, None),
        kinds=(Reads(actors=("theta",), demos=False),),
    )
