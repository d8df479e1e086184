"""BRIDGE (arXiv 2509.06948 v3): SFT and RL as a bilevel problem, relaxed to one level, first order.

    theta     += alpha [ (1-lam) dJ_SFT/dtheta(theta, w) + lam dJ_RL/dtheta(theta, w) ]
    theta_hat += alpha   dJ_RL/dtheta(theta_hat, w)
    w         += beta  [ (1-lam) dJ_SFT/dw(theta, w)
                         + lam (dJ_RL/dw(theta, w) - dJ_RL/dw(theta_hat, w)) ]

All gradients are taken at the same iterate. The last bracket ascends the cooperative gain
J_RL(theta, w) - J_RL(theta_hat, w). With phi = merge(theta, w) the gradient in phi equals the one
in theta, and `pull` maps it to the gradient in w: three passes in total. theta_hat learns from
theta's samples by importance weights. Left out: second order terms.

Order of the passes: objectives/passes.py. Storage of theta_hat: optim/shadow.py. Objectives of the
passes, our variants, checks and metrics: bridge_variants.py. Controls: beta = 0 (hybrid.py), no
theta_hat (joint.py).
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from bridge_jax import objectives
from bridge_jax.config.schedule import Schedule
from bridge_jax.methods import bridge_variants as variants
from bridge_jax.optim import STORAGE, Recipes, Shadow, init_train_state, read_shadow
from bridge_jax.types import Batch, Method, Params, Policy, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of BRIDGE; the defaults are those of the paper's runs."""

    lam: float = 0.5  # weight of J_RL; that of J_SFT is 1 - lam
    lam_schedule: Schedule = Schedule()
    advantage: str = "group"  # "group" or "mean"; the same A enters both J_RL
    kl_coef: float = 0.0  # weight of the KL to the initial policy, in both J_RL
    sft_microbatches: int = 0  # minimum of micro-batches of the demos; 0: by batch.microbatch_rows
    shadow: Shadow = Shadow()
    variant: variants.Variant = variants.Variant()


def step(state: TrainState, lam, policy: Policy, passes: variants.Passes, ascend, read):
    """The three update rules above; ascend(state, part, gradient, values) -> (state, metrics).

    ascend skips its update where one of `values` is not finite; then theta may already have moved,
    while theta_hat and w stay. read(params): theta_hat as it was before the step, however stored.
    """
    theta, w = state.params.theta, state.params.w

    phi = policy.merge(theta, w)
    rl = passes.rl(phi)
    sft = passes.sft(phi, after=rl.ordering_token)
    G = jax.tree.map(lambda s, r: (1 - lam) * s + lam * r, sft.G, rl.G)
    dw = policy.pull(w, passes.for_w(G, lam, rl, sft))
    state, metrics = ascend(state, "theta", G, (sft.J, rl.J))

    # dw is computed here, so that the memory of G is free during the pass of theta_hat
    state, after = objectives.hold(state, dw)
    phi_hat = policy.merge(read(state.params), objectives.wait_for(after, w))
    hat = passes.hat(phi_hat, rl, after=after)
    dw_hat = passes.for_gain(rl, policy.pull(w, hat.G))
    dw = jax.tree.map(lambda joint, shadow: joint - lam * shadow, dw, dw_hat)
    finite = (sft.J, rl.J, hat.J, hat.ordering_token, *metrics.values())
    state, hat_metrics = ascend(state, "theta_hat", hat.G, finite)
    state, w_metrics = ascend(state, "w", dw, (*finite, *hat_metrics.values()))
    metrics |= hat_metrics | w_metrics | {"bridge/lam": jnp.float32(lam)}
    return state, (rl, sft, hat), metrics | objectives.gradient_alignment(sft.G, rl.G)


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """Combines objectives, optimizer and storage with `step`.

    state: Params(theta, theta_hat, w), and ref if kl_coef > 0.
    """
    variants.check(cfg)
    recipes = variants.shadow_recipe(cfg, recipes)
    lam_at, storage = variants.lam_rule(cfg), STORAGE[cfg.shadow.storage]
    read = functools.partial(read_shadow, storage)
    phi_hat_of = lambda params: policy.merge(read(params), params.w)

    def init(theta, key) -> TrainState:
        params = Params(theta, jax.tree.map(jnp.copy, theta), policy.init_w(key))
        ref = objectives.reference(policy, theta, cfg.kl_coef)
        state = init_train_state(recipes, params, ref)
        return variants.init_gain(cfg, state.replace(params=storage.write(params, key)))

    def update(state: TrainState, batch: Batch):
        batch = variants.in_parts(cfg, state.step, batch, microbatch_rows)
        passes = variants.passes_of(cfg, policy, state, batch, microbatch_rows)
        ascend = variants.ascent(recipes, storage, variants.due(cfg, state.step))
        new, results, metrics = step(state, lam_at(state), policy, passes, ascend, read)
        phi_hat, (rl, _, hat) = phi_hat_of(state.params), results
        metrics |= variants.metrics(cfg, policy, state, phi_hat, batch, results, microbatch_rows)
        hat_pass = lambda new: passes.hat(phi_hat_of(new.params), rl, hat)
        new, metrics = variants.extra_shadow_steps(cfg, new, metrics, hat_pass, ascend)
        return variants.finish(cfg, new, state.step + 1, metrics), metrics

    def policy_of(params: Params, name: str = "theta"):
        return phi_hat_of(params) if name == "theta_hat" else policy.merge(params.theta, params.w)

    return Method(init, update, policy_of, **variants.method_fields(cfg))
