"""Two optimizer recipes over three labels, schedules, and the one guarded update that every method ends with.

alpha is the learning rate of the base recipe (theta, and theta_hat by exactly the same recipe in its own right), beta that
of the lora recipe (w). Each label clips by its OWN global norm: under a common one a large shadow gradient would shrink
theta's step. Directions are gradients of objectives to be maximised; the one minus sign stands in `apply_ascent`.

Which parameters are matrices is declared (`Recipes.matrices`, of a run by the model's tensor table), for a shape does not tell:
the norms of all layers are one array of two dimensions, and so are their biases. Weight decay reaches matrices alone, the
embedding and the head among them, as in Hugging Face's Trainer and in nanoGPT; factored moments take rows and columns from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bridge_jax.optim.moments import (
    MOMENTS,
    Declared,
    kept_in_bfloat16,
    matrix_of,
    scale_by_factored_adam,
    updates_made,
)
from bridge_jax.types import Metrics, Params, TrainState, Tree

RATES = ("constant", "linear", "cosine")  # schedules of a learning rate


@dataclasses.dataclass(frozen=True)
class Recipe:
    """AdamW for one label."""

    learning_rate: float = 5e-7
    schedule: str = (
        "constant"  # constant, linear, cosine: from learning_rate to learning_rate * end_ratio
    )
    end_ratio: float = 0.0
    warmup_steps: int = 0  # linear from 0
    decay_steps: int = 0  # length of the schedule after warm-up; needed unless constant
    clip_norm: float = 1.0  # global norm of this label's gradient; 0 turns it off
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    moments: str = "float32"  # how Adam's are kept: a key of MOMENTS


def schedule(kind: str, start: float, end: float, steps: int, boundaries=(), values=()) -> Callable:
    """A function of the traced step: constant, linear or cosine from start to end, or step (values after boundaries).

    ValueError for one that is not called constant and yet can never leave its start.
    """
    allowed = (*RATES, "step")
    if kind not in allowed:
        raise ValueError(f"schedule {kind!r} is unknown; allowed: {', '.join(allowed)}")
    if kind == "constant":
        return lambda step: jnp.full((), start, jnp.float32)
    if kind == "step":
        if len(values) != len(boundaries) or list(boundaries) != sorted(set(boundaries)):
            raise ValueError(
                f"a step schedule needs rising boundaries and one value for each; given {boundaries} and {values}"
            )
        if not boundaries or boundaries[0] < 1:
            raise ValueError(
                f"a step schedule needs boundaries, the first at step 1 or later; given {boundaries}"
            )
    elif steps <= 0:
        raise ValueError(f"a {kind} schedule needs a positive number of steps; given {steps}")
    ends = values if kind == "step" else (end,)
    # as the compiled step sees them
    if {np.float32(value) for value in ends} == {np.float32(start)}:
        raise ValueError(
            f"a {kind} schedule from {start} to {', '.join(map(str, ends))} never leaves its start; give another "
            "end, or make it constant"
        )
    if kind == "step":
        levels = jnp.asarray((start, *values), jnp.float32)
        return lambda step: levels[jnp.sum(step >= jnp.asarray(boundaries, jnp.int32))]

    def interpolate(step):
        done = jnp.clip(step / steps, 0.0, 1.0)
        done = (1.0 - jnp.cos(jnp.pi * done)) / 2.0 if kind == "cosine" else done
        return jnp.float32(start) + (end - start) * done

    return interpolate


def lam_milestones(cfg) -> dict[str, int]:
    """Of a method whose config has lam and its schedule: the step by which lam has moved to its end, or with which it first moves."""
    return {
        "linear": {"method.lam_steps": cfg.lam_steps},
        "cosine": {"method.lam_steps": cfg.lam_steps},
        "step": {"method.lam_boundaries": min(cfg.lam_boundaries, default=0) + 1},
    }.get(cfg.lam_schedule, {})


def learning_rate(recipe: Recipe, per: int = 1) -> Callable:
    """The recipe's learning rate as a function of the update count: linear warm-up, then its schedule.

    per: updates that make one step of the schedule.
    """
    for key in ("learning_rate", "end_ratio", "warmup_steps", "clip_norm", "weight_decay"):
        if not getattr(recipe, key) >= 0:
            raise ValueError(f"optim: {key}={getattr(recipe, key)}; allowed: 0 or more")
    for key in ("b1", "b2"):
        if not 0 <= getattr(recipe, key) < 1:
            raise ValueError(f"optim: {key}={getattr(recipe, key)}; allowed: from 0 to below 1")
    if not recipe.eps > 0:
        raise ValueError(f"optim: eps={recipe.eps}; allowed: above 0")
    if recipe.schedule not in RATES:
        raise ValueError(f"optim: schedule={recipe.schedule!r}; allowed: {', '.join(RATES)}")
    if recipe.schedule != "constant" and recipe.end_ratio == 1:
        raise ValueError(
            f"optim: end_ratio=1 with schedule={recipe.schedule!r} never leaves the learning rate; give another "
            "ratio, or schedule='constant'"
        )
    after = schedule(
        # a rate of 0 (a frozen part) has nowhere to go
        recipe.schedule if recipe.learning_rate else "constant",
        recipe.learning_rate,
        recipe.learning_rate * recipe.end_ratio,
        recipe.decay_steps,
    )
    if not recipe.warmup_steps:
        return lambda count: after(count // per)
    warm = lambda step: recipe.learning_rate * (step + 1) / recipe.warmup_steps
    at = lambda step: jnp.where(
        step < recipe.warmup_steps, warm(step), after(step - recipe.warmup_steps)
    )
    return lambda count: at(count // per)


def misfits(recipe: Recipe, steps: int) -> list[str]:
    """What the recipe's schedule does not do within so many steps, or does too early; one sentence each, for warnings."""
    end, found = recipe.warmup_steps + recipe.decay_steps, []
    if recipe.learning_rate and recipe.warmup_steps > steps:
        found.append(
            f"warmup_steps={recipe.warmup_steps} is longer than the {steps} steps it trains for: the rate never "
            f"reaches learning_rate={recipe.learning_rate}"
        )
    if (
        recipe.learning_rate
        and recipe.schedule != "constant"
        and not recipe.end_ratio
        and end < steps
    ):
        found.append(
            f"the learning rate is 0 from step {end + 1} on (warmup_steps={recipe.warmup_steps} and "
            f"decay_steps={recipe.decay_steps}, of the {steps} steps it trains for): they change nothing; raise "
            "decay_steps, or end_ratio"
        )
    return found


def adamw(
    recipe: Recipe, per: int = 1, matrices: Declared | None = None
) -> optax.GradientTransformation:
    """Clip, Adam with its moments as the recipe keeps them, decoupled weight decay on matrices alone, learning rate.

    matrices: which parameters are; needed for weight decay and for factored moments.
    """
    if recipe.moments not in MOMENTS:
        raise ValueError(f"optim: moments={recipe.moments!r}; allowed: {', '.join(MOMENTS)}")
    clip = optax.clip_by_global_norm(recipe.clip_norm) if recipe.clip_norm else optax.identity()

    def decayed(tree: Tree) -> Tree:
        """Which leaves weight decay reaches."""
        reached = lambda path, x: recipe.weight_decay > 0 and matrix_of(matrices, path) is not None
        return jax.tree_util.tree_map_with_path(reached, tree)

    if recipe.moments == "factored":
        return optax.chain(
            clip,
            optax.chain(
                scale_by_factored_adam(recipe.b1, recipe.b2, recipe.eps, matrices),
                optax.add_decayed_weights(recipe.weight_decay, decayed),
                optax.scale_by_learning_rate(learning_rate(recipe, per)),
            ),
        )
    adam = optax.chain(
        clip,
        optax.adamw(
            learning_rate(recipe, per),
            recipe.b1,
            recipe.b2,
            recipe.eps,
            weight_decay=recipe.weight_decay,
            mask=decayed,
        ),
    )
    return adam if recipe.moments == "float32" else kept_in_bfloat16(adam)


@dataclasses.dataclass(frozen=True)
class Recipes:
    """The two recipes of a run; theta_hat's is the base one, but for how its moments are kept, and updates that it makes alone.

    A schedule counts steps of the run: where a part makes several updates in one, they share one learning rate.
    """

    base: Recipe
    lora: Recipe
    shadow_moments: str = ""  # a key of MOMENTS; "": as the base recipe keeps its own
    base_updates: int = 1  # of theta in a step
    shadow_updates: int = 1  # of theta_hat
    matrices: Declared | None = None  # paths in Params(theta, w); None: nothing is declared

    def of_label(self, label: str) -> tuple[Recipe, int]:
        """Its recipe, and how many updates it makes in a step."""
        shadow = dataclasses.replace(self.base, moments=self.shadow_moments or self.base.moments)
        return {
            "base": (self.base, self.base_updates),
            "shadow": (shadow, self.shadow_updates),
            "lora": (self.lora, 1),
        }[label]

    def optimizer(self) -> optax.GradientTransformation:
        """One transformation over Params, partitioned by the labels base, shadow and lora."""
        parts = {label: adamw(*self.of_label(label), self.matrices) for label in LABELS.values()}
        return optax.multi_transform(parts, labels)


def on_device(tree: Tree) -> Tree:
    """Traced arrays that lie in the host's memory brought to the device; the others as they are."""
    host = lambda x: (
        isinstance(x, jax.core.Tracer) and jax.typeof(x).memory_space == jax.memory.Space.Host
    )
    return jax.tree.map(
        lambda x: jax.device_put(x, jax.memory.Space.Device) if host(x) else x, tree
    )


def begin(recipes: Recipes, params: Params, ref=None) -> TrainState:
    """The state before the first step; ref: a tree to be kept as it is, copied because the state is donated."""
    ref = None if ref is None else jax.tree.map(jnp.copy, ref)
    return TrainState(jnp.int32(0), params, recipes.optimizer().init(params), ref)


LABELS = {"theta": "base", "theta_hat": "shadow", "w": "lora"}


def labels(params: Params) -> Params:
    """Label of every part of Params; None where the method has no such part."""
    name = lambda part: jax.tree.map(lambda _: LABELS[part], getattr(params, part))
    return Params(**{part: name(part) for part in LABELS})


class Storage(NamedTuple):
    """How parameters are kept between steps, where not as they are: both functions change the parts that follow alone."""

    unpack: Callable[[Params], Params] = lambda params: params
    pack: Callable[[Params, jax.Array], Params] = lambda params, key: (
        params
    )  # the key is for rounding
    follow: tuple[
        str, ...
    ] = ()  # parts that are stored in terms of theta, and so change when it moves


def apply_ascent(
    recipes: Recipes, state: TrainState, ascent: Params, values=(), storage=Storage()
) -> tuple[TrainState, Metrics]:
    """Move the parts of the parameters that have a direction along it, all of them or none.

    A non-finite gradient norm, or a non-finite entry of `values` (the objectives), leaves parameters and optimizer states
    as they were and is reported as update/skipped = 1; the step counts either way, so that the next batch differs.
    A part whose direction is None, although it has parameters, stays as it is, and so does its optimizer.
    Metrics: the norm of each direction before its clip, the learning rate of each label that moves, update/skipped.
    """
    up = {name: tree for name in LABELS if (tree := getattr(ascent, name)) is not None}
    norms = {f"grad/norm_{name}": optax.global_norm(tree) for name, tree in up.items()}
    finite = jnp.all(
        jnp.isfinite(jnp.stack([jnp.asarray(x, jnp.float32) for x in (*norms.values(), *values)]))
    )
    inner_states = state.opt_state.inner_states
    changing = [name for name in LABELS if name in up or "theta" in up and name in storage.follow]
    storage = storage if set(changing) & set(storage.follow) else Storage()
    key = jax.random.fold_in(jax.random.key("theta" in up), state.step)

    def move(_, kept: tuple[dict, dict]) -> tuple[dict, dict]:
        """{part: it as stored}, {label: its optimizer's state}; parts that rest are zeros here, which come to nothing."""
        parts, moments = kept
        zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
        there = storage.unpack(state.params.replace(**parts))
        before = there.replace(
            **{name: zeros(getattr(there, name)) for name in LABELS if name not in up}
        )
        descent = before.replace(
            **{name: jax.tree.map(jnp.negative, tree) for name, tree in up.items()}
        )
        resting = {label: zeros(inner) for label, inner in inner_states.items()}
        updates, moved = recipes.optimizer().update(
            descent, state.opt_state._replace(inner_states=resting | moments), before
        )
        after = optax.apply_updates(before, updates)
        after = storage.pack(there.replace(**{name: getattr(after, name) for name in up}), key)
        return {name: getattr(after, name) for name in parts}, {
            label: moved.inner_states[label] for label in moments
        }

    # A loop of one round or none. Its body is a fusion boundary: theta and theta_hat, bit-equal so far, round alike in their
    # optimizers. And what it changes is written over, while a branch's results take memory of their own beside their operands.
    kept = (
        {name: getattr(state.params, name) for name in changing},
        {LABELS[name]: inner_states[LABELS[name]] for name in up},
    )
    parts, moments = jax.lax.fori_loop(0, finite.astype(jnp.int32), move, on_device(kept))
    state = state.replace(
        step=state.step + 1,
        params=state.params.replace(**parts),
        opt_state=state.opt_state._replace(inner_states=inner_states | moments),
    )
    rates = {
        f"lr/{label}": learning_rate(*recipes.of_label(label))(updates_made(inner_states[label]))
        for label in (LABELS[name] for name in up)
    }
    return state, norms | rates | {"update/skipped": 1.0 - finite.astype(jnp.float32)}
