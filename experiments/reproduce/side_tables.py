"""The tables behind the main one: paired tests, samples, cost, learning rates, ablations,
answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bridge_jax.evaluation.intervals import Interval
from bridge_jax.evaluation.scores import Score
from experiments.reproduce import estimate, results, tuning, variants
from experiments.reproduce.request import LABELS, Request
from experiments.reproduce.results import Entry
from experiments.reproduce.tables import AVERAGE, PUBLISHED, Table, percent

HOUR = 3600


def points(found: Interval | None) -> str:
    """+1.2 [-0.4, +2.8] in points; "-" without a difference."""
    if found is None:
        return "-"
    bounds = "" if np.isnan(found.low) else f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"{100 * found.mean:+.1f}{bounds}"


def paired_table(request: Request, entries: Sequence[Entry]) -> Table | None:
    """BRIDGE as published less every other line; None without BRIDGE."""
    return less_every_other(request, variants.Variant("bridge"), entries)


def tuned_paired_table(request: Request, entries: Sequence[Entry]) -> Table | None:
    """BRIDGE at its best rate less every other method at its own; None before both are known."""
    best = {
        method: variants.at_rate(request, method, rate)
        for method, rate in tuning.chosen(request).items()
    }
    if "bridge" not in best:
        return None
    shown = [entry for entry in entries if entry.variant in best.values()]
    return less_every_other(request, best["bridge"], shown)


def less_every_other(
    request: Request, ours: variants.Variant, entries: Sequence[Entry]
) -> Table | None:
    """The line of `ours` less every other line; None where one side is missing."""
    bridge = next((entry for entry in entries if entry.variant == ours and entry.greedy), None)
    others = [entry for entry in entries if entry is not bridge and entry.greedy]
    if bridge is None or not others:
        return None
    rows = []
    for other in others:
        cells = [points(results.difference(bridge, other, task)) for task in request.tasks]
        cells.append(points(results.mean_difference(request, bridge, other)))
        rows.append([other.variant.label, *cells, *sign_cells(request, bridge, other)])
    signs = ["only BRIDGE / only it", "p", "seed"]
    return Table([f"{bridge.variant.label} minus", *request.tasks, AVERAGE, *signs], rows)


def sign_cells(request: Request, bridge: Entry, other: Entry) -> list[str]:
    """The sign test: problems that only one of the two solved, p, and the seed of both."""
    found = results.sign_test(request, bridge, other)
    if found is None:
        return ["-", "-", "no common one"]
    won, lost, p, seed = found
    return [f"{won} / {lost}", f"{p:.3g}", str(seed)]


def sampled_table(entries: Sequence[Entry], kinds: Sequence[str]) -> Table | None:
    """avg@k and pass@k of each line, the mean over seeds; None where nothing was sampled."""
    columns: dict[tuple[str, str, str], None] = {}
    for entry in entries:
        for by_kind in entry.sampled.values():
            for kind in kinds:
                for task in by_kind[kind]:
                    metrics = by_kind[kind][task]["scores"]["strict"]
                    wanted = [kind] if kind in metrics else []
                    columns |= dict.fromkeys((kind, task, metric) for metric in wanted)
    if not columns:
        return None

    def cell(entry: Entry, kind: str, task: str, metric: str) -> str:
        parts = [by_kind[kind].get(task) for by_kind in entry.sampled.values()]
        found = [Score(**part["scores"]["strict"][metric]) for part in parts if part]
        if len(found) != 1:
            return percent(Score(np.mean([one.value for one in found]))) if found else "-"
        return percent(found[0])

    rows = [
        [entry.variant.label, *(cell(entry, *column) for column in columns)] for entry in entries
    ]
    return Table(["%", *(f"{task}, {metric}" for _, task, metric in columns)], rows)


def cost_table(request: Request, entries: Sequence[Entry]) -> Table:
    """Hours, memory and accuracy of each training, beside the paper's."""
    theirs, rows = estimate.published(request).get("cost", {}), []
    for entry in entries:
        if not entry.runs:
            continue
        last = [run.lines[-1] for run in entry.runs if run.lines]
        cost = theirs.get(entry.variant.method, {}) if not entry.variant.kind else {}
        rows.append(
            [
                entry.variant.label,
                mean(last, "time/wall_s", lambda value: f"{value / HOUR:.3g}"),
                mean(last, "memory/device_peak_gib"),
                mean(last, "memory/host_peak_gib"),
                mean(last, "budget/generated_tokens", lambda value: f"{value:,.0f}"),
                percent(results.mean_score(request, entry)).partition(" ")[0],
                *(f"{cost[key]:g}" if cost else "-" for key in ("hours", "gigabytes", "percent")),
            ]
        )
    ours = ["hours", "device GiB", "process GiB", "generated tokens", "average, %"]
    return Table(["training", *ours, *(f"{PUBLISHED}{key}" for key in ("hours", "GB", "%"))], rows)


def mean(lines: list[dict], key: str, show: Callable = lambda value: f"{value:.3g}") -> str:
    """The mean of a figure over seeds; "-" where one lacks it."""
    values = [line.get(key) for line in lines]
    return "-" if not values or None in values else show(float(np.mean(values)))


def tuning_table(request: Request) -> Table | None:
    """Validation accuracy of each method at each rate, the chosen in bold; None without any."""
    found, chosen = tuning.accuracies(request), tuning.chosen(request)
    lost = tuning.diverged(request)
    rows = []
    for method in request.methods:
        if method not in found and method not in lost:
            continue
        by_rate = dict.fromkeys(lost.get(method, ()), "diverged")
        by_rate |= {rate: f"{100 * share:.1f}" for rate, share in found.get(method, {}).items()}
        cells = [LABELS.get(method, method)]
        for rate in variants.rates(request):
            text = by_rate.get(rate, "-")
            cells.append(f"**{text}**" if chosen.get(method) == rate else text)
        rows.append(cells)
    if not rows:
        return None
    return Table(["validation, %", *(f"{rate:g}" for rate in variants.rates(request))], rows)


def ablation_table(request: Request, entries: Sequence[Entry]) -> Table | None:
    """The averages of the ablations, and of their methods without; None where none was made."""
    changed = [entry for entry in entries if entry.variant.kind in ("noise", "lam")]
    if not changed:
        return None
    noise, rows = estimate.published(request).get("noise", {}), []
    methods = {entry.variant.method for entry in changed}
    plain = [e for e in entries if not e.variant.kind and e.variant.method in methods]
    for entry in [*plain, *changed]:
        variant = entry.variant
        theirs = noise.get(variant.method) if variant.kind == "noise" else None
        found = percent(results.mean_score(request, entry))
        rows.append([variant.label, found, "-" if theirs is None else f"{theirs:g}"])
    return Table(["%", AVERAGE, f"{PUBLISHED}{AVERAGE}"], rows)


def answers_table(entries: Sequence[Entry]) -> Table | None:
    """Length of the greedy answers, and how they ended, over all problems; None without any."""
    rows = []
    for entry in entries:
        parts = [part for by_task in entry.answers.values() for part in by_task.values()]
        if not parts:
            continue
        count = sum(part["rows"] for part in parts)
        share = lambda value: sum(part["rows"] * value(part) for part in parts) / max(1, count)
        outcome = lambda name: share(lambda part: part["outcomes"]["strict"].get(name, 0.0))
        shares = [share(lambda part: part["truncated"]), outcome("no_answer")]
        shares.append(outcome("timeout") + outcome("grader_error"))
        tokens = f"{share(lambda part: part['tokens']):.0f}"
        rows.append([entry.variant.label, tokens, *(f"{100 * one:.1f}" for one in shares)])
    head = ["answers", "mean tokens", "cut off, %", "without an answer, %", "not graded, %"]
    return Table(head, rows) if rows else None
