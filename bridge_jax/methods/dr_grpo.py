"""Dr. GRPO (Liu et al. 2025, arXiv 2503.20783): GRPO without its two biases.

    J = 1 / (B T) sum over samples and tokens of min(r A, clip(r, 1 - low, 1 + high) A)
    A = R - mean,   T = rollout.max_new

A is not divided by the group's standard deviation, which would favour prompts that are nearly
always or hardly ever solved. The sum is divided by the constant B T rather than by the number of
tokens, so that length has no influence on the weight of a token.
"""

from __future__ import annotations

import dataclasses

from bridge_jax.methods import grpo
from bridge_jax.optim import Recipes
from bridge_jax.types import Method, Policy


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of GRPO that still apply."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    updates_per_batch: int = 1


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """GRPO with these two changes; state: Params(theta), and ref when kl_coef > 0."""
    chosen = grpo.Config(advantage="mean", normaliser="longest", **dataclasses.asdict(cfg))
    return grpo.make(chosen, policy, recipes, microbatch_rows, "method.dr_grpo")
