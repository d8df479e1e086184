"""Two optimizer recipes over three labels, schedules, and the one guarded update that every method ends with.

alpha is the learning rate of the base recipe (theta, and theta_hat by exactly the same recipe in its own right), beta that
of the lora recipe (w). Each label clips by its OWN global norm: under a common one a large shadow gradient would shrink
theta's step. Directions are gradients of objectives to be maximised; the one minus sign stands in `apply_ascent`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bridge_jax.types import Metrics, Params, TrainState, Tree

MOMENTS = {  # bytes a weight
    "float32": 8,
    "bfloat16": 4,  # both, rounded at random
    "factored": 2,  # the first in bfloat16, of the second means over rows and columns alone
}
FACTORED_FROM = 128  # rows and columns of the smallest matrix whose second moment is factored


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
    """A function of the traced step: constant, linear or cosine from start to end, or step (values after boundaries)."""
    allowed = ("constant", "linear", "cosine", "step")
    if kind not in allowed:
        raise ValueError(f"schedule {kind!r} is unknown; allowed: {', '.join(allowed)}")
    if kind == "constant":
        return lambda step: jnp.full((), start, jnp.float32)
    if kind == "step":
        if len(values) != len(boundaries) or list(boundaries) != sorted(boundaries):
            raise ValueError(
                f"a step schedule needs rising boundaries and one value for each; given {boundaries} and {values}"
            )
        levels = jnp.asarray((start, *values), jnp.float32)
        return lambda step: levels[jnp.sum(step >= jnp.asarray(boundaries, jnp.int32))]
    if steps <= 0:
        raise ValueError(f"a {kind} schedule needs a positive number of steps; given {steps}")

    def interpolate(step):
        done = jnp.clip(step / steps, 0.0, 1.0)
        done = (1.0 - jnp.cos(jnp.pi * done)) / 2.0 if kind == "cosine" else done
        return jnp.float32(start) + (end - start) * done

    return interpolate


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
    after = schedule(
        recipe.schedule,
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


def adamw(recipe: Recipe, per: int = 1) -> optax.GradientTransformation:
    """Clip, Adam with its moments as the recipe keeps them, decoupled weight decay on matrices alone, learning rate."""
    if recipe.moments not in MOMENTS:
        raise ValueError(f"optim: moments={recipe.moments!r}; allowed: {', '.join(MOMENTS)}")
    matrices = lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)
    clip = optax.clip_by_global_norm(recipe.clip_norm) if recipe.clip_norm else optax.identity()
    if recipe.moments == "factored":
        return optax.chain(
            clip,
            optax.chain(
                scale_by_factored_adam(recipe.b1, recipe.b2, recipe.eps),
                optax.add_decayed_weights(recipe.weight_decay, matrices),
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
            mask=matrices,
        ),
    )
    return adam if recipe.moments == "float32" else kept_in_bfloat16(adam)


@dataclasses.dataclass(frozen=True)
class Recipes:
    """The two recipes of a run; theta_hat's is the base one, but for how its moments are kept, and steps that it takes alone."""

    base: Recipe
    lora: Recipe
    shadow_moments: str = ""  # a key of MOMENTS; "": as the base recipe keeps its own
    shadow_steps: int = (
        1  # of theta_hat for one of theta: its learning rate is always theta's of the time
    )

    def optimizer(self) -> optax.GradientTransformation:
        """One transformation over Params, partitioned by the labels base, shadow and lora."""
        shadow = dataclasses.replace(self.base, moments=self.shadow_moments or self.base.moments)
        return optax.multi_transform(
            {
                "base": adamw(self.base),
                "shadow": adamw(shadow, self.shadow_steps),
                "lora": adamw(self.lora),
            },
            labels,
        )


def to_bfloat16(tree: Tree, key: jax.Array) -> Tree:
    """fp32 leaves rounded up or down at random, so that the mean is exact; numbers that bfloat16 has stay what they are.

    Rounding to nearest would lose every change below 1/512 of a number: a moment with b2 = 0.999 would never move.
    """
    leaves, structure = jax.tree.flatten(tree)

    def rounded(x, key):
        if x.dtype != jnp.float32 or not x.ndim:
            return x
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jax.random.bits(
            key, x.shape, jnp.uint16
        ).astype(jnp.uint32)
        kept = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
        return jnp.where(jnp.isfinite(x), kept, x).astype(jnp.bfloat16)

    return structure.unflatten(
        [rounded(x, jax.random.fold_in(key, i)) for i, x in enumerate(leaves)]
    )


def on_device(tree: Tree) -> Tree:
    """Traced arrays that lie in the host's memory brought to the device; the others as they are."""
    host = lambda x: (
        isinstance(x, jax.core.Tracer) and jax.typeof(x).memory_space == jax.memory.Space.Host
    )
    return jax.tree.map(
        lambda x: jax.device_put(x, jax.memory.Space.Device) if host(x) else x, tree
    )


def to_float32(tree: Tree) -> Tree:
    """bfloat16 leaves as fp32, the others as they are."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, tree)


def kept_in_bfloat16(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same transformation, its moments kept in bfloat16 between updates; the count in its state seeds the rounding."""

    def store(state):
        count = next(x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.integer))
        return to_bfloat16(state, jax.random.fold_in(jax.random.key(0), count))

    def update(updates, state, params=None):
        updates, state = inner.update(updates, to_float32(state), params)
        return updates, store(state)

    return optax.GradientTransformation(lambda params: store(inner.init(params)), update)


def factored_axes(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]] | None:
    """(axis of the rows, axes of the columns) of a matrix; a first axis of layers is kept; None for what is kept whole."""
    row = 1 if len(shape) > 2 else 0
    columns = tuple(range(row + 1, len(shape)))
    if not columns or min(shape[row], math.prod(shape[i] for i in columns)) < FACTORED_FROM:
        return None
    return row, columns


def scale_by_factored_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam whose second moment of a matrix is v_ij = r_i c_j / mean(r), r and c the moving means of g^2 over columns and over
    rows (Adafactor, Shazeer & Stern 2018, with Adam's b2, bias correction and eps); the first is kept in bfloat16, rounded at
    random. Right where the g^2 of a matrix are an outer product; small matrices, and vectors, keep theirs whole.
    """

    def squares(g):
        axes = factored_axes(g.shape)
        return (
            g * g
            if axes is None
            else {"row": jnp.mean(g * g, axes[1]), "col": jnp.mean(g * g, axes[0])}
        )

    def second(v, g):
        if not isinstance(v, dict):
            return v
        row, columns = factored_axes(g.shape)
        scale = v["row"] / jnp.maximum(jnp.mean(v["row"], row, keepdims=True), 1e-30)
        return jnp.expand_dims(scale, columns) * jnp.expand_dims(v["col"], row)

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(
            jnp.int32(0), to_bfloat16(zeros, jax.random.key(0)), jax.tree.map(squares, zeros)
        )

    def update(updates, state, params=None):
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: b1 * m.astype(jnp.float32) + (1 - b1) * g, state.mu, updates)
        v_tree = jax.tree.map(
            lambda g, v: jax.tree.map(lambda v, s: b2 * v + (1 - b2) * s, v, squares(g)),
            updates,
            state.nu,
        )
        scaled = jax.tree.map(
            lambda g, m, v: m / (1 - b1**count) / (jnp.sqrt(second(v, g) / (1 - b2**count)) + eps),
            updates,
            mu,
            v_tree,
        )
        return scaled, optax.ScaleByAdamState(
            count, to_bfloat16(mu, jax.random.fold_in(jax.random.key(0), count)), v_tree
        )

    return optax.GradientTransformation(init, update)


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
    return state, norms | {"update/skipped": 1.0 - finite.astype(jnp.float32)}
