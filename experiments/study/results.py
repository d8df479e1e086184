"""The results of the study: finished runs by base, variant and seed, their scores, the rates
chosen.

Every finished run is a line of docs/study/results/STAGE_BASE.jsonl (experiments.sweep writes it).
"""

from __future__ import annotations

import pathlib

import numpy as np

from bridge_jax.config import renamed
from bridge_jax.evaluation import intervals
from bridge_jax.evaluation.intervals import Interval
from bridge_jax.filesystem import files
from configs.ladder import get_config
from configs.sweeps import ladder

GREEDY, SAMPLED = "eval/held_out_accuracy", "eval/held_out_sampled_accuracy"
METRICS = (GREEDY, SAMPLED)
# hash of the weights -> letter in docs/study.md, E: the shipped one; others go by their hash
BASES = {
    "2ff9e7f2dd4d": "A",
    "278f2a140599": "B",
    "f8d52236e23f": "C",
    "c9f215d034f2": "D",
    "b4660cb363cc": "E",
    "cd340b6fe2c3": "SmolLM2",
}
# variant -> seed -> its line of the results
Results = dict[str, dict[int, dict]]


def read(folder: pathlib.Path) -> dict[str, Results]:
    """Base -> its finished runs of all stages; the bases of BASES come first.

    Of two lines of one variant and seed the later one counts.
    """
    found: dict[str, Results] = {base: {} for base in BASES.values()}
    for path in sorted(folder.glob("*.jsonl")):
        for _, row in files.rows(path):
            rows = found.setdefault(BASES.get(row["weights"], row["weights"]), {})
            row["curve"] = [renamed.metrics(point) for point in row["curve"]]
            rows.setdefault(row["variant"], {})[row["seed"]] = row
    return {base: rows for base, rows in found.items() if rows}


def plain(rows: Results) -> list[str]:
    """Variants of the main sweep. The names of other stages' variants contain "@", "+" or "/"."""
    return [name for name in rows if not set(name) & set("@+/")]


def final(runs: dict[int, dict], metric: str) -> list[float]:
    """The metric at the end of the run of each seed; ValueError where a seed lacks it."""
    lacking = [row["name"] for row in runs.values() if metric not in row["curve"][-1]]
    if lacking:
        raise ValueError(
            f"{metric} is missing in {', '.join(lacking)}; remove these lines and run their sweep "
            "again"
        )
    return [row["curve"][-1][metric] for row in runs.values()]


def solved(runs: dict[int, dict], metric: str) -> np.ndarray:
    """[seeds, problems]: share of right answers to each held-out problem at the end."""
    if metric == GREEDY:
        return np.array(
            [
                [int(bit) for bit in f"{int(row['solved']['held_out'], 16):b}"[1:]]
                for row in runs.values()
            ],
            float,
        )
    counts = np.array(
        [[int(digit) for digit in row["solved"]["held_out_sampled"]] for row in runs.values()],
        float,
    )
    return counts / get_config().eval.samples


def dev(runs: dict[int, dict]) -> list[float]:
    """Greedy and sampled accuracy on the dev split, each the mean over seeds."""
    return [float(np.mean(final(runs, f"eval/dev{kind}_accuracy"))) for kind in ("", "_sampled")]


def choose(rows: Results) -> dict[str, tuple[float, float]]:
    """(alpha, beta / alpha) of each variant whose whole grid has run.

    The best is the one with the highest mean of greedy and sampled accuracy on dev.
    """
    grids = {name: ladder.grid(name) for name in ladder.METHODS}
    best = lambda grid: grid[max(grid, key=lambda setting: sum(dev(rows[setting])))]
    return {name: best(grid) for name, grid in grids.items() if set(grid) <= set(rows)}


def tuned(bases: dict[str, Results]) -> dict[str, tuple[float, float]]:
    """The rates of each variant, chosen on the last base on which its whole grid has run.

    The study goes on from that base.
    """
    chosen = {name: rates for rows in bases.values() for name, rates in choose(rows).items()}
    return {name: chosen[name] for name in ladder.METHODS if name in chosen}


def accuracy(runs: dict[int, dict], metric: str) -> Interval:
    """Accuracy of a variant, over seeds and problems; ValueError where a seed lacks the metric."""
    final(runs, metric)
    return intervals.over_runs_and_problems(solved(runs, metric))


def difference(rows: Results, first: str, second: str, metric: str) -> Interval:
    """first - second, over seeds and problems."""
    sides = [dict(zip(rows[name], solved(rows[name], metric))) for name in (first, second)]
    return intervals.difference(*sides)


def of_base(rows: Results, metric: str) -> float:
    """The metric of the base model, before the first step.

    Every run begins with the same weights, but each seed draws samples of its own.
    """
    return float(
        np.mean([row["curve"][0][metric] for runs in rows.values() for row in runs.values()])
    )
