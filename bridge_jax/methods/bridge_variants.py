"""Variants of BRIDGE's step, checks of its settings, and its metrics. Not a method itself.

Variants (ours): w ascends the gain alone; theta_hat is re-synchronised with theta every n steps,
takes n RL steps per step of theta, or learns from samples of its own; its importance weights are
bounded; lam follows the measured gain, so that demos count more or less with the advantage of theta
over RL alone.

Cheaper steps (ours): theta_hat learns from a part of the groups, which rotates (shadow.share), or
in every n-th step (shadow.every). The sums of the part are divided by the batch's tokens times its
share, so that the mean over all parts is the full gradient. In the gain's gradient w takes its RL
term from the same part as theta_hat's: were it taken from all samples, the noise of the two would
not cancel, and w would move by sampling noise alone while theta_hat = theta. So it costs the
samples outside of the part as far as w is concerned; theta learns from all. Between two steps in
which theta_hat learns w ascends its SFT term alone, and in the n-th the gain's gradient counts n
times: a sum over n steps is then unbiased as long as the gain's gradient changes little within
them. theta_hat's own step is not scaled, so it trails theta the more.

Importance weights are per token: exact for completions of one token, and a good approximation for
longer ones while theta_hat is close to theta. With shared samples watch bridge/ess: as theta_hat
falls behind, the estimate of the gain depends on few samples. At the exact optimum the theta_hat
term vanishes, since theta can undo w; the term acts while theta_hat is behind.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bridge_jax import objectives
from bridge_jax.config import checks
from bridge_jax.config.schedule import KINDS, check_schedule
from bridge_jax.objectives import Pass, PassAndKept
from bridge_jax.optim import (
    Recipes,
    Storage,
    apply_ascent,
    on_device,
    read_again_after,
    schedule,
)
from bridge_jax.types import (
    Batch,
    BatchSpec,
    Metrics,
    Params,
    Policy,
    Rollouts,
    Sequences,
    TrainState,
    Tree,
)

KEY = "method.bridge"


@dataclasses.dataclass(frozen=True)
class Variant:
    """Departures from the paper's step; the defaults are none."""

    # "shared": theta_hat learns from theta's samples; "own": it samples too, with the same keys
    shadow_rollouts: str = "shared"
    # bounds the weight of a token's gradient in theta_hat to [1/cap, cap]; 0: free
    ratio_cap: float = 0.0
    # "both": SFT and the gain; "gain": without the SFT term
    w_learns: str = "both"
    # number of steps after which theta_hat is set to theta; 0: never
    resync_every: int = 0
    # RL steps of theta_hat per step of theta, all on the same samples and with the same rate
    inner_steps: int = 1


# metrics of theta_hat's pass
GAIN_METRICS = (
    "bridge/gain",
    "bridge/gain_stderr",
    "bridge/ess",
    "bridge/kl_hat",
    "bridge/J_hat",
    "bridge/clip_fraction",
)
CHOICES = {"shadow_rollouts": ("shared", "own"), "w_learns": ("both", "gain")}


class Passes(NamedTuple):
    """The three forward-backward passes of a step; after: a scalar that the pass waits for."""

    rl: Callable  # phi -> Pass of J_RL
    sft: Callable  # (phi, after) -> Pass of J_SFT
    hat: Callable  # (phi_hat, rl, after=) -> Pass of J_RL, with importance weights
    # (G, lam, rl, sft) -> the gradient in phi for what w ascends besides theta_hat's term
    for_w: Callable = lambda G, lam, rl, sft: G
    # (rl, theta_hat's gradient in w) -> what w descends with the weight lam
    for_gain: Callable = lambda rl, shadow: shadow


# ---- settings


def check(cfg) -> None:
    """ValueError for settings of bridge.Config that are invalid."""
    variant = cfg.variant
    for name, allowed in CHOICES.items():
        if getattr(variant, name) not in allowed:
            raise ValueError(
                f"{KEY}.variant.{name}={getattr(variant, name)!r}; allowed: "
                f"{', '.join(map(repr, allowed))}"
            )
    cfg.shadow.check(f"{KEY}.shadow")
    check_cheaper_shadow(cfg)
    checks.check_range(f"{KEY}.variant.resync_every", variant.resync_every, 0)
    checks.check_range(f"{KEY}.variant.inner_steps", variant.inner_steps, 1)
    checks.check_range(f"{KEY}.sft_microbatches", cfg.sft_microbatches, 0)
    objectives.check_advantage(f"{KEY}.advantage", cfg.advantage)
    checks.check_range(f"{KEY}.kl_coef", cfg.kl_coef, 0.0)
    check_schedule(f"{KEY}.lam_schedule", cfg.lam, cfg.lam_schedule, KINDS)
    check_gain_schedule(cfg)
    if variant.ratio_cap and not variant.ratio_cap > 1.0:
        raise ValueError(
            f"{KEY}.variant.ratio_cap={variant.ratio_cap}; allowed: 0 (free), or above 1 to bound "
            "the ratio to [1/cap, cap]"
        )


def check_cheaper_shadow(cfg) -> None:
    """ValueError for variants that do not go with shadow.share or shadow.every."""
    every, resync = cfg.shadow.every, cfg.variant.resync_every
    if not cfg.shadow.whole and cfg.variant.shadow_rollouts == "own":
        raise ValueError(
            f"{KEY}.variant.shadow_rollouts='own' with {KEY}.shadow.share={cfg.shadow.share} and "
            f"{KEY}.shadow.every={every} samples more than theta_hat learns from; allowed: 'shared'"
        )
    if every > 1 and resync and (resync % every or resync == every):
        raise ValueError(
            f"{KEY}.variant.resync_every={resync} with {KEY}.shadow.every={every}; allowed: 0 "
            f"(never), or a multiple from {2 * every} on, so that theta_hat learns in between"
        )


def check_gain_schedule(cfg) -> None:
    """ValueError where lam, with kind "gain", could never leave its end.

    Every run begins there, since the first gain is 0. With lam = 1 theta and theta_hat take the
    same steps; with a re-sync after each step they are equal. In both cases the gain stays 0.
    """
    if cfg.lam_schedule.kind != "gain":
        return
    stuck = {
        f"lam_schedule.end={cfg.lam_schedule.end}": (
            np.float32(cfg.lam_schedule.end) == 1,
            "below 1, such as 0.8",
        ),
        f"variant.resync_every={cfg.variant.resync_every}": (
            cfg.variant.resync_every == 1,
            "0 (never), or at least 2",
        ),
    }
    for key, (is_stuck, allowed) in stuck.items():
        if is_stuck:
            raise ValueError(
                f"{KEY}.{key} with lam_schedule.kind='gain' keeps lam at its end; "
                f"allowed: {allowed}"
            )


def method_fields(cfg) -> dict:
    """Fields of the Method that depend on the settings."""
    own = cfg.variant.shadow_rollouts == "own"
    resync, every = cfg.variant.resync_every, cfg.shadow.every
    return {
        "step_kinds": (BatchSpec(("theta", "theta_hat") if own else ("theta",), demos=True),),
        "on_host": ("theta_hat",) if cfg.shadow.offload else (),
        "milestones": cfg.lam_schedule.milestones(f"{KEY}.lam_schedule")
        | ({f"{KEY}.variant.resync_every": resync + 1} if resync else {})
        | ({f"{KEY}.shadow.every": every + 1} if every > 1 else {}),
        "not_in_every_step": GAIN_METRICS if every > 1 else (),
        "check_batch": functools.partial(check_batch, cfg),
        "demo_microbatches": cfg.sft_microbatches,
        "period": every,
    }


def check_batch(cfg, table) -> None:
    """ValueError where a step's demonstrations or groups do not divide into the parts of cfg."""
    table.check_demo_parts(f"{KEY}.sft_microbatches", cfg.sft_microbatches)
    P, count = table.prompts_per_step, table.rollout_microbatches
    checks.check_parts(f"{KEY}.shadow.share", cfg.shadow.parts, P, count, packed=table.pack > 0)


def shadow_recipe(cfg, recipes: Recipes) -> Recipes:
    """The recipes with the settings of theta_hat's moments and updates per step."""
    return dataclasses.replace(
        recipes,
        shadow_moments=cfg.shadow.moments,
        shadow_updates=cfg.variant.inner_steps,
        shadow_every=cfg.shadow.every,
    )


def ascent(recipes: Recipes, storage: Storage, learns: jax.Array | None) -> Callable:
    """(state, part, gradient, values that must be finite) -> (state, metrics): updates one part.

    learns: whether theta_hat and its moments move in this step; None: they do. A step in which they
    rest is not a skipped one.
    """

    def ascend(state: TrainState, part: str, G, finite):
        if part == "theta_hat":
            state, G = read_again_after(state, G)
        ascent = Params(**{"theta": None, part: G})
        if part != "theta_hat" or learns is None:
            return apply_ascent(recipes, state, ascent, finite, storage)
        finite = (*finite, jnp.where(learns, 0.0, jnp.nan))
        state, metrics = apply_ascent(recipes, state, ascent, finite, storage)
        skipped = jnp.where(learns, metrics["update/skipped"], 0.0)
        return state, metrics | {"update/skipped": skipped}

    return ascend


# ---- theta_hat learns from a part of the groups, or in every n-th step


def due(cfg, step: jax.Array) -> jax.Array | None:
    """Whether theta_hat learns in this step (0 for the first); None: it learns in every step."""
    return None if cfg.shadow.every == 1 else step % cfg.shadow.every == 0


def parts(cfg, batch: Batch, microbatch_rows: int) -> objectives.Parts | None:
    """The parts of theta's samples that theta_hat learns from in turn; None: from all."""
    if cfg.shadow.parts == 1:
        return None
    seqs, key = batch.rollouts["theta"].seqs, f"{KEY}.shadow.share"
    return objectives.parts_of(seqs, microbatch_rows, cfg.shadow.parts, key)


def in_parts(cfg, step: jax.Array, batch: Batch, microbatch_rows: int) -> Batch:
    """The batch with the groups that theta_hat learns from first; unchanged where it takes all."""
    if not (divided := parts(cfg, batch, microbatch_rows)):
        return batch
    k = step // cfg.shadow.every % divided.n
    samples = divided.ordered(batch.rollouts["theta"], k)
    return batch.replace(rollouts=batch.rollouts | {"theta": samples})


# ---- lam


def lam_rule(cfg) -> Callable:
    """state -> lam, fp32, from the step, or from the gain of the previous step:

    end + (lam - end) clip(gain / threshold, 0, 1): lam while theta is better than RL alone,
    otherwise lam_schedule.end.
    """
    lam_schedule = cfg.lam_schedule
    if lam_schedule.kind != "gain":
        at = schedule(cfg.lam, lam_schedule)
        return lambda state: at(state.step)
    return lambda state: (
        lam_schedule.end
        + (cfg.lam - lam_schedule.end) * jnp.clip(state.last_gain / lam_schedule.gain, 0.0, 1.0)
    )


def init_gain(cfg, state: TrainState) -> TrainState:
    """The state with last_gain = 0 where lam depends on it."""
    return state.replace(last_gain=jnp.float32(0)) if cfg.lam_schedule.kind == "gain" else state


# ---- the passes


def samples_of(cfg, batch: Batch, microbatch_rows: int) -> tuple[Rollouts, Rollouts]:
    """theta's samples, and the samples that theta_hat learns from; batch: from in_parts."""
    if divided := parts(cfg, batch, microbatch_rows):
        return batch.rollouts["theta"], divided.first(batch.rollouts["theta"])
    sampled_by = {"shared": "theta", "own": "theta_hat"}[cfg.variant.shadow_rollouts]
    return batch.rollouts["theta"], batch.rollouts[sampled_by]


def rl_objective(cfg, policy: Policy, microbatch_rows: int, ref: Tree, samples: Rollouts):
    """J_RL on these samples, unclipped but for ratio_cap, and its rows."""
    rows = objectives.rl_rows(policy, ref, samples, cfg.advantage, cfg.kl_coef, microbatch_rows)
    return objectives.J_RL(policy, samples, rl_term(cfg), cfg.kl_coef), rows


def rl_term(cfg) -> Callable:
    """The term of J_RL per token."""
    return functools.partial(objectives.surrogate, cap=cfg.variant.ratio_cap)


def passes_of(cfg, policy: Policy, state: TrainState, batch: Batch, microbatch_rows: int) -> Passes:
    """The passes of a step: J_RL on theta's samples, J_SFT on demos, J_RL for theta_hat.

    state: before the step. batch: from in_parts.
    """
    samples, samples_hat = samples_of(cfg, batch, microbatch_rows)
    demos, ref, divided = batch.demos, state.ref, parts(cfg, batch, microbatch_rows)
    J_RL, rows = rl_objective(cfg, policy, microbatch_rows, ref, samples)
    if divided:
        total = objectives.token_total(samples.seqs) / divided.n
        J_hat = objectives.J_RL(policy, samples_hat, rl_term(cfg), cfg.kl_coef, total)
        rows_hat = divided.first(rows)
    else:
        J_hat, rows_hat = rl_objective(cfg, policy, microbatch_rows, ref, samples_hat)
    J_SFT = objectives.J_SFT(policy, demos)
    rows_of_demos = demo_rows(cfg, demos, microbatch_rows)
    gradient = functools.partial(objectives.gradient, microbatch_rows=microbatch_rows)
    learns, pull = due(cfg, state.step), functools.partial(policy.pull, state.params.w)

    def rl(phi: Tree) -> Pass | PassAndKept:
        # `after` makes this pass a branch like that of theta_hat: while the two policies are equal,
        # both J are bit-equal
        after, keep = samples.reward_B.sum(), None
        if divided:
            keep = objectives.Keep(divided.microbatches, pull)
        found = gradient(J_RL, phi, samples.seqs, rows, after=after, keep=keep)
        if divided:
            return found._replace(kept=jax.tree.map(lambda x: divided.n * x, found.kept))
        return found if cfg.shadow.whole else PassAndKept(*found, pull(found.G))

    def hat(phi: Tree, rl: Pass, hat: Pass | None = None, *, after=None) -> Pass:
        rows = rows_hat | behaviour(cfg, of_part(divided, rl), hat)
        after = jnp.float32(0) if after is None and learns is not None else after
        return gradient(J_hat, phi, samples_hat.seqs, rows, after=after, due=learns)

    return Passes(
        rl=rl,
        sft=lambda phi, after: objectives.gradient(J_SFT, phi, demos, {}, rows_of_demos, after),
        hat=hat,
        for_w=gradient_for_w(cfg),
        **({} if cfg.shadow.whole else {"for_gain": gain_of_part(cfg, learns)}),
    )


def of_part(divided: objectives.Parts | None, rl: Pass) -> Pass:
    """theta's pass with the outputs of the part alone."""
    return rl._replace(aux=divided.first(rl.aux)) if divided else rl


def gain_of_part(cfg, learns: jax.Array | None) -> Callable:
    """(rl, shadow) -> the gain's gradient of the part, negated; theta's side of it is `rl.kept`.

    It counts shadow.every times where theta_hat learns, and 0 times where it rests.
    """
    weight = 1.0 if learns is None else jnp.where(learns, float(cfg.shadow.every), 0.0)

    def for_gain(rl: PassAndKept, shadow: Tree) -> Tree:
        return jax.tree.map(lambda part, hat: weight * (hat - part), rl.kept, shadow)

    return for_gain


def behaviour(cfg, rl: Pass, hat: Pass | None = None) -> dict:
    """Log-probabilities of the behaviour policy in theta_hat's objective.

    hat: theta_hat's first pass of this step, for further passes. {} in the first pass on its own
    samples, where the ratio is 1.
    """
    sampled_by = rl if cfg.variant.shadow_rollouts == "shared" else hat
    return {} if sampled_by is None else {"behaviour_BT": sampled_by.aux["logp_BT"]}


def gradient_for_w(cfg) -> Callable:
    """(G, lam, rl, sft) -> the gradient in phi for what w ascends besides theta_hat's term.

    G, or its J_RL part alone. Where that comes with theta_hat's (gain_of_part), its J_SFT part, or
    nothing.
    """
    both = cfg.variant.w_learns == "both"
    if cfg.shadow.whole and both:
        return lambda G, lam, rl, sft: G
    if cfg.shadow.whole:
        return lambda G, lam, rl, sft: jax.tree.map(lambda r: lam * r, rl.G)
    if both:
        return lambda G, lam, rl, sft: jax.tree.map(lambda s: (1 - lam) * s, sft.G)
    return lambda G, lam, rl, sft: jax.tree.map(jnp.zeros_like, G)


def demo_rows(cfg, demos: Sequences, microbatch_rows: int) -> int:
    """Rows of a micro-batch of demos: at most microbatch_rows, for at least sft_microbatches parts.

    Smaller parts save memory, since the RL gradient is held during their pass. ValueError where the
    demos do not divide evenly.
    """
    D, parts = demos.length_B.shape[0], cfg.sft_microbatches
    if parts > 1 and D % parts:
        raise ValueError(
            f"{KEY}.sft_microbatches={parts} does not divide the {D} rows of demonstrations of a "
            f"step; allowed: {', '.join(str(n) for n in range(1, D + 1) if D % n == 0)}, or 0: as "
            "batch.microbatch_rows has it"
        )
    return min(microbatch_rows or D, D // max(1, parts))


# ---- after the step


def extra_shadow_steps(
    cfg, state: TrainState, metrics: Metrics, hat_pass: Callable, ascend: Callable
) -> tuple[TrainState, Metrics]:
    """theta_hat's RL steps after the first, with the updated w; hat_pass: state -> Pass.

    They are skipped if the step was skipped, and a skipped one sets update/skipped.
    """
    skipped = metrics["update/skipped"]
    nonfinite_if_skipped = jnp.where(skipped > 0, jnp.nan, 0.0)
    for _ in range(cfg.variant.inner_steps - 1):
        hat = hat_pass(state)
        state, applied = ascend(state, "theta_hat", hat.G, (hat.J, nonfinite_if_skipped))
        skipped = jnp.maximum(skipped, applied["update/skipped"])
    return state, metrics | {"update/skipped": skipped}


def finish(cfg, state: TrainState, step, metrics: Metrics) -> TrainState:
    """The state after `step` steps, with a re-sync of theta_hat if it is due, and the gain for lam.

    A skipped step does not re-sync. theta_hat keeps its own moments.
    """
    state = state.replace(step=step)
    if state.last_gain is not None:
        gain = metrics["bridge/gain"]
        state = state.replace(last_gain=jnp.where(jnp.isfinite(gain), gain, state.last_gain))
    if not cfg.variant.resync_every:
        return state
    due = (step % cfg.variant.resync_every == 0) & (metrics["update/skipped"] == 0)
    theta_hat = on_device(state.params.theta_hat)
    # stored as a difference, theta_hat = theta is 0
    full = cfg.shadow.storage == "full"
    synced = state.params.theta if full else jax.tree.map(jnp.zeros_like, theta_hat)
    theta_hat = jax.tree.map(lambda t, h: jnp.where(due, t, h), synced, theta_hat)
    return state.replace(params=state.params.replace(theta_hat=theta_hat))


def metrics(
    cfg,
    policy: Policy,
    state: TrainState,
    phi_hat: Tree,
    batch: Batch,
    results,
    microbatch_rows: int,
) -> Metrics:
    """Metrics of a step's samples and passes; results: (rl, sft, hat); state, phi_hat: before it.

    The gain's are those of the samples that theta_hat learns from, and NaN in a step in which it
    rests.
    """
    rl, sft, hat = results
    samples, samples_hat = samples_of(cfg, batch, microbatch_rows)
    demos, forward, divided = batch.demos, (), parts(cfg, batch, microbatch_rows)
    rl_hat = of_part(divided, rl)
    if cfg.variant.shadow_rollouts == "own":
        # one more forward pass: theta_hat on theta's samples
        logp_BT = objectives.logp_of(policy, phi_hat, samples, microbatch_rows)
        logps = (rl.aux["logp_BT"], logp_BT, hat.aux["logp_BT"])
        reported = objectives.own_gain(samples, samples_hat, *logps)
        forward += (samples.seqs,)
    else:
        reported = objectives.shared_gain(samples_hat, rl_hat.aux["logp_BT"], hat.aux["logp_BT"])
    reported |= {
        "bridge/J_hat": hat.J,
        "bridge/clip_fraction": capped_fraction(cfg, rl_hat, hat, samples_hat.seqs),
    }
    seqs_hat, learns = samples_hat.seqs, due(cfg, state.step)
    if learns is not None:
        reported = jax.tree.map(lambda x: jnp.where(learns, x, jnp.nan), reported)
        seqs_hat = seqs_hat.replace(length_B=jnp.where(learns, seqs_hat.length_B, 0))
    if cfg.kl_coef:
        forward += (samples.seqs,) if divided else (samples.seqs, samples_hat.seqs)
    backward = (demos, samples.seqs, *[seqs_hat] * cfg.variant.inner_steps)
    reported |= {"rl/J": rl.J}
    reported |= objectives.demo_metrics(sft.aux, demos) | objectives.rollout_metrics(
        rl.aux, samples
    )
    reported |= objectives.token_counts(*backward, forward=forward)
    generated = sum(x.seqs.length_B.sum() for x in batch.rollouts.values())
    return reported | {"budget/generated_tokens": generated}


def capped_fraction(cfg, rl: Pass, hat: Pass, seqs: Sequences) -> jax.Array:
    """Share of the tokens whose weight in theta_hat's gradient is capped; 0 without a cap."""
    cap = cfg.variant.ratio_cap
    if not cap:
        return jnp.float32(0)
    rho_BT = objectives.ratio(hat.aux["logp_BT"], behaviour(cfg, rl, hat)["behaviour_BT"])
    return objectives.mean_tokens((rho_BT > cap) | (rho_BT < 1.0 / cap), seqs)
