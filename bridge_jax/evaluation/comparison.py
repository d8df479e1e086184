"""Comparison of runs: groups that differ only in their seed, and curves over budgets.

A mean is over all seeds of a group, or there is none: `notes` names the runs that lack a metric.
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

from bridge_jax.config import renamed, schema
from bridge_jax.evaluation import intervals
from bridge_jax.filesystem import textfile
from bridge_jax.rundir import logbook

BUDGETS = {
    "step": "steps",
    "budget/generated_tokens": "generated tokens",
    "budget/demo_tokens": "demo tokens",
    "budget/gradient_tokens": "gradient tokens",
    "budget/flops": "model FLOPs",
    "time/wall_s": "wall seconds of training",
    "time/cpu_s": "processor seconds of training",
    "time/device_s": "seconds of sampling and updating",
}
# keys, and groups of keys, in which the runs of one group may differ; eval.limit is an exception
IGNORED_FOR_GROUPING = ("seed", "checkpoint.", "log.", "eval.")
# metrics that are shares
SHARES = re.compile(
    r"eval/.*_(accuracy|lenient|stopped|no_answer)|reward/.*|rollout/stopped|"
    r"bridge/(ess|reward_hat)"
)
# of a curve
POINTS = 50
# files by which a run directory is recognised
RUN = ("config.json", "metrics.jsonl")
NOT_SET = "not set"


class Run(NamedTuple):
    """The records of a run directory."""

    folder: str
    config: dict
    # of metrics.jsonl
    lines: list[dict]
    # split -> share of each problem's answers that are right, at the last evaluation
    solved: dict[str, np.ndarray]
    # fingerprints of the data, of config.json
    fingerprints: dict = {}
    # keys of the config that are not at their default
    changed: tuple[str, ...] = ()


class Curve(NamedTuple):
    """Mean over seeds at points of a budget; the interval is nan for fewer than BAND_RUNS seeds."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    # [seeds, points]
    runs: np.ndarray


def find(patterns: str) -> list[str]:
    """Run directories of the comma-separated globs; ValueError for a glob that names none."""
    found = set()
    for pattern in patterns.split(","):
        there = {
            path
            for path in glob.glob(pattern)
            if any(os.path.exists(os.path.join(path, name)) for name in RUN)
        }
        if not there:
            raise ValueError(
                f"--runs={pattern}: no run directory (with config.json and metrics.jsonl) there; "
                "a glob such as 'runs/sweep/*' names several"
            )
        found |= there
    return sorted(found)


def skipped(patterns: str) -> list[str]:
    """A note on what the globs name besides run directories: logs, pictures, pages; or none."""
    there = {path for pattern in patterns.split(",") for path in glob.glob(pattern)}
    is_run = lambda path: any(
        os.path.exists(os.path.join(path, name)) for name in (*RUN, "checkpoints")
    )
    names = sorted(os.path.basename(path.rstrip("/")) for path in there if not is_run(path))
    return [f"skipped, since they are no run directories: {', '.join(names)}"] if names else []


def not_started(patterns: str) -> list[str]:
    """A note for each directory of the globs whose run ended before it wrote its config."""
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
        record = renamed.record(json.loads(textfile.read(path)))
        config = record["config"]
        schema.flatten(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}); leave this directory out") from None
    answers = lambda key: config["eval"]["samples"] if key.endswith("_sampled") else 1
    solved = {
        key: np.array([int(digit) for digit in digits]) / answers(key)
        for key, digits in logbook.read_solved(folder).items()
    }
    lines = logbook.read(folder) if os.path.exists(os.path.join(folder, "metrics.jsonl")) else []
    return Run(folder, config, lines, solved, record["fingerprints"], tuple(record["diff"]))


def finished(run: Run) -> bool:
    """Whether the run has taken its last step."""
    return bool(run.lines) and run.lines[-1]["step"] >= run.config.get("steps", 0)


def eval_key(run: Run, metric: str) -> str:
    """The settings that must be equal for the metric of two runs to be comparable, as JSON.

    It is the task and, for an accuracy, the problems of the split.
    """
    task = {
        key: value
        for key, value in run.config.get("task", {}).items()
        if key in ("name", "levels", "eval_size", "held_out", "style")
    }
    split = metric.removeprefix("eval/").removesuffix("_accuracy").removesuffix("_sampled")
    problems = {
        "problems": run.fingerprints.get("rows", {}).get(split),
        "limit": run.config.get("eval", {}).get("limit", 0),
    }
    return json.dumps(
        task | {key: value for key, value in problems.items() if value}, sort_keys=True
    )


def ignored_for_grouping(key: str) -> bool:
    """Whether runs of one group may differ in the key: it changes neither training nor problems."""
    return key.startswith(IGNORED_FOR_GROUPING) and key != "eval.limit"


def grouped(runs: list[Run]) -> dict[str, list[Run]]:
    """Name -> runs that differ only in their seed.

    A name is the method, and the settings in which groups of this method differ.
    """
    keys = decisive_keys(runs)
    settings = [grouping_settings(run, keys) for run in runs]
    groups: dict[str, list[int]] = {}
    for place, one in enumerate(settings):
        groups.setdefault(json.dumps(one, sort_keys=True), []).append(place)
    firsts = [places[0] for places in groups.values()]
    named: dict[str, list[Run]] = {}
    for places in groups.values():
        run, method = runs[places[0]], method_of(runs[places[0]])
        same_method = [settings[first] for first in firsts if method_of(runs[first]) == method]
        name = group_name(method, run, settings[places[0]], same_method)
        named[name] = [runs[place] for place in places]
    return named


def method_of(run: Run) -> str:
    """Name of the run's method."""
    return run.config.get("method", {}).get("name", "?")


def decisive_keys(runs: list[Run]) -> set[str]:
    """Keys of the config that can tell groups apart.

    A key that some runs lack, since it was added later, is not among them where all other runs have
    it at its default.
    """
    values = collections.defaultdict(set)
    for run in runs:
        for key, value in schema.flatten(run.config).items():
            values[key].add(json.dumps(value))
    everywhere = set.intersection(*(set(schema.flatten(run.config)) for run in runs), set(values))
    return {
        key
        for key in values
        if not ignored_for_grouping(key)
        and (key in everywhere or len(values[key]) > 1 or any(key in run.changed for run in runs))
    }


def grouping_settings(run: Run, keys: set[str]) -> dict:
    """The run's values of the keys; 1 and 1.0 are the same setting."""
    number = lambda value: float(value) if type(value) is int else value
    return {key: number(value) for key, value in schema.flatten(run.config).items() if key in keys}


def group_name(method: str, run: Run, settings: dict, same_method: list[dict]) -> str:
    """The method, and the settings of the run that other groups of the method do not share."""
    differs = sorted(
        {
            key
            for other in same_method
            for key in {*other, *settings}
            if other.get(key, NOT_SET) != settings.get(key, NOT_SET)
        }
    )
    flat = schema.flatten(run.config)
    described = ", ".join(f"{key.split('.', 1)[-1]}={flat.get(key, NOT_SET)}" for key in differs)
    return f"{method} ({described})" if described else method


def notes(groups: dict[str, list[Run]], metric: str) -> list[str]:
    """A line for each thing that a reader must know before comparing."""
    found = []
    tasks = {eval_key(run, metric) for group in groups.values() for run in group}
    if len(tasks) > 1:
        found.append(
            f"these runs are judged by {len(tasks)} different tasks, and must not be compared: "
            f"{'; '.join(sorted(tasks))}"
        )
    if single := [name for name, group in groups.items() if len(group) == 1]:
        found.append(f"one seed, hence no interval: {', '.join(single)}")
    for name, group in groups.items():
        seeds = [run.config.get("seed") for run in group]
        if len(set(seeds)) < len(seeds):
            found.append(
                f"{name}: seeds {sorted(seeds, key=str)} are not distinct; the interval is too "
                "narrow"
            )
        for run in group:
            if not finished(run):
                step = run.lines[-1]["step"] if run.lines else 0
                found.append(
                    f"{run.folder}: at step {step} of {run.config.get('steps')}, not finished; "
                    f"{name} has no final value"
                )
            if run.config.get("seed") is None:
                found.append(f"{run.folder}: its config names no seed")
            if not any(line.get(metric) is not None for line in run.lines):
                found.append(f"{run.folder}: no {metric}; {name} has no mean of it")
    return found


def series(run: Run, metric: str, budget: str) -> tuple[np.ndarray, np.ndarray]:
    """Points (budget, metric) of the lines that have the metric; a budget not in a line is 0."""
    pairs = [
        (line.get(budget) or 0.0, value)
        for line in run.lines
        if (value := line.get(metric)) is not None
    ]
    x, y = np.array(pairs, float).reshape(-1, 2).T
    return x, y


def is_share(metric: str) -> bool:
    """Whether the metric is a share, with values in [0, 1]."""
    return SHARES.fullmatch(metric) is not None


def curve(group: list[Run], metric: str, budget: str) -> Curve | None:
    """The metric at up to POINTS budgets that all seeds reached; None if a seed lacks it.

    Values between two lines are interpolated linearly. A metric with far more lines than POINTS is
    smoothed: each value is the mean over half a grid step on either side.
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
    return Curve(grid, *bounds, rows)


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
