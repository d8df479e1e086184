"""The tables of docs/study_appendix.md, each drawn from the runs from one base model."""

from __future__ import annotations

import itertools

import numpy as np

from bridge_jax.config import schema
from bridge_jax.evaluation.intervals import Interval
from bridge_jax.evaluation.markdown import fill_tables, grid
from configs.sweeps import ladder, study_conditions
from experiments.study.results import (
    GREEDY,
    METRICS,
    SAMPLED,
    Results,
    accuracy,
    choose,
    dev,
    difference,
    final,
    of_base,
    plain,
)

# the order that the paper reports, best first; the base model comes last
ORDER = (
    "bridge",
    "alternate",
    "cold_start",
    "grpo",
    "sft",
)
# metric -> its column, scale and unit
SPENT = {
    "budget/generated_tokens": ("generated tokens", 1e-3, "k"),
    "budget/demo_tokens": ("demo tokens", 1e-3, "k"),
    "budget/flops": ("model TFLOP", 1e-12, ""),
    "time/cpu_s": ("processor s", 1.0, ""),
    "memory/host_peak_gib": ("peak GiB", 1.0, ""),
}
COMPARED = (
    "variant",
    "alpha",
    "seeds",
    "greedy %",
    "minus bridge",
    "sampled %",
    "minus bridge",
)


def shown(found: Interval, signed: bool = False) -> str:
    """Mean and 95% interval, in per cent."""
    number = "{:+.1f}" if signed else "{:.1f}"
    mean, low, high = (number.format(100 * value) for value in found[:3])
    return f"{mean} (one seed)" if np.isnan(found.low) else f"{mean} [{low}, {high}]"


def verdict(found: Interval) -> str:
    """The conclusion from the interval of a difference, in words."""
    if np.isnan(found.low):
        return "one seed"
    return "higher" if found.low > 0 else "lower" if found.high < 0 else "no difference seen"


def tuning_table(rows: Results) -> str:
    """Dev accuracy, greedy / sampled, of each variant at each rate; the chosen rate is in bold."""
    chosen, body, rates = choose(rows), [], (ladder.LOWER, *ladder.RATES)
    for name in ladder.METHODS:
        for ratio in ladder.ratios(name):
            runs = [rows.get(ladder.setting(name, rate, ratio)) for rate in rates]
            texts = [
                " / ".join(f"{100 * score:.1f}" for score in dev(found)) if found else "-"
                for found in runs
            ]
            cells = [
                f"**{text}**" if chosen.get(name) == (rate, ratio) else text
                for rate, text in zip(rates, texts)
            ]
            if any(runs):
                body.append(
                    [f"`{name}`", f"{ratio:g}" if name in ladder.WITH_ADAPTER else "", *cells]
                )
    return grid(["variant", "beta / alpha", *(f"alpha {rate:g}" for rate in rates)], body)


def main_table(rows: Results, suffix: str = "") -> str:
    """Accuracy of each variant, best first, its difference from bridge, and what it spent.

    suffix: of the variants that are compared with bridge, such as "+equal time".
    """
    there = {name: rows[name + suffix] for name in plain(rows) if name + suffix in rows}
    if "bridge" in rows:
        there["bridge"] = rows["bridge"]
    body = []
    for name, runs in best_first(there, GREEDY):
        full_name = "bridge" if name == "bridge" else name + suffix
        body.append([f"`{name}`", *compared_cells(rows, full_name, "bridge"), *spent_cells(runs)])
    before = [f"{100 * of_base(rows, metric):.1f}" for metric in METRICS]
    body.append(["base model", "", "", before[0], "", before[1], "", *[""] * len(SPENT)])
    return grid([*COMPARED, *(name for name, *_ in SPENT.values())], body)


def best_first(runs: Results, metric: str) -> list[tuple[str, dict[int, dict]]]:
    """(variant, its runs), the highest mean of the metric first."""
    return sorted(runs.items(), key=lambda item: -np.mean(final(item[1], metric)))


def compared_cells(rows: Results, name: str, reference: str) -> list[str]:
    """The cells of COMPARED after the name; differences are from the variant `reference`."""
    runs = rows[name]
    rate = next(iter(runs.values()))["settings"].get("optim.base.learning_rate")
    cells = [f"{rate:g}", str(len(runs))]
    for metric in METRICS:
        cells.append(shown(accuracy(runs, metric)))
        compared = name != reference and reference in rows
        gap = difference(rows, name, reference, metric) if compared else None
        cells.append("" if gap is None else shown(gap, signed=True))
    return cells


def spent_cells(runs: dict[int, dict]) -> list[str]:
    """Means over seeds of what a variant spent, one cell for each of SPENT."""
    cells = []
    for key, (_, scale, unit) in SPENT.items():
        mean = np.mean([row["curve"][-1].get(key, 0.0) for row in runs.values()])
        value = mean * scale
        number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        cells.append(number + unit if mean else "-")
    return cells


def order_table(rows: Results) -> str:
    """The differences between neighbours in the paper's order."""
    body = []
    for first, second in itertools.pairwise(name for name in ORDER if name in rows):
        found = [difference(rows, first, second, metric) for metric in METRICS]
        body.append(
            [
                f"`{first}` > `{second}`",
                *itertools.chain(*((shown(one, True), verdict(one)) for one in found)),
            ]
        )
    return grid(["the paper says", "greedy", "", "sampled", ""], body)


def controls_table(rows: Results) -> str:
    """bridge minus each control: what each part of bridge brings."""
    parts = {
        "hybrid": "everything but the mixture: adapter, shadow, gain",
        "hybrid_matched": "the same, at bridge's own alpha (left out where hybrid's is the same)",
        "joint": "theta_hat and the gain; the adapter stays",
        "bridge_gain_only": "the SFT term in w",
        "bridge_resync": "a theta_hat that trails for more than 10 steps",
        "bridge_inner": "one rather than two steps of theta_hat",
        "bridge_own": "theta's samples for theta_hat, which samples itself; half the steps",
    }
    body = []
    for name, what in parts.items():
        if name in rows and "bridge" in rows:
            found = [difference(rows, "bridge", name, metric) for metric in METRICS]
            body.append(
                [f"`{name}`", what, *(f"{shown(one, True)}: {verdict(one)}" for one in found)]
            )
    return grid(["bridge minus", "what it lacks", "greedy", "sampled"], body)


def conditions_table(rows: Results, metric: str) -> str:
    """Accuracy of the main methods in each condition, with the number of seeds if some lack."""
    found = dict.fromkeys(name.partition("+")[2] for name in rows)
    conditions = [
        "",
        *(f"+{condition}" for condition in found if condition in study_conditions.CONDITIONS),
    ]
    whole = max(len(runs) for runs in rows.values())

    def cell(variant: str) -> str:
        if variant not in rows:
            return "-"
        seeds = len(rows[variant])
        return shown(accuracy(rows[variant], metric)) + (
            f" ({seeds} seeds)" if 1 < seeds < whole else ""
        )

    body = [
        [f"`{name}`", *(cell(name + condition) for condition in conditions)] for name in ladder.MAIN
    ]
    return grid(["variant", "clean", *(condition[1:] for condition in conditions[1:])], body)


def paired_table(rows: Results) -> str:
    """Methods with a demo for every prompt, best first, and their difference from such a bridge."""
    there = {name: runs for name, runs in rows.items() if "+all experts" in name}
    body = [
        [f"`{name.partition('+')[0]}`", *compared_cells(rows, name, "bridge+all experts")]
        for name, _ in best_first(there, GREEDY)
    ]
    return grid(COMPARED, body)


def gain_table(rows: Results) -> str:
    """The measured gain and its companions over a run: means over seeds at each evaluation."""
    keys = {
        "measured_gain/gain": "measured gain",
        "measured_gain/gain_stderr": "its standard error (one run)",
        "bridge/gain": "gain by weights",
        "bridge/ess": "ESS",
        "bridge/kl_hat": "KL to theta_hat",
        "grad/cos_sft_rl": "cos of gradients",
        "eval/demo_logp": "held-out demos' log p",
        "eval/touched_accuracy": "touched",
        "eval/untouched_accuracy": "untouched",
    }
    body = []
    for name in dict.fromkeys((*ladder.MAIN, *ladder.WITH_ADAPTER)):
        curves = [row["curve"] for row in rows.get(name, {}).values()]
        for points in zip(*curves):
            mean = lambda key: (
                "-"
                if not all(key in point for point in points)
                else f"{np.mean([point[key] for point in points]):.3g}"
            )
            body.append([f"`{name}`", f"{points[0]['step']:g}", *map(mean, keys)])
    return grid(["variant", "step", *keys.values()], body)


def regime_table(rows: Results) -> str:
    """Every setting that was tried for bridge, best first."""
    tried = {name: runs for name, runs in rows.items() if name.startswith("bridge/")}
    if "bridge" in rows and tried:
        tried["bridge"] = {
            seed: row for seed, row in rows["bridge"].items() if seed in next(iter(tried.values()))
        }
    body = []
    for name, runs in best_first(tried, SAMPLED):
        last = [row["curve"][-1] for row in runs.values()]
        ends = [
            f"{np.mean([point[key] for point in last]):.3f}"
            if all(key in point for point in last)
            else "-"
            for key in ("measured_gain/gain", "bridge/ess")
        ]
        body.append(
            [
                f"`{name.partition('/')[2] or 'as in the main table'}`",
                str(len(runs)),
                *(shown(accuracy(runs, metric)) for metric in METRICS),
                *ends,
            ]
        )
    return grid(
        [
            "bridge with",
            "seeds",
            "greedy %",
            "sampled %",
            "measured gain at the end",
            "ESS at the end",
        ],
        body,
    )


TABLES = {
    "tuning": tuning_table,
    "main": main_table,
    "order": order_table,
    "controls": controls_table,
    "conditions greedy": lambda rows: conditions_table(rows, GREEDY),
    "conditions sampled": lambda rows: conditions_table(rows, SAMPLED),
    "time": lambda rows: main_table(rows, "+equal time"),
    "gain": gain_table,
    "regime": regime_table,
    "paired": paired_table,
}


def fill(text: str, bases: dict[str, Results]) -> str:
    """The page with each table drawn anew between its marks.

    ValueError for a mark that names no table, or a base without runs.
    """

    def drawn(mark: str) -> str:
        name, _, base = mark.rpartition(" on ")
        if name not in TABLES:
            raise ValueError(f"no table {name!r}: {schema.did_you_mean(name, TABLES)}")
        if base not in bases:
            raise ValueError(
                f"table {name!r} on base {base!r}: the results hold runs on {', '.join(bases)}"
            )
        return TABLES[name](bases[base])

    return fill_tables(text, drawn)


def quick_page(bases: dict[str, Results]) -> str:
    """The page of the quick study: the main table and the order, of each base."""
    return "\n".join(f"{main_table(rows)}\n{order_table(rows)}" for rows in bases.values())
