"""What the commands left: scores of each problem, tables' figures, records of the trainings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bridge_jax.evaluation import comparison, intervals
from bridge_jax.evaluation.comparison import Run
from bridge_jax.evaluation.scores import GREEDY, Score, average, problems_score
from bridge_jax.filesystem import files
from bridge_jax.grading.outcome import Outcome
from bridge_jax.rundir import layout, logbook
from experiments.reproduce.request import Request
from experiments.reproduce.variants import Variant, evaluation_folder, run_folder


class Entry(NamedTuple):
    """One line of the tables: a variant, with what there is of it, by seed."""

    variant: Variant
    # seed -> benchmark -> score of each problem, in one order for all entries
    greedy: dict[int, dict[str, np.ndarray]]
    # seed -> kind (avg@8, pass@32) -> benchmark -> metrics of results.json
    sampled: dict[int, dict[str, dict]]
    # of the greedy answers: seed -> benchmark -> lengths and outcomes
    answers: dict[int, dict[str, dict]]
    runs: list[Run]


def read_json(path: Path) -> dict:
    """The object in a file; {} where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def diverged(folder: Path) -> bool:
    """Whether a run ended since its last updates were not finite: as many as log.skipped_limit."""
    try:
        lines = logbook.read(str(folder))
        limit = layout.read_config(str(folder))["config"]["log"]["skipped_limit"]
    # no run, or one that has only begun
    except (OSError, ValueError, KeyError):
        return False
    last = lines[-limit:]
    return len(last) == limit and all(line.get("update/skipped") for line in last)


def greedy_scores(folder: Path, task: str) -> np.ndarray | None:
    """1 or 0 for each problem, ordered by id; None where there is no result.

    A problem that was not asked, since its prompt was too long, counts 0, as in results.json; it is
    put at the end, which is the same for every model with the same tokenizer.
    """
    part = read_json(folder / "results.json").get("benchmarks", {}).get(task)
    path = folder / f"{task.replace('/', '.')}.jsonl"
    if part is None or not path.exists():
        return None
    right = {
        row["id"]: float(row["outcome"] == Outcome.correct)
        for _, row in files.rows(path)
        if row["sample"] == GREEDY
    }
    values = [right[key] for key in sorted(right)]
    return np.array(values + [0.0] * (part["n"] - len(values)))


def read_entry(request: Request, variant: Variant, kinds: list[str]) -> Entry:
    """Everything that is there of a variant."""
    entry = Entry(variant, {}, {}, {}, [])
    for seed in request.seeds if variant.method != "base" else request.seeds[:1]:
        folder = evaluation_folder(request, variant, seed)
        found = {task: greedy_scores(folder, task) for task in request.tasks}
        if all(scores is not None for scores in found.values()):
            entry.greedy[seed] = found
            parts = read_json(folder / "results.json")["benchmarks"]
            entry.answers[seed] = {
                task: parts[task]["lengths_and_outcomes"]["greedy"] for task in request.tasks
            }
        entry.sampled[seed] = {
            kind: read_json(evaluation_folder(request, variant, seed, kind) / "results.json").get(
                "benchmarks", {}
            )
            for kind in kinds
        }
        run = run_folder(request, variant, seed)
        if variant.method != "base" and (run / "config.json").exists():
            entry.runs.append(comparison.load(str(run)))
    return entry


def score(entry: Entry, task: str) -> Score | None:
    """Greedy pass@1 of a benchmark: over problems, or over seeds and problems; None without one."""
    rows = [by_task[task] for by_task in entry.greedy.values()]
    if not rows:
        return None
    if len(rows) == 1:
        return problems_score(rows[0])
    found = intervals.over_runs_and_problems(np.stack(rows))
    return Score(found.mean, interval=(found.low, found.high))


def mean_score(request: Request, entry: Entry) -> Score | None:
    """The average over the benchmarks."""
    found = [score(entry, task) for task in request.tasks]
    return None if None in found else average(found)


def difference(first: Entry, second: Entry, task: str) -> intervals.Interval | None:
    """The first's score less the second's, paired over problems; None where one is missing."""
    sides = [
        {seed: by_task[task] for seed, by_task in entry.greedy.items()} for entry in (first, second)
    ]
    if not all(sides):
        return None
    if min(map(len, sides)) > 1:
        return intervals.difference(*sides)
    means = [np.mean(list(side.values()), axis=0) for side in sides]
    return intervals.difference_of_models(*means)


def mean_difference(request: Request, first: Entry, second: Entry) -> intervals.Interval | None:
    """The difference of the averages; the benchmarks' problems are independent of each other."""
    found = [difference(first, second, task) for task in request.tasks]
    if None in found:
        return None
    mean = average([Score(one.mean, interval=(one.low, one.high)) for one in found])
    low, high = mean.interval
    return intervals.Interval(mean.value, low, high, sum(one.n for one in found))


def sign_test(request: Request, first: Entry, second: Entry) -> tuple[int, int, float, int] | None:
    """Problems that only the first solved, only the second; exact two-sided p (McNemar); the seed.

    Over all benchmarks' problems together, by the models of the first seed that both have; the base
    model is of every seed. None where they have none in common.
    """
    from scipy import stats

    seeds = (second if first.variant.method == "base" else first).greedy
    for seed in seeds:
        ours, theirs = of_seed(first, seed), of_seed(second, seed)
        if ours is None or theirs is None:
            continue
        gap = np.concatenate([ours[task] - theirs[task] for task in request.tasks])
        won, lost = int((gap > 0).sum()), int((gap < 0).sum())
        p = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
        return won, lost, float(p), seed
    return None


def of_seed(entry: Entry, seed: int) -> dict[str, np.ndarray] | None:
    """The greedy scores of a seed's model; the base model has no seed of its own."""
    if entry.variant.method == "base":
        return next(iter(entry.greedy.values()), None)
    return entry.greedy.get(seed)


def entries(request: Request, every: list[Variant], kinds: list[str]) -> list[Entry]:
    """A line of the tables for each variant."""
    return [read_entry(request, variant, kinds) for variant in every]
