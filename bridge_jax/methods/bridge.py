"""BRIDGE (arXiv 2509.06948 v3): SFT and RL as a bilevel problem, relaxed to one level, first order only.

    theta     += alpha [ (1-lam) dJ_SFT/dtheta(theta, w) + lam dJ_RL/dtheta(theta, w) ]
    theta_hat += alpha   dJ_RL/dtheta(theta_hat, w)
    w         += beta  [ (1-lam) dJ_SFT/dw(theta, w) + lam (dJ_RL/dw(theta, w) - dJ_RL/dw(theta_hat, w)) ]

all gradients at the same iterate (Jacobi). The last bracket ascends the cooperative gain J_RL(theta, w) - J_RL(theta_hat, w).
With phi = merge(theta, w) a gradient in phi IS the gradient in theta, and `pull` turns it into the one in w: no term needs a
pass of its own for w. SFT and RL are passed one after the other, so that how they agree is known.
theta_hat learns from theta's samples by importance weighting (unclipped), or from its own ("own", ours).
The weights are per token, which is exact for completions of one token and close for longer ones while theta_hat is near; with
shared samples watch bridge/ess: as theta_hat trails, the gain's value comes to hang on few of them.
At the exact optimum the theta_hat term vanishes, since theta can undo w: it acts while theta_hat trails.

Variants (ours): w ascends the gain alone; theta_hat is set back to theta every n steps, or takes n RL steps for one of theta;
lam follows the measured gain, so that experts count while they make theta better than RL alone; theta_hat is kept as bfloat16
differences from theta, its Adam moments in bfloat16 or factored (6 or 4 bytes a weight instead of 12), or all of it lies in the
host's memory between steps and is fetched when it is used; the experts' pass, through which theta's RL gradient waits, is cut
into more micro-batches.
The controls beside them: beta = 0 (methods/hybrid.py), no theta_hat (methods/joint.py).
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from bridge_jax import objectives
from bridge_jax.config import checks
from bridge_jax.objectives.metrics import own_gain, shared_gain
from bridge_jax.optim import (
    MOMENTS,
    Recipes,
    Storage,
    apply_ascent,
    begin,
    lam_milestones,
    on_device,
    schedule,
)
from bridge_jax.optim.shadow import packed, unpacked
from bridge_jax.types import Batch, Method, Params, Policy, Reads, Rollouts, Sequences, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of BRIDGE; lam 0.5 and everything it shares with GRPO as in the paper's runs."""

    lam: float = 0.5
    # constant; linear, cosine: lam to lam_end over lam_steps; step: lam_values from lam_boundaries on; gain: by the step's
    # measured gain, lam from lam_gain up, lam_end (below 1) at 0 and below
    lam_schedule: str = "constant"
    lam_end: float = 1.0
    lam_steps: int = 0
    lam_boundaries: tuple[int, ...] = ()
    lam_values: tuple[float, ...] = ()
    lam_gain: float = 0.1
    shadow_rollouts: str = "shared"  # "shared": theta_hat learns from theta's samples; "own": it samples too, with the same keys
    ratio_cap: float = (
        0.0  # bounds the weight of a token's gradient in theta_hat to [1/cap, cap]; 0: free
    )
    advantage: str = "group"  # "group" or "mean"; the same A enters both J_RL
    kl_coef: float = 0.0  # times KL to the initial policy, in both J_RL
    w_learns: str = (
        "both"  # "both": SFT and the gain; "gain": w leaves the first term of its update out
    )
    resync_every: int = 0  # steps after which theta_hat becomes theta again; 0: never
    inner_steps: int = 1  # RL steps of theta_hat for one step of theta, all on the same samples and at the same rate
    shadow_storage: str = (
        "full"  # theta_hat as it is, or as bfloat16 "difference" theta_hat - theta
    )
    shadow_moments: str = (
        ""  # of theta_hat's Adam: float32, bfloat16 or factored; "": as optim.base.moments
    )
    shadow_offload: bool = (
        False  # whether theta_hat and its moments lie in the host's memory between steps
    )
    sft_microbatches: int = (
        0  # least number that the experts are cut into: theta's other gradient waits for their pass
    )


def coupled_ascent(
    grad_SFT,
    grad_RL,
    grad_RL_hat,
    lam,
    state,
    policy: Policy,
    ascend,
    w_learns: str = "both",
    unpack=lambda params: params,
):
    """One step of the three parts, all at the iterate of `state`; also values, facts and metrics.

    Each grad: phi -> (G in phi, J, facts). lam: a number, or a function of the facts of theta and theta_hat. ascend(state,
    direction of one part, values that have to be finite) -> (state, metrics). Where lam is a number, theta's gradient is spent
    before theta_hat's pass, so that no more than two are alive at a time; a pass of theta_hat that is not finite then stops
    theta_hat and w alone, and else all three. grad_SFT and grad_RL_hat are also given a scalar before which their pass cannot
    begin: a compiler is free to interleave passes, and then holds the activations of two. unpack: params as they are stored ->
    with theta_hat as it is.
    """
    theta, w = state.params.theta, state.params.w
    phi = policy.merge(theta, w)
    G_RL, J_RL, rl = grad_RL(
        phi
    )  # the larger pass first: while the other gradient waits, the smaller one is computed
    G_SFT, J_SFT, sft = grad_SFT(phi, objectives.inner(G_RL, G_RL))
    metrics, values = objectives.cooperation(G_SFT, G_RL), (J_SFT, J_RL)

    def theta_part(state, lam, values):
        """theta's step, and what its gradients are to w."""
        G = jax.tree.map(lambda s, r: (1 - lam) * s + lam * r, G_SFT, G_RL)
        up_w = policy.pull(w, G if w_learns == "both" else jax.tree.map(lambda r: lam * r, G_RL))
        return *ascend(state, Params(theta=G), values), up_w

    done = J_SFT
    if known := not callable(lam):
        state, moved, up_w = theta_part(state, lam, values)
        leaf = jax.tree.leaves(state.params.theta)[0]
        done = leaf[(0,) * leaf.ndim] + objectives.inner(
            up_w, up_w
        )  # theta has moved, and what w needs of G is taken
        state = state.replace(params=jax.lax.optimization_barrier((state.params, done))[0])
    phi_hat = policy.merge(unpack(state.params).theta_hat, objectives.after(done, w))
    G_hat, J_hat, hat = grad_RL_hat(phi_hat, rl, done)
    values = (*values, J_hat, objectives.inner(G_hat, G_hat))
    if not known:
        lam = lam(rl, hat)
        state, moved, up_w = theta_part(state, lam, values)
    values = (*values, *moved.values())
    up_w = jax.tree.map(lambda both, shadow: both - lam * shadow, up_w, policy.pull(w, G_hat))
    state, moved_hat = ascend(state, Params(None, G_hat), values)
    state, moved_w = ascend(state, Params(None, None, up_w), (*values, *moved_hat.values()))
    metrics |= moved | moved_hat | moved_w | {"bridge/lam": jnp.float32(lam)}
    return state, values, (sft, rl, hat), metrics


STORAGE = {"full": Storage(), "difference": Storage(unpacked, packed, follow=("theta_hat",))}
CHOICES = {
    "shadow_rollouts": ("shared", "own"),
    "w_learns": ("both", "gain"),
    "shadow_storage": tuple(STORAGE),
    "shadow_moments": ("", *MOMENTS),
}


def capped_share(cap: float, hat: dict, behaviour_BT, seqs: Sequences):
    """Share of the tokens whose weight in theta_hat's gradient the cap bounds; 0 where it is free."""
    if not cap:
        return jnp.float32(0)
    rho_BT = objectives.ratio(hat["logp_BT"], behaviour_BT)
    return objectives.mean_tokens((rho_BT > cap) | (rho_BT < 1.0 / cap), seqs)


def lam_rule(cfg: Config):
    """(step, theta's rollouts, theta_hat's own or None) -> lam, a number; by the gain, a function of what the passes saw:

    lam_end + (lam - lam_end) clip(gain / lam_gain, 0, 1), which is lam while SFT makes theta better than RL alone, else lam_end.
    """
    if cfg.lam_schedule != "gain":
        at = schedule(
            cfg.lam_schedule,
            cfg.lam,
            cfg.lam_end,
            cfg.lam_steps,
            cfg.lam_boundaries,
            cfg.lam_values,
        )
        return lambda step, rollouts, own: (
            at(step) if own is None else lambda *_: at(step)
        )  # its samples may fail

    def by_gain(step, rollouts: Rollouts, own: Rollouts | None):
        def lam(rl, hat):
            gain = (
                shared_gain(rollouts, rl["logp_BT"], hat["logp_BT"])["bridge/gain"]
                if own is None
                else rollouts.reward_B.mean() - own.reward_B.mean()
            )
            return cfg.lam_end + (cfg.lam - cfg.lam_end) * jnp.clip(gain / cfg.lam_gain, 0.0, 1.0)

        return lam

    return by_gain


def check_gain_schedule(cfg: Config) -> None:
    """ValueError where lam by the gain could never leave lam_end, at which every run begins: its first gain is 0.

    With lam_end = 1 theta and theta_hat then take the same steps, and with a re-sync after each step theta_hat is theta again:
    their gain stays 0.
    """
    if cfg.lam_schedule != "gain":
        return
    stuck = {
        f"lam_end={cfg.lam_end}": (np.float32(cfg.lam_end) == 1, "below 1, such as 0.8"),
        f"lam={cfg.lam} and lam_end={cfg.lam_end}": (
            np.float32(cfg.lam) == np.float32(cfg.lam_end),
            "two numbers",
        ),
        f"resync_every={cfg.resync_every}": (cfg.resync_every == 1, "0 (never), or at least 2"),
    }
    for given, (is_stuck, allowed) in stuck.items():
        if is_stuck:
            raise ValueError(
                f"method.{given} with lam_schedule='gain' keeps lam at lam_end for ever; allowed: {allowed}"
            )


def check(cfg: Config) -> None:
    """ValueError for settings that cannot be meant."""
    for key, allowed in CHOICES.items():
        if getattr(cfg, key) not in allowed:
            raise ValueError(
                f"method.{key}={getattr(cfg, key)!r}; allowed: {', '.join(map(repr, allowed))}"
            )
    checks.check_range("method.resync_every", cfg.resync_every, 0)
    checks.check_range("method.inner_steps", cfg.inner_steps, 1)
    checks.check_range("method.sft_microbatches", cfg.sft_microbatches, 0)
    objectives.check_advantage(cfg.advantage)
    checks.check_range("method.kl_coef", cfg.kl_coef, 0.0)
    if not cfg.lam_gain > 0:
        raise ValueError(
            f"method.lam_gain={cfg.lam_gain}; allowed: above 0, the gain from which lam holds"
        )
    for lam in (cfg.lam, cfg.lam_end, *cfg.lam_values):
        checks.check_range("method.lam, lam_end and lam_values", lam, 0.0, 1.0)
    check_gain_schedule(cfg)
    if cfg.ratio_cap and not cfg.ratio_cap > 1.0:
        raise ValueError(
            f"method.ratio_cap={cfg.ratio_cap}; allowed: 0 (free), or above 1 to bound the ratio to [1/cap, cap]"
        )


def further_steps(
    count: int, state: TrainState, values, gradient, ascend
) -> tuple[TrainState, jax.Array]:
    """theta_hat's RL steps beyond the first, at the w of now, and whether one was skipped; gradient: params -> (G, J, facts).

    values: of the first step, which have to be finite here as well."""
    skipped = jnp.float32(0)
    for _ in range(count):
        G_hat, J, _ = gradient(state.params)
        state, applied = ascend(state, Params(None, G_hat), (J, *values))
        skipped = jnp.maximum(skipped, applied["update/skipped"])
    return state, skipped


def settle(cfg: Config, state: TrainState, step, skipped) -> TrainState:
    """The state after `step` steps; theta_hat is theta again if it is time, and the step was one. Its moments stay its own."""
    if not cfg.resync_every:
        return state.replace(step=step)
    now, theta = (step % cfg.resync_every == 0) & (skipped == 0), state.params.theta
    again = (
        theta
        if cfg.shadow_storage == "full"
        else jax.tree.map(jnp.zeros_like, state.params.theta_hat)
    )
    theta_hat = jax.tree.map(
        lambda t, h: jnp.where(now, t, h), again, on_device(state.params.theta_hat)
    )
    return state.replace(step=step, params=state.params.replace(theta_hat=theta_hat))


def rows_at_once(D: int, microbatch_rows: int, parts: int) -> int:
    """Of D experts, at most as many as of other rows, and so few that they make `parts` micro-batches; ValueError if uneven."""
    if parts > 1 and D % parts:
        raise ValueError(
            f"method.sft_microbatches={parts} does not divide the {D} rows of demonstrations of a step; allowed: "
            f"{', '.join(str(n) for n in range(1, D + 1) if D % n == 0)}, or 0: as batch.microbatch_rows has it"
        )
    return min(microbatch_rows or D, D // max(1, parts))


def make(cfg: Config, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
    """BRIDGE; state: Params(theta, theta_hat, w), and ref when kl_coef > 0."""
    check(cfg)
    own, lam_at = cfg.shadow_rollouts == "own", lam_rule(cfg)
    term = functools.partial(objectives.surrogate, cap=cfg.ratio_cap)
    recipes = dataclasses.replace(
        recipes, shadow_moments=cfg.shadow_moments, shadow_updates=cfg.inner_steps
    )
    storage = STORAGE[cfg.shadow_storage]

    def init(theta, key) -> TrainState:
        params = Params(theta=theta, theta_hat=jax.tree.map(jnp.copy, theta), w=policy.init_w(key))
        state = begin(recipes, params, policy.merge(theta, None) if cfg.kl_coef else None)
        return state.replace(params=storage.pack(state.params, key))

    unpack = lambda params: storage.unpack(on_device(params))

    def ascend(state: TrainState, ascent: Params, values=()):
        if (
            ascent.theta_hat is not None
        ):  # fetched once more behind its pass instead of being kept through it
            state = jax.lax.optimization_barrier((state, ascent))[0]
        return apply_ascent(recipes, state, ascent, values, storage)

    def update(before: TrainState, batch: Batch):
        rollouts, demos = batch.rollouts["theta"], batch.demos
        seen_by_hat = batch.rollouts["theta_hat"] if own else rollouts
        rows, rows_hat = (
            objectives.rl_rows(
                policy, before.ref, samples, cfg.advantage, cfg.kl_coef, microbatch_rows
            )
            for samples in (rollouts, seen_by_hat)
        )
        gradient = functools.partial(objectives.gradient, microbatch_rows=microbatch_rows)
        demo_rows = rows_at_once(demos.length_B.shape[0], microbatch_rows, cfg.sft_microbatches)
        J_RL, J_hat = (
            objectives.J_RL(policy, samples, term, cfg.kl_coef)
            for samples in (rollouts, seen_by_hat)
        )

        def grad_RL_hat(phi_hat, rl, done):
            behaviour = {} if own else {"behaviour_BT": rl["logp_BT"]}
            G, J, facts = gradient(
                J_hat, phi_hat, seen_by_hat.seqs, rows_hat | behaviour, done=done
            )
            if own:  # one more forward pass
                facts["of_theta_BT"] = objectives.logp_of(
                    policy, phi_hat, rollouts, microbatch_rows
                )
            return G, J, facts

        state, values, (sft, rl, hat), metrics = coupled_ascent(
            lambda phi, done: objectives.gradient(
                objectives.J_SFT(policy, demos), phi, demos, {}, demo_rows, done
            ),
            # a branch as theta_hat's pass is one: compiled alike, their values are equal to the bit while the policies are
            lambda phi: gradient(J_RL, phi, rollouts.seqs, rows, done=rollouts.reward_B.sum()),
            grad_RL_hat,
            lam_at(before.step, rollouts, seen_by_hat if own else None),
            before,
            policy,
            ascend,
            cfg.w_learns,
            unpack,
        )
        gain = (
            own_gain(rollouts, seen_by_hat, rl["logp_BT"], hat["of_theta_BT"], hat["logp_BT"])
            if own
            else shared_gain(rollouts, rl["logp_BT"], hat["logp_BT"])
        )
        again = rows_hat | {
            "behaviour_BT": (hat if own else rl)["logp_BT"]
        }  # importance-weighted from whoever sampled
        state, skipped = further_steps(
            cfg.inner_steps - 1,
            state,
            values,
            lambda params: gradient(
                J_hat, policy.merge(unpack(params).theta_hat, params.w), seen_by_hat.seqs, again
            ),
            ascend,
        )
        metrics |= gain | {
            "rl/J": values[1],
            "bridge/J_hat": values[2],
            "bridge/clip_fraction": capped_share(
                cfg.ratio_cap, hat, (hat if own else rl)["logp_BT"], seen_by_hat.seqs
            ),
            "update/skipped": jnp.maximum(metrics["update/skipped"], skipped),
        }
        state = settle(cfg, state, before.step + 1, metrics["update/skipped"])
        metrics |= objectives.demo_metrics(sft, demos) | objectives.rollout_metrics(rl, rollouts)
        metrics |= objectives.passed(
            demos,
            rollouts.seqs,
            *[seen_by_hat.seqs] * cfg.inner_steps,
            forward=(
                (rollouts.seqs,) * own + (rollouts.seqs, seen_by_hat.seqs) * bool(cfg.kl_coef)
            ),
        )
        return state, metrics | {
            "budget/generated_tokens": sum(x.seqs.length_B.sum() for x in batch.rollouts.values())
        }

    def policy_of(params: Params, actor: str = "theta"):
        params = unpack(params) if actor == "theta_hat" else params
        return policy.merge(params.theta_hat if actor == "theta_hat" else params.theta, params.w)

    return Method(
        init,
        update,
        policy_of,
        kinds=(Reads(("theta", "theta_hat") if own else ("theta",), demos=True),),
        on_host=("theta_hat",) if cfg.shadow_offload else (),
        milestones=lam_milestones(cfg)
        | ({"method.resync_every": cfg.resync_every + 1} if cfg.resync_every else {}),
    )
