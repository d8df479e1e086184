"""The pictures of docs/study.md, drawn from the runs from one base model."""

from __future__ import annotations

import io
import pathlib

import numpy as np

from bridge_jax.evaluation import intervals
from bridge_jax.evaluation.intervals import Interval
from bridge_jax.filesystem import files
from configs.sweeps import ladder
from experiments.study.results import METRICS, SAMPLED, Results, accuracy, difference, final, plain


def draw(rows: Results, folder: pathlib.Path, base: str) -> None:
    """Draw dynamics_BASE.png, the main methods over training, and methods_BASE.png, all methods."""
    # slow to import
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, figure in (
        ("dynamics", draw_dynamics(pyplot, rows)),
        ("methods", draw_methods(pyplot, rows)),
    ):
        save(figure, folder / f"{name}_{base}.png")
        pyplot.close(figure)


def draw_dynamics(pyplot, rows: Results):
    """Accuracy over training: mean and interval over seeds, for the given problems.

    With fewer than three seeds the line of each is drawn instead of an interval.
    """
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), sharex=True, layout="constrained")
    for axis, metric, title in zip(axes, METRICS, ("greedy", "sampled at temperature 1")):
        for name in (name for name in ladder.MAIN if name in rows):
            curves = [row["curve"] for row in rows[name].values()]
            value_RX = np.array([[point[metric] for point in curve] for curve in curves])
            x = [point["step"] / curves[0][-1]["step"] for point in curves[0]]
            found = intervals.bands(value_RX, shares=True)
            (line,) = axis.plot(x, found.mean, marker="o", markersize=3, label=name)
            if len(curves) < intervals.BAND_RUNS:
                axis.plot(x, value_RX.T, color=line.get_color(), alpha=0.4, linewidth=0.8)
            else:
                axis.fill_between(
                    x, found.low, found.high, alpha=0.15, color=line.get_color(), linewidth=0
                )
        axis.set(
            title=f"held-out accuracy, {title}",
            xlabel="share of the run (cold_start: demos, then samples)",
        )
        axis.grid(alpha=0.3)
    few = any(len(rows[name]) < intervals.BAND_RUNS for name in ladder.MAIN if name in rows)
    axes[0].set(ylabel="mean; thin lines: each seed" if few else "mean, 95% over seeds")
    axes[0].legend(fontsize=8)
    return figure


def draw_methods(pyplot, rows: Results):
    """All variants at the end: accuracy, and its difference from bridge."""
    names = sorted(plain(rows), key=lambda name: np.mean(final(rows[name], SAMPLED)))
    count = 2 if "bridge" in rows else 1
    figure, axes = pyplot.subplots(
        1,
        count,
        figsize=(5.5 * count, 0.34 * len(names) + 1.8),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    left, right = axes[0][0], axes[0][-1]
    draw_scores(
        left,
        {name: [accuracy(rows[name], metric) for metric in METRICS] for name in names},
    )
    left.set(xlabel="held-out accuracy", yticks=range(len(names)), yticklabels=names)
    if count > 1:
        gaps = {
            name: [difference(rows, name, "bridge", metric) for metric in METRICS] for name in names
        }
        draw_scores(right, gaps, without="bridge")
        right.axvline(0, color="black", linewidth=0.8)
        right.set(xlabel="minus bridge")
    handles = [
        pyplot.Line2D([], [], color="C0", marker="o", label="greedy"),
        pyplot.Line2D([], [], color="C1", marker="s", label="sampled"),
    ]
    title = "95% intervals over seeds and problems; hollow: one seed, no interval"
    figure.legend(handles=handles, title=title, loc="outside upper center", ncols=2)
    return figure


def draw_scores(axis, scores: dict[str, list[Interval]], without: str = "") -> None:
    """One row of the picture for each variant but `without`: greedy above, sampled below."""
    for place, (name, pair) in enumerate(scores.items()):
        if name == without:
            continue
        for found, colour, marker, offset in zip(pair, ("C0", "C1"), "os", (0.15, -0.15)):
            one_seed = np.isnan(found.low)
            if not one_seed:
                axis.hlines(place + offset, found.low, found.high, color=colour)
            face = "white" if one_seed else colour
            axis.plot(found.mean, place + offset, marker, color=colour, mfc=face, markersize=4)
    axis.grid(alpha=0.3)


def save(figure, path: pathlib.Path) -> None:
    """Write a picture completely or not at all."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    files.replace(path, drawn.getvalue())
