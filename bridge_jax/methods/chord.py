"""CHORD (Zhang et al. 2025, arXiv 2508.11408): RL and SFT mixed, with a falling share of SFT.

    ascend (1 - mu) J_GRPO(theta) + mu J_SFT(theta)

mu falls from `mu` to mu_schedule.end by a cosine over mu_schedule.steps. weighting="phi" weighs
each demo token by stop_grad(p (1 - p)), so that tokens of high or low probability count little; the
paper combines it with a constant mu of 0.1 (mu=0.1, mu_schedule.kind=constant). With a constant mu
and no weights the method is the hybrid, up to scale. Two backward passes, one copy of the
parameters.

Differences from Trinity, the authors' code: J_GRPO has no clip, which has no effect with one update
per batch, and mu has no warm-up, which is off by default there.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from bridge_jax import objectives
from bridge_jax.config import checks
from bridge_jax.config.schedule import Schedule, check_schedule
from bridge_jax.methods import hybrid
from bridge_jax.optim import Recipes, apply_ascent, init_train_state, schedule
from bridge_jax.types import Batch, BatchSpec, Method, Params, Policy, TrainState


def by_uncertainty(logp_BT, rows):
    """sg(p (1 - p)) log p."""
    p_BT = jnp.exp(logp_BT)
    return jax.lax.stop_gradient(p_BT * (1.0 - p_BT)) * logp_BT


WEIGHTINGS = {"mu": lambda logp_BT, rows: logp_BT, "phi": by_uncertainty}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of CHORD."""

    mu: float = 0.9  # at the first step
    mu_schedule: Schedule = Schedule("cosine", end=0.05, steps=200)
    weighting: str = "mu"  # "mu": equal weights of all demo tokens; "phi": p (1 - p)
    advantage: str = "group"
    kl_coef: float = 0.0


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """CHORD of all base weights; state: Params(theta), and ref when kl_coef > 0."""
    objectives.check_advantage("method.chord.advantage", cfg.advantage)
    if cfg.weighting not in WEIGHTINGS:
        raise ValueError(
            f"method.chord.weighting={cfg.weighting!r}; allowed: {', '.join(WEIGHTINGS)}"
        )
    checks.check_range("method.chord.kl_coef", cfg.kl_coef, 0.0)
    check_schedule("method.chord.mu_schedule", cfg.mu, cfg.mu_schedule)
    mu_at = schedule(cfg.mu, cfg.mu_schedule)
    J_SFT = functools.partial(objectives.J_SFT, term=WEIGHTINGS[cfg.weighting])

    def init(theta, key) -> TrainState:
        ref = objectives.reference(policy, theta, cfg.kl_coef)
        return init_train_state(recipes, Params(theta=theta), ref)

    def update(state: TrainState, batch: Batch):
        mu = mu_at(state.step)
        passes = hybrid.rl_and_sft(cfg, policy, state.ref, batch, microbatch_rows, J_SFT)
        rl, sft = passes(policy.merge(state.params.theta, None))
        G = jax.tree.map(lambda r, s: (1 - mu) * r + mu * s, rl.G, sft.G)
        state, metrics = apply_ascent(recipes, state, Params(theta=G), (rl.J, sft.J))
        return state, metrics | hybrid.metrics_of(batch, rl, sft, cfg.kl_coef) | {"chord/mu": mu}

    return Method(
        init,
        update,
        policy=lambda params, name="theta": policy.merge(params.theta, None),
        step_kinds=(BatchSpec(sampled_by=("theta",), demos=True),),
        milestones=cfg.mu_schedule.milestones("method.chord.mu_schedule"),
    )
