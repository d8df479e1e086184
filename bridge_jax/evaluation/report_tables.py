"""Tables and curves of a report on groups of runs: figures, differences, configs, notes."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math

import numpy as np

from bridge_jax.config import schema
from bridge_jax.evaluation import comparison, intervals, markdown
from bridge_jax.evaluation.comparison import BUDGETS, Run
from bridge_jax.evaluation.intervals import Interval

# metrics with curves, in addition to the one that is compared
METRICS = (
    "reward/mean",
    "reward/outcome_correct",
    "rollout/length",
    "rollout/entropy",
    "sft/logp",
    "grad/cos_sft_rl",
    "grad/inner_sft_rl",
    "grad/norm_ratio_sft_rl",
    "bridge/gain",
    "bridge/ess",
    "bridge/kl_hat",
    "measured_gain/gain",
    "eval/demo_logp",
    "eval/touched_accuracy",
    "eval/untouched_accuracy",
    "eval/dev_accuracy",
)
# key of a figure, or of the last metrics -> its column
COLUMNS = {
    "final": "accuracy, final",
    "base": "before training",
    "steps": "steps",
    "seeds": "seeds",
    "budget/generated_tokens": "generated tokens",
    "budget/demo_tokens": "demo tokens",
    "budget/flops": "model FLOPs",
    "time/wall_s": "wall s",
    "time/device_s": "sampling and updating s",
    "memory/host_peak_gib": "process peak GiB",
    "memory/device_peak_gib": "device GiB",
}
# of large numbers, up to the model FLOPs of the largest runs
UNITS = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
TEX = {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}"} | {c: f"\\{c}" for c in "_%&#${}"}


def shown(value: float) -> str:
    """A number with four digits, thousands as 12.3k."""
    if value is None or math.isnan(value):
        return "-"
    if abs(value) >= 1e4:
        size, unit = next((size, unit) for size, unit in UNITS if abs(value) >= size)
        return f"{value / size:.3g}{unit}"
    return f"{value:.4g}"


def with_interval(found: Interval) -> str:
    """mean [low, high], or the mean alone of one seed."""
    if math.isnan(found.mean):
        return "-"
    return f"{found.mean:.3f}" + (
        "" if math.isnan(found.low) else f" [{found.low:.3f}, {found.high:.3f}]"
    )


def rows_of(groups: dict[str, list[Run]], metric: str) -> list[list[str]]:
    """A line of the table for each group.

    "-" where a seed lacks the figure, or has not finished and so has no final one. Accuracies are
    those of the first and the last line only.
    """
    nothing, solved = Interval(math.nan, math.nan, math.nan, 0), solved_by(groups, metric)

    def over_seeds(group, key, lines=reversed):
        values = [next((line.get(key) for line in lines(run.lines)), None) for run in group]
        if None in values:
            return nothing
        return intervals.over_runs(values, comparison.is_share(key))

    def last(group, key):
        return over_seeds(group, key) if all(map(comparison.finished, group)) else nothing

    found = []
    for name, group in groups.items():
        final = last(group, metric)
        if name in solved and not math.isnan(final.mean):
            final = intervals.over_runs_and_problems(np.stack(list(solved[name].values())))
        cells = {
            "final": with_interval(final),
            "base": shown(over_seeds(group, metric, iter).mean),
            "steps": shown(over_seeds(group, "step").mean),
            "seeds": str(len(group)),
        }
        found.append([name, *(cells.get(key) or shown(last(group, key).mean) for key in COLUMNS)])
    return found


def tables(rows: list[list[str]]) -> dict[str, str]:
    """The table as Markdown, CSV and LaTeX."""
    head, out = ["method", *COLUMNS.values()], io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([head, *rows])
    tex = lambda cell: "".join(TEX.get(c, c) for c in cell)
    return {
        "md": markdown.grid(head, rows) + "\n",
        "csv": out.getvalue(),
        "tex": "\\begin{tabular}{l"
        + "r" * len(COLUMNS)
        + "}\n"
        + "\n".join(" & ".join(map(tex, row)) + " \\\\" for row in [head, *rows])
        + "\n\\end{tabular}\n",
    }


def curves(groups: dict[str, list[Run]], metric: str) -> dict:
    """metric -> budget -> group -> {x, mean, low, high, seeds}; numbers with four digits.

    seeds: the curve of each seed where they are too few for an interval.
    """
    short = lambda values: [None if math.isnan(v) else float(f"{v:.4g}") for v in values]
    found: dict = {}
    for key in dict.fromkeys((metric, *METRICS)):
        for budget in BUDGETS:
            for name, group in groups.items():
                made = comparison.curve(group, key, budget)
                if made is not None:
                    found.setdefault(key, {}).setdefault(budget, {})[name] = {
                        "x": short(made.x),
                        "mean": short(made.mean),
                        "low": short(made.low),
                        "high": short(made.high),
                        "seeds": [short(row) for row in made.runs]
                        if 1 < len(made.runs) < intervals.BAND_RUNS
                        else [],
                    }
    return found


def solved_by(groups: dict[str, list[Run]], metric: str) -> dict[str, dict[tuple, np.ndarray]]:
    """Seed -> scores [problems], of groups whose seeds have all finished and recorded their scores.

    A key is (seed, how many runs of the group before this one have this seed).
    """
    split, found = metric.removeprefix("eval/").removesuffix("_accuracy"), {}
    for name, group in groups.items():
        rows = [run.solved.get(split) for run in group if comparison.finished(run)]
        seeds = [run.config.get("seed") for run in group]
        if (
            len(rows) == len(group)
            and all(row is not None for row in rows)
            and len({len(row) for row in rows}) == 1
        ):
            keys = [(seed, seeds[:i].count(seed)) for i, seed in enumerate(seeds)]
            found[name] = dict(zip(keys, rows))
    return found


def differences(groups: dict[str, list[Run]], metric: str) -> list[list[str]]:
    """Every pair of groups: first, second, difference with its interval; best first.

    With one seed the interval is over problems alone, for these runs, and is marked so.
    """
    solved = solved_by(groups, metric)
    mean = {name: np.mean(list(rows.values()), axis=0) for name, rows in solved.items()}
    order = sorted(solved, key=lambda name: -mean[name].mean())
    found = []
    for first, second in itertools.combinations(order, 2):
        tasks = {
            comparison.eval_key(run, metric) for name in (first, second) for run in groups[name]
        }
        if len(tasks) > 1 or len(mean[first]) != len(mean[second]):
            found.append([first, second, "-", "not the same problems"])
            continue
        one_seed = min(len(solved[first]), len(solved[second])) < 2
        made = (
            intervals.difference_of_models(mean[first], mean[second])
            if one_seed
            else intervals.difference(solved[first], solved[second])
        )
        marks = ["not distinguishable"] * (made.low <= 0 <= made.high)
        marks += ["of one seed: the spread of seeds is not in it"] * one_seed
        found.append([first, second, signed(made), "; ".join(marks)])
    return found


def signed(found: Interval) -> str:
    """+difference [low, high], or the difference alone where it has no interval."""
    bounds = "" if math.isnan(found.low) else f" [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{found.mean:+.3f}{bounds}"


def config_differences(groups: dict[str, list[Run]]) -> list[list[str]]:
    """A line for each key in which the groups differ: key, then the value of each group."""
    flat = [schema.flatten(schema.to_json(group[0].config)) for group in groups.values()]
    keys = sorted({key for one in flat for key in one if key != "seed"})
    differing = [key for key in keys if len({json.dumps(one.get(key)) for one in flat}) > 1]
    return [
        [key, *(json.dumps(one[key]) if key in one else "(not set)" for one in flat)]
        for key in differing
    ]


def notes(groups: dict[str, list[Run]], metric: str) -> list[str]:
    """Notes at the top of the page, in addition to those of `comparison.not_started`."""
    known = solved_by(groups, metric)
    missing = [name for name in groups if name not in known] if len(groups) > 1 else []
    found = comparison.notes(groups, metric)
    if missing:
        found.append(
            "not among the differences, since a seed has not finished or does not say which "
            f"problems it solved: {', '.join(missing)}"
        )
    return found
