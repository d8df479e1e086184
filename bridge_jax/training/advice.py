"""Warnings at the start of a run: unread settings, unfitting schedules, penalised right answers.

Unread settings are warned about where the user set them himself, on the command line: a config file
may set what only some of its methods read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from ml_collections import ConfigDict

from bridge_jax import methods
from bridge_jax.config import schema
from bridge_jax.config.schedule import Schedule
from bridge_jax.optim import Recipe, schedule_warnings
from bridge_jax.training.settings import Batch, Data, Model, Rollout, Settings, logger
from bridge_jax.types import Method, Task


def warn_other_methods(group: ConfigDict, given: Collection[str] | None = None) -> None:
    """Warns of changed settings in the config groups of methods that were not chosen.

    group: config.method. given: keys such as "method.bridge.lam" that the user set; None: all.
    """
    for other in sorted(set(group) & set(methods.names()) - {group.name}):
        for key, (value, _) in schema.diff(group[other], methods.defaults(other)).items():
            place = f"method.{other}.{key}"
            if value != schema.NOT_SET and (given is None or place in given):
                logger.warning("%s=%r is set, but the method is %r", place, value, group.name)


def warn_unread(
    s: Settings, method: Method, adapter: bool, given: Collection[str] | None = None
) -> None:
    """Warns of changed settings that neither the method nor the chosen schedule reads.

    adapter: whether the method trains one. given: keys that the user set; None: all.
    """
    # (group, values, defaults, unread keys)
    candidates = []
    for label in trained_labels(s, adapter):
        recipe = getattr(s.recipes, label)
        if recipe.schedule == "constant":
            candidates.append((f"optim.{label}", recipe, Recipe(), ["end_ratio", "decay_steps"]))
    default = type(s.method)()
    for field in dataclasses.fields(s.method):
        schedule = getattr(s.method, field.name)
        if isinstance(schedule, Schedule):
            group = f"method.{s.method_name}.{field.name}"
            candidates.append((group, schedule, getattr(default, field.name), schedule.unread()))
    if not adapter:
        candidates += [
            (
                "optim.lora",
                s.recipes.lora,
                Recipe(),
                [field.name for field in dataclasses.fields(Recipe)],
            ),
            ("model", s.model, Model(), ["lora_rank", "lora_alpha", "lora_targets"]),
        ]
    if s.train == "w":
        every_key = [field.name for field in dataclasses.fields(Recipe)]
        candidates.append(("optim.base", s.recipes.base, Recipe(), every_key))
    if not method.sampling_policies:
        candidates += [
            ("rollout", s.rollout, Rollout(), ["temperature", "reward_noise", "calls"]),
            ("batch", s.batch, Batch(), ["prompts_per_step", "samples_per_prompt"]),
        ]
    if not method.demos:
        candidates += [
            ("batch", s.batch, Batch(), ["demos_per_step"]),
            ("data", s.data, Data(), ["max_demo"]),
        ]
    unread = [
        f"{group}.{key}={getattr(values, key)!r}"
        for group, values, defaults, keys in candidates
        for key in keys
        if getattr(values, key) != getattr(defaults, key)
        and (given is None or f"{group}.{key}" in given)
    ]
    if unread:
        logger.warning(
            "set, but method %r never reads with these settings: %s",
            s.method_name,
            ", ".join(unread),
        )


def trained_labels(s: Settings, adapter: bool) -> tuple[str, ...]:
    """The optimizer's labels of what is trained; adapter: whether w is."""
    return ("lora",) if s.train == "w" else ("base", "lora")[: 1 + adapter]


OVERLONG_ROWS = 200  # number of demonstrations whose length is measured
OVERLONG_SHARE = 0.05


def warn_overlong(s: Settings, task: Task, tokenizer) -> None:
    """Warns if a method's length penalty (overlong_buffer) affects the task's own solutions."""
    buffer, T = getattr(s.method, "overlong_buffer", 0.0), s.rollout.max_new
    rows = [problem.solution for problem in task.demos if problem.solution][:OVERLONG_ROWS]
    if not buffer or not rows:
        return
    # the end-of-sequence token counts, and no sample is longer than T
    lengths = [min(T, len(tokenizer.encode(text)) + 1) for text in rows]
    free_length = (1.0 - buffer) * T
    share = sum(length > free_length for length in lengths) / len(lengths)
    if share > OVERLONG_SHARE:
        logger.warning(
            "method.%s.overlong_buffer=%g takes reward off completions longer than %g of %d "
            "tokens; %.0f%% of the task's worked solutions are: set it to at most %.3g, or raise "
            "rollout.max_new",
            s.method_name,
            buffer,
            free_length,
            T,
            100 * share,
            max(0.0, 1.0 - max(lengths) / T),
        )


def warn_schedules(s: Settings, method: Method, adapter: bool) -> None:
    """Warns of schedules that end with a learning rate of 0 before the run, or last longer than it.

    The further steps of a run that is extended beyond its schedule would otherwise change nothing.
    """
    starts = sorted({0, *(step for step in method.restarts if step < s.steps), s.steps})
    longest = max(end - start for start, end in zip(starts, starts[1:]))
    for label in trained_labels(s, adapter):
        for sentence in schedule_warnings(getattr(s.recipes, label), longest):
            logger.warning("optim.%s: %s", label, sentence)
    for key, step in method.milestones.items():
        if step > s.steps:
            logger.warning(
                "%s: takes until step %d, and the run ends with step %d", key, step, s.steps
            )
