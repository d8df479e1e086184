"""Optimizers: two recipes for three labels, learning rates, and the guarded update of all methods.

alpha is the learning rate of the base recipe (theta, and theta_hat with an optimizer of its own),
beta that of the lora recipe (w). Each label clips by its OWN global norm: under a common norm a
large gradient of theta_hat would shrink theta's step. Directions are gradients of objectives to be
maximised; the only minus sign is in `apply_ascent`.

`Recipes.matrices`, from the model's tensor table, declares which parameters are matrices. The shape
does not tell: the norms of all layers are one array of two dimensions, as are their biases. Weight
decay applies to matrices alone, including embedding and head, as in Hugging Face's Trainer and in
nanoGPT. Factored moments take rows and columns from the same table.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bridge_jax.optim.in_place import update_if_finite
from bridge_jax.optim.moments import (
    MOMENTS,
    MatrixTable,
    matrix_of,
    scale_by_factored_adam,
    update_count,
    with_bfloat16_moments,
)
from bridge_jax.optim.schedules import interpolate
from bridge_jax.optim.shadow import Storage, on_device
from bridge_jax.types import Metrics, Params, TrainState, Tree

RATES = ("constant", "linear", "cosine")  # schedules of a learning rate


@dataclasses.dataclass(frozen=True)
class Recipe:
    """AdamW for one label."""

    learning_rate: float = 5e-7
    # constant, linear, cosine: from learning_rate to learning_rate * end_ratio
    schedule: str = "constant"
    end_ratio: float = 0.0
    warmup_steps: int = 0  # linear from 0
    decay_steps: int = 0  # length of the schedule after warm-up; needed unless constant
    clip_norm: float = 1.0  # global norm of this label's gradient; 0 turns it off
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    moments: str = "float32"  # storage of Adam's moments: a key of MOMENTS


def check_recipe(recipe: Recipe, group: str = "optim") -> None:
    """ValueError for an invalid setting; group: the recipe's name in the config, "optim.lora"."""
    for key in ("learning_rate", "end_ratio", "warmup_steps", "clip_norm", "weight_decay"):
        if not getattr(recipe, key) >= 0:
            raise ValueError(f"{group}.{key}={getattr(recipe, key)}; allowed: 0 or more")
    for key in ("b1", "b2"):
        if not 0 <= getattr(recipe, key) < 1:
            raise ValueError(f"{group}.{key}={getattr(recipe, key)}; allowed: from 0 to below 1")
    if not recipe.eps > 0:
        raise ValueError(f"{group}.eps={recipe.eps}; allowed: above 0")
    if recipe.schedule not in RATES:
        raise ValueError(f"{group}.schedule={recipe.schedule!r}; allowed: {', '.join(RATES)}")
    if recipe.moments not in MOMENTS:
        raise ValueError(f"{group}.moments={recipe.moments!r}; allowed: {', '.join(MOMENTS)}")
    if recipe.schedule != "constant" and np.float32(recipe.end_ratio) == 1:
        raise ValueError(
            f"{group}.end_ratio=1 with {group}.schedule={recipe.schedule!r} never leaves the "
            "learning rate; give another ratio, or schedule='constant'"
        )
    if recipe.schedule != "constant" and recipe.learning_rate and recipe.decay_steps < 1:
        raise ValueError(
            f"{group}.decay_steps={recipe.decay_steps} with {group}.schedule={recipe.schedule!r}; "
            "allowed: 1 or more"
        )


def learning_rate(recipe: Recipe, updates_per_step: int = 1, steps_per_update: int = 1) -> Callable:
    """update count -> learning rate: linear warm-up, then the recipe's schedule.

    updates_per_step: updates during one step of the schedule that has any; steps_per_update: steps
    from one that has updates to the next.
    """
    check_recipe(recipe)
    rate, end = recipe.learning_rate, recipe.learning_rate * recipe.end_ratio
    # a rate of 0, of a frozen part, is constant
    if recipe.schedule == "constant" or not rate:
        decayed_rate = lambda step: jnp.full((), rate, jnp.float32)
    else:
        decayed_rate = interpolate(recipe.schedule, rate, end, recipe.decay_steps)
    step_of = lambda count: count // updates_per_step * steps_per_update
    if not recipe.warmup_steps:
        return lambda count: decayed_rate(step_of(count))
    warmup_rate = lambda step: recipe.learning_rate * (step + 1) / recipe.warmup_steps
    rate_at = lambda step: jnp.where(
        step < recipe.warmup_steps, warmup_rate(step), decayed_rate(step - recipe.warmup_steps)
    )
    return lambda count: rate_at(step_of(count))


def schedule_warnings(recipe: Recipe, steps: int) -> list[str]:
    """Warnings about a schedule that does not fit this number of steps."""
    end, found = recipe.warmup_steps + recipe.decay_steps, []
    if recipe.learning_rate and recipe.warmup_steps > steps:
        found.append(
            f"warmup_steps={recipe.warmup_steps} is longer than the {steps} steps it trains for: "
            f"the rate never reaches learning_rate={recipe.learning_rate}"
        )
    if (
        recipe.learning_rate
        and recipe.schedule != "constant"
        and not recipe.end_ratio
        and end < steps
    ):
        found.append(
            f"the learning rate is 0 from step {end + 1} on (warmup_steps={recipe.warmup_steps} "
            f"and decay_steps={recipe.decay_steps}, of the {steps} steps it trains for): they "
            "change nothing; raise decay_steps, or end_ratio"
        )
    return found


def adamw(
    recipe: Recipe,
    updates_per_step: int = 1,
    steps_per_update: int = 1,
    matrices: MatrixTable | None = None,
) -> optax.GradientTransformation:
    """The optimizer of a recipe: clip, Adam, decoupled weight decay on matrices, learning rate.

    matrices: which parameters are matrices; needed for weight decay and for factored moments.
    """
    check_recipe(recipe)
    rate = learning_rate(recipe, updates_per_step, steps_per_update)
    clip = optax.clip_by_global_norm(recipe.clip_norm) if recipe.clip_norm else optax.identity()

    def decay_mask(tree: Tree) -> Tree:
        """Which leaves have weight decay."""
        decays = lambda path, x: recipe.weight_decay > 0 and matrix_of(matrices, path) is not None
        return jax.tree_util.tree_map_with_path(decays, tree)

    if recipe.moments == "factored":
        return optax.chain(
            clip,
            optax.chain(
                scale_by_factored_adam(recipe.b1, recipe.b2, recipe.eps, matrices),
                optax.add_decayed_weights(recipe.weight_decay, decay_mask),
                optax.scale_by_learning_rate(rate),
            ),
        )
    adam = optax.chain(
        clip,
        optax.adamw(
            rate,
            recipe.b1,
            recipe.b2,
            recipe.eps,
            weight_decay=recipe.weight_decay,
            mask=decay_mask,
        ),
    )
    return adam if recipe.moments == "float32" else with_bfloat16_moments(adam)


@dataclasses.dataclass(frozen=True)
class Recipes:
    """The recipes of a run; theta_hat has the base recipe with its own moments and updates.

    Schedules count steps of the run: all updates of a part in one step share a learning rate.
    """

    base: Recipe
    lora: Recipe
    shadow_moments: str = ""  # a key of MOMENTS; "": as in the base recipe
    base_updates: int = 1  # updates of theta per step
    shadow_updates: int = 1  # updates of theta_hat per step in which it learns
    shadow_every: int = 1  # steps from one in which theta_hat learns to the next
    matrices: MatrixTable | None = None  # paths in Params(theta, w); None: nothing is declared

    def recipe_of(self, label: str) -> tuple[Recipe, int, int]:
        """The recipe of a label, its updates per step, and its steps per update."""
        shadow = dataclasses.replace(self.base, moments=self.shadow_moments or self.base.moments)
        return {
            "base": (self.base, self.base_updates, 1),
            "shadow": (shadow, self.shadow_updates, self.shadow_every),
            "lora": (self.lora, 1, 1),
        }[label]

    def optimizer(self) -> optax.GradientTransformation:
        """One transformation over Params, partitioned by the labels base, shadow and lora."""
        parts = {label: adamw(*self.recipe_of(label), self.matrices) for label in LABELS.values()}
        return optax.multi_transform(parts, labels)


def init_train_state(recipes: Recipes, params: Params, ref=None) -> TrainState:
    """The state before the first step; ref: a frozen tree, copied because the state is donated."""
    ref = None if ref is None else jax.tree.map(jnp.copy, ref)
    return TrainState(jnp.int32(0), params, recipes.optimizer().init(params), ref)


LABELS = {"theta": "base", "theta_hat": "shadow", "w": "lora"}


def labels(params: Params) -> Params:
    """Params with the optimizer label of every leaf; None for a part that the method lacks."""
    name = lambda part: jax.tree.map(lambda _: LABELS[part], getattr(params, part))
    return Params(**{part: name(part) for part in LABELS})


def apply_ascent(
    recipes: Recipes, state: TrainState, ascent: Params, values=(), storage=Storage()
) -> tuple[TrainState, Metrics]:
    """Updates all parts of the parameters that have a direction, or none of them.

    ascent: gradients of the objective; a part with None, and its optimizer, stay unchanged. If a
    gradient norm or an entry of `values` (the objectives) is not finite, parameters and optimizer
    states stay unchanged, and update/skipped is 1. Each call adds 1 to state.step, also then, so
    that the next batch is a new one; a method that calls it several times in a step sets the step
    itself. Metrics: the norm of each direction before its clip, the learning rate of
    each updated label, update/skipped.
    """
    directions = {name: tree for name in LABELS if (tree := getattr(ascent, name)) is not None}
    norms = {f"grad/norm_{name}": optax.global_norm(tree) for name, tree in directions.items()}
    guarded = [jnp.asarray(x, jnp.float32) for x in (*norms.values(), *values)]
    finite = jnp.all(jnp.isfinite(jnp.stack(guarded)))
    all_inner = state.opt_state.inner_states
    moved = [LABELS[name] for name in directions]

    written = parts_written(directions, storage)
    storage = storage if set(written) & set(storage.stored_relative) else Storage()
    stored = (
        {name: getattr(state.params, name) for name in written},
        {label: all_inner[label] for label in moved},
    )
    update = functools.partial(_updated, recipes, state, directions, storage)
    parts, moments = update_if_finite(finite, update, on_device(stored))
    state = state.replace(
        step=state.step + 1,
        params=state.params.replace(**parts),
        opt_state=state.opt_state._replace(inner_states=all_inner | moments),
    )
    rates = {
        f"lr/{label}": learning_rate(*recipes.recipe_of(label))(update_count(all_inner[label]))
        for label in moved
    }
    return state, norms | rates | {"update/skipped": 1.0 - finite.astype(jnp.float32)}


def parts_written(directions: dict[str, Tree], storage: Storage) -> list[str]:
    """The parts with a direction; when theta moves, also those stored as theta's difference."""
    moves = lambda name: "theta" in directions and name in storage.stored_relative
    return [name for name in LABELS if name in directions or moves(name)]


def _updated(
    recipes: Recipes,
    state: TrainState,
    directions: dict[str, Tree],
    storage: Storage,
    stored: tuple[dict, dict],
) -> tuple[dict, dict]:
    """({part: as stored}, {label: optimizer state}) after the update, from the same before it.

    One optimizer covers all parts; those without a direction are zeros here, and cost nothing.
    """
    parts, moments = stored
    zeros_like = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
    unpacked = storage.read(state.params.replace(**parts))
    absent = {
        name: zeros_like(getattr(unpacked, name)) for name in LABELS if name not in directions
    }
    old = unpacked.replace(**absent)
    # optax descends: the one minus sign
    descent = old.replace(
        **{name: jax.tree.map(jnp.negative, tree) for name, tree in directions.items()}
    )
    unused = {label: zeros_like(inner) for label, inner in state.opt_state.inner_states.items()}
    updates, opt_state = recipes.optimizer().update(
        descent, state.opt_state._replace(inner_states=unused | moments), old
    )
    new = optax.apply_updates(old, updates)
    updated = {name: getattr(new, name) for name in directions}
    # of the rounding where theta_hat is stored in fewer bits
    key = jax.random.fold_in(jax.random.key("theta" in directions), state.step)
    new = storage.write(unpacked.replace(**updated), key)
    return (
        {name: getattr(new, name) for name in parts},
        {label: opt_state.inner_states[label] for label in moments},
    )
