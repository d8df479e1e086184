"""Runs beside each other: groups that differ in their seed alone, and curves against budgets.

A mean is over all seeds of a group or it is not there: what a run lacks is named in `notes`, never averaged around.
Intervals are those of intervals.py.
"""

from __future__ import annotations

import collections
import glob
import json
import os
import re
from typing import NamedTuple

import numpy as np

from bridge_jax.config import schema
from bridge_jax.evaluation import intervals
from bridge_jax.filesystem import textfile
from bridge_jax.rundir import logbook

BUDGETS = {
    "step": "steps",
    "budget/generated_tokens": "generated tokens",
    "budget/demo_tokens": "expert tokens",
    "budget/gradient_tokens": "gradient tokens",
    "budget/flops": "model FLOPs",
    "time/wall_s": "wall seconds of training",
    "time/cpu_s": "processor seconds of training",
    "time/device_s": "seconds of sampling and updating",
}
FREE = (
    "seed",
    "checkpoint.",
    "log.",
    "eval.",
)  # keys in which the runs of a group may differ, all but eval.limit
SHARES = re.compile(
    r"eval/.*_(accuracy|lenient|stopped|no_answer)|reward/.*|rollout/stopped|"
    r"bridge/(ess|reward_hat)"
)
POINTS = 50
RUN = ("config.json", "metrics.jsonl")  # files that a run directory is known by


class Run(NamedTuple):
    """A run directory as it stands."""

    folder: str
    config: dict
    lines: list[dict]
    solved: dict[
        str, np.ndarray
    ]  # split -> share of each problem's answers that are right, after the last evaluation
    facts: dict = {}  # of config.json: fingerprints of its problems
    changed: tuple[str, ...] = ()  # keys of the config that are not at their default


class Curve(NamedTuple):
    """Mean over seeds at the same points of a budget; its interval is nan for fewer than three."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int


def find(patterns: str) -> list[str]:
    """Run directories of the globs, comma-separated; ValueError for one that names none."""
    found = set()
    for pattern in patterns.split(","):
        there = {
            path
            for path in glob.glob(pattern)
            if any(os.path.exists(os.path.join(path, name)) for name in RUN)
        }
        if not there:
            raise ValueError(
                f"--runs={pattern}: no run directory (with config.json and metrics.jsonl) there; a glob such as "
                "'runs/sweep/*' names several"
            )
        found |= there
    return sorted(found)


def unborn(patterns: str) -> list[str]:
    """A note for each directory of the globs that a run was begun in and that tells nothing of it yet."""
    there = {path for pattern in patterns.split(",") for path in glob.glob(pattern)}
    has = lambda path, name: os.path.exists(os.path.join(path, name))
    return [
        f"{path}: a run was begun there and ended before it wrote down its config; not on this page"
        for path in sorted(there)
        if has(path, "checkpoints") and not any(has(path, name) for name in RUN)
    ]


def load(folder: str) -> Run:
    """The run of a directory; ValueError where it cannot be read."""
    path = os.path.join(folder, "config.json")
    try:
        record = json.loads(textfile.read(path))
        config = record["config"]
        schema.flatten(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}); leave this directory out") from None
    out_of = lambda key: config["eval"]["samples"] if key.endswith("_sampled") else 1
    solved = {
        key: np.array([int(digit) for digit in digits]) / out_of(key)
        for key, digits in logbook.read_solved(folder).items()
    }
    lines = logbook.read(folder) if os.path.exists(os.path.join(folder, "metrics.jsonl")) else []
    return Run(
        folder, config, lines, solved, record.get("facts", {}), tuple(record.get("diff", {}))
    )


def finished(run: Run) -> bool:
    """Whether it stands at its last step."""
    return bool(run.lines) and run.lines[-1]["step"] >= run.config.get("steps", 0)


def judged_by(run: Run, metric: str) -> str:
    """What must be equal for two runs to be judged alike: the task and, of an accuracy, the very problems."""
    task = {
        key: value
        for key, value in run.config.get("task", {}).items()
        if key in ("name", "levels", "eval_size", "held_out", "style")
    }
    split = metric.removeprefix("eval/").removesuffix("_accuracy").removesuffix("_sampled")
    problems = {
        "problems": run.facts.get("rows", {}).get(split),
        "limit": run.config.get("eval", {}).get("limit", 0),
    }
    return json.dumps(
        task | {key: value for key, value in problems.items() if value}, sort_keys=True
    )


def free(key: str) -> bool:
    """Whether the runs of a group may differ in it: it decides neither what is learned nor on which problems that is judged."""
    return key.startswith(FREE) and key != "eval.limit"


def grouped(runs: list[Run]) -> dict[str, list[Run]]:
    """Name -> runs that differ in nothing but their seed; the name tells the method and what it sets differently.

    A key that some of the runs do not know, since it came later, and that the others have at its default, makes no difference.
    """
    values = collections.defaultdict(set)
    for run in runs:
        for key, value in schema.flatten(run.config).items():
            values[key].add(json.dumps(value))
    everywhere = (
        set.intersection(*(set(schema.flatten(run.config)) for run in runs)) if runs else set()
    )
    told = {
        key
        for key in values
        if key in everywhere or len(values[key]) > 1 or any(key in run.changed for run in runs)
    }
    by_config: dict[str, list[Run]] = collections.OrderedDict()
    number = lambda value: (
        float(value) if type(value) is int else value
    )  # 1 and 1.0 are the same setting
    for run in runs:
        flat = {
            key: number(value)
            for key, value in schema.flatten(run.config).items()
            if key in told and not free(key)
        }
        by_config.setdefault(json.dumps(flat, sort_keys=True), []).append(run)
    flats = {key: schema.flatten(group[0].config) for key, group in by_config.items()}
    named: dict[str, list[Run]] = {}
    for key, group in by_config.items():
        method = flats[key].get("method.name", "?")
        twins = [flat for flat in flats.values() if flat.get("method.name") == method]
        differs = sorted(
            {
                name
                for flat in twins
                for name in {*flat, *flats[key]}
                if flat.get(name, "not set") != flats[key].get(name, "not set")
                and name in told
                and not free(name)
            }
        )
        words = ", ".join(
            f"{name.split('.', 1)[-1]}={flats[key].get(name, 'not set')}" for name in differs
        )
        named[f"{method} ({words})" if words else method] = group
    return named


def notes(groups: dict[str, list[Run]], metric: str) -> list[str]:
    """What a reader must know before comparing: one line each."""
    found = []
    tasks = {judged_by(run, metric) for group in groups.values() for run in group}
    if len(tasks) > 1:
        found.append(
            f"these runs are judged by {len(tasks)} different tasks, and must not be compared: "
            f"{'; '.join(sorted(tasks))}"
        )
    for name, group in groups.items():
        seeds = [run.config.get("seed") for run in group]
        if len(group) == 1:
            found.append(f"{name}: one seed, hence no interval")
        if len(set(seeds)) < len(seeds):
            found.append(
                f"{name}: seeds {sorted(seeds, key=str)} are not distinct; the interval is too narrow"
            )
        for run in group:
            if not finished(run):
                step = run.lines[-1]["step"] if run.lines else 0
                found.append(
                    f"{run.folder}: at step {step} of {run.config.get('steps')}, not finished; {name} ends nowhere"
                )
            if run.config.get("seed") is None:
                found.append(f"{run.folder}: its config names no seed")
            if not any(line.get(metric) is not None for line in run.lines):
                found.append(f"{run.folder}: no {metric}; {name} has no mean of it")
    return found


def series(run: Run, metric: str, budget: str) -> tuple[np.ndarray, np.ndarray]:
    """Points (budget, metric) of the lines that have the metric; a budget not spent yet is 0."""
    pairs = [
        (line.get(budget) or 0.0, value)
        for line in run.lines
        if (value := line.get(metric)) is not None
    ]
    x, y = np.array(pairs, float).reshape(-1, 2).T
    return x, y


def is_share(metric: str) -> bool:
    """Whether the metric is a share, and so lies in [0, 1]."""
    return SHARES.fullmatch(metric) is not None


def curve(group: list[Run], metric: str, budget: str) -> Curve | None:
    """The metric at POINTS values of the budget that all seeds reached, linear in between; None if a seed lacks it.

    Of a metric that has far more points, each is the mean of its neighbours, as many as lie half a grid step away.
    """
    found = [series(run, metric, budget) for run in group]
    if any(len(x) < 2 or x[-1] <= x[0] for x, _ in found):
        return None
    low, high = max(x[0] for x, _ in found), min(x[-1] for x, _ in found)
    count = min(POINTS, max(len(x) for x, _ in found))
    grid = np.linspace(low, high, count)
    rows = np.stack([np.interp(grid, x, smooth(y, len(x) // (2 * count))) for x, y in found])
    bounds = intervals.bands(rows, is_share(metric))
    if len(group) < intervals.BAND_RUNS:
        bounds = bounds._replace(low=bounds.mean * np.nan, high=bounds.mean * np.nan)
    return Curve(grid, *bounds, len(group))


def smooth(y: np.ndarray, reach: int) -> np.ndarray:
    """The mean of each value and its neighbours up to `reach` places away, fewer at the ends."""
    if reach < 1:
        return y
    total = np.concatenate([[0.0], np.cumsum(y)])
    low, high = (
        np.maximum(np.arange(len(y)) - reach, 0),
        np.minimum(np.arange(len(y)) + reach + 1, len(y)),
    )
    return (total[high] - total[low]) / (high - low)


def at_budget(run: Run, metric: str, budget: str, value: float) -> float:
    """The metric when so much was spent, linear between evaluations; nan before the first and beyond the last."""
    x, y = series(run, metric, budget)
    return float(np.interp(value, x, y)) if len(x) and x[0] <= value <= x[-1] else float("nan")
