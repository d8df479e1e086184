"""GRPO (Shao et al. 2024, arXiv 2402.03300), the "RL-zero" baseline, of all base weights.

    ascend < min(r A, clip(r, 1 - low, 1 + high) A) > - kl_coef < k3 >

A = (R - mean) / (std + 1e-6) within a prompt's samples, r = pi / pi_behaviour; tokens are averaged
over the global batch. With one update per batch of samples r is 1 and the clip has no effect;
further updates use the first pass's log-probabilities as behaviour, and share the learning rate of
their step. One backward pass per update, one copy of the parameters (two with a KL term).

Differences from the paper: it averages over the tokens of each sample and then over samples, we
average over all tokens, as verl does. Our std is unbiased, as in verl, TRL and Trinity. The paper
has a KL term (0.04), ours is off by default.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp

from bridge_jax import objectives
from bridge_jax.config import checks
from bridge_jax.optim import Recipes, apply_ascent, init_train_state
from bridge_jax.types import Batch, BatchSpec, Method, Params, Policy, Sequences, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of GRPO."""

    advantage: str = "group"  # "group": mean and std; "mean": mean alone
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0  # weight of KL(pi || initial policy); SimpleRL-Zoo uses 1e-4
    updates_per_batch: int = 1
    # divisor of the sum over tokens: their number ("tokens"), or samples times rollout.max_new
    # ("longest")
    normaliser: str = "tokens"


def updates_on_a_batch(count: int, policy: Policy, recipes: Recipes, microbatch_rows: int):
    """A function that makes `count` updates of theta on one batch of samples, with the step's rate.

    (state, rollouts, J, rows, clip_fraction) -> (state, metrics). rows: those of J, with A_B.
    clip_fraction(aux, first aux) -> share of clipped tokens. Shared with dapo and gspo.
    """
    recipes = dataclasses.replace(recipes, base_updates=count)

    def ascend(state: TrainState, rollouts, J, rows: dict, clip_fraction):
        first, step, skipped, clipped = None, state.step, 0.0, 0.0
        for _ in range(count):
            phi = policy.merge(state.params.theta, None)
            rl = objectives.gradient(J, phi, rollouts.seqs, rows, microbatch_rows)
            state, metrics = apply_ascent(recipes, state, Params(theta=rl.G), (rl.J,))
            first = first or rl.aux
            rows = rows | {"behaviour_BT": first["logp_BT"]}
            skipped = jnp.maximum(skipped, metrics["update/skipped"])
            clipped += clip_fraction(rl.aux, first)
        metrics |= objectives.rollout_metrics(first, rollouts)
        metrics |= {"rl/J": rl.J, "update/skipped": skipped, "rl/clip_fraction": clipped / count}
        return state.replace(step=step + 1), metrics

    return ascend


def clip_fraction_of(
    seqs: Sequences, A_B, low: float, high: float, logp_of=lambda aux: aux["logp_BT"]
) -> Callable:
    """(aux, first aux) -> share of the tokens that the clip leaves without a gradient.

    logp_of: aux -> the log-probabilities whose ratio is clipped.
    """
    return lambda aux, first: objectives.clip_fraction(
        logp_of(aux), logp_of(first), A_B, low, high, seqs
    )


def make(
    cfg: Config,
    policy: Policy,
    recipes: Recipes,
    microbatch_rows: int = 0,
    group: str = "method.grpo",
    advantages: Callable | None = None,
) -> Method:
    """GRPO of all base weights; state: Params(theta), and ref when kl_coef > 0.

    group: config group of the settings, for the message of a ValueError. advantages: Rollouts ->
    A_B, in place of cfg.advantage: a method of your own may differ from GRPO in this alone.
    """
    objectives.check_advantage(f"{group}.advantage", cfg.advantage)
    if cfg.normaliser not in ("tokens", "longest"):
        raise ValueError(f"{group}.normaliser={cfg.normaliser!r}; allowed: 'tokens', 'longest'")
    checks.check_range(f"{group}.updates_per_batch", cfg.updates_per_batch, 1)
    for name in ("clip_low", "clip_high", "kl_coef"):
        checks.check_range(f"{group}.{name}", getattr(cfg, name), 0.0)

    bounds = {"low": cfg.clip_low, "high": cfg.clip_high}
    term = functools.partial(objectives.clipped_surrogate, **bounds)
    ascend = updates_on_a_batch(cfg.updates_per_batch, policy, recipes, microbatch_rows)

    def init(theta, key) -> TrainState:
        ref = objectives.reference(policy, theta, cfg.kl_coef)
        return init_train_state(recipes, Params(theta=theta), ref)

    def update(state: TrainState, batch: Batch):
        rollouts = batch.rollouts["theta"]
        rows = objectives.rl_rows(
            policy, state.ref, rollouts, cfg.advantage, cfg.kl_coef, microbatch_rows
        )
        if advantages is not None:
            rows["A_B"] = advantages(rollouts)
        total = rollouts.seqs.tokens_BT.size if cfg.normaliser == "longest" else None
        J_RL = objectives.J_RL(policy, rollouts, term, cfg.kl_coef, total)
        clip_fraction = clip_fraction_of(rollouts.seqs, rows["A_B"], **bounds)
        state, metrics = ascend(state, rollouts, J_RL, rows, clip_fraction)
        return state, metrics | objectives.token_counts(
            *[rollouts.seqs] * cfg.updates_per_batch, forward=(rollouts.seqs,) * bool(cfg.kl_coef)
        )

    return Method(
        init,
        update,
        policy=lambda params, name="theta": policy.merge(params.theta, None),
        step_kinds=(BatchSpec(sampled_by=("theta",), demos=False),),
    )
