"""The pictures of docs/study.md and its appendix, from one base's runs, and of docs/smollm2.md."""

from __future__ import annotations

import io
import pathlib

import numpy as np

from bridge_jax.evaluation import comparison, intervals
from bridge_jax.evaluation.intervals import Interval
from bridge_jax.filesystem import files
from configs.sweeps import ladder
from experiments.study.results import (
    GREEDY,
    METRICS,
    SAMPLED,
    Results,
    accuracy,
    difference,
    final,
    of_base,
    plain,
)

SHORT = {GREEDY: "greedy", SAMPLED: "sampled"}
# main method -> its colour and marker
STYLES = {
    "sft": ("C0", "o"),
    "grpo": ("C1", "s"),
    "cold_start": ("C4", "^"),
    "alternate": ("C5", "D"),
    "hybrid": ("C2", "v"),
    "bridge": ("C3", "o"),
}
# of the text, so that it can be read at half the size
POINTS = 14


def draw(rows: Results, folder: pathlib.Path, base: str) -> None:
    """Draw dynamics_BASE.png, the main methods over training, and methods_BASE.png, all methods."""
    pyplot = import_pyplot()
    for name, figure_of in (("dynamics", draw_dynamics), ("methods", draw_methods)):
        with pyplot.rc_context({"font.size": POINTS, "axes.titlesize": "medium"}):
            figure = figure_of(pyplot, rows)
            save(figure, folder / f"{name}_{base}.png")
            pyplot.close(figure)


def draw_run(lines: list[dict], path: pathlib.Path) -> None:
    """One run: mean reward of each step's samples, held-out accuracy and its interval."""
    pyplot = import_pyplot()
    with pyplot.rc_context({"font.size": POINTS, "axes.titlesize": "medium"}):
        figure, (left, right) = pyplot.subplots(
            1, 2, figsize=(12, 4.6), sharex=True, sharey=True, layout="constrained"
        )
        step, reward = np.array(
            [(line["step"], line["reward/mean"]) for line in lines if "reward/mean" in line]
        ).T
        left.plot(step, reward, "C0", alpha=0.4, linewidth=1, label="each step")
        left.plot(
            step, comparison.smooth(reward, 2), "C0", linewidth=2.5, label="mean of five steps"
        )
        left.set(title="mean reward of the samples", xlabel="step", ylim=(-0.02, 1.02))
        left.legend(loc="lower right")
        points = [line for line in lines if GREEDY in line]
        share = np.array([line[GREEDY] for line in points])
        count = [line["eval/held_out_n"] for line in points]
        found = intervals.of_shares(share, share * (1 - share), count)
        step = [line["step"] for line in points]
        right.plot(step, share, "C3", marker="o", linewidth=2.5)
        right.fill_between(step, found.low, found.high, color="C3", alpha=0.15, linewidth=0)
        right.set(title="held-out accuracy, greedy, 95% over problems", xlabel="step")
        for axis in (left, right):
            axis.grid(alpha=0.3)
        save(figure, path)
        pyplot.close(figure)


def draw_dynamics(pyplot, rows: Results):
    """Accuracy over training: mean and interval over seeds, for the given problems.

    With fewer than intervals.BAND_RUNS seeds the line of each is drawn instead of an interval. All
    methods begin at the base model; the scale begins at the lowest evaluation after it, since the
    methods differ far less from each other than from the base model.
    """
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5.2), sharex=True, layout="constrained")
    present = [name for name in ladder.MAIN if name in rows]
    for axis, metric in zip(axes, METRICS):
        # of all methods and evaluations after the first
        shown = []
        for name in present:
            curves = [row["curve"] for row in rows[name].values()]
            value_RX = np.array([[point[metric] for point in curve] for curve in curves])
            x = [point["step"] / curves[0][-1]["step"] for point in curves[0]]
            found = intervals.bands(value_RX, shares=True)
            colour, marker = STYLES[name]
            # the paper's method above the others
            order = 3 if name == "bridge" else 2
            axis.plot(x, found.mean, colour, marker=marker, linewidth=2, label=name, zorder=order)
            if len(curves) < intervals.BAND_RUNS:
                axis.plot(x, value_RX.T, color=colour, alpha=0.5, linewidth=0.8)
                shown.append(value_RX[:, 1:])
            else:
                axis.fill_between(x, found.low, found.high, color=colour, alpha=0.1, linewidth=0)
                shown.append(np.stack([found.low[1:], found.high[1:]]))
        low, high = min(map(np.min, shown)), max(map(np.max, shown))
        margin = 0.05 * (high - low)
        axis.set(
            title=f"{SHORT[metric]} (before training {of_base(rows, metric):.2f})",
            xlabel="share of the run (cold_start: demos, then samples)",
            ylim=(low - margin, high + margin),
        )
        axis.grid(alpha=0.3)
    few = any(len(rows[name]) < intervals.BAND_RUNS for name in present)
    axes[0].set(ylabel=f"held-out accuracy: {'mean, each seed' if few else 'mean, 95% over seeds'}")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def draw_methods(pyplot, rows: Results):
    """All variants at the end, best sampled accuracy first, as differences from bridge."""
    names = sorted(plain(rows), key=lambda name: np.mean(final(rows[name], SAMPLED)))
    panels = [
        (metric, other)
        for metric in (SAMPLED, GREEDY)
        for other in ("", "bridge")
        if not other or other in rows
    ]
    figure, axes = pyplot.subplots(
        1,
        len(panels),
        figsize=(2.7 * len(panels) + 1.7, 0.36 * len(names) + 1.9),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (metric, other) in zip(axes[0], panels):
        if other:
            others = {
                row: difference(rows, name, other, metric)
                for row, name in enumerate(names)
                if name != other
            }
            draw_scores(axis, others, zero=True)
            axis.set(title=f"{SHORT[metric]}, minus {other}")
        else:
            draw_scores(axis, dict(enumerate(accuracy(rows[name], metric) for name in names)))
            axis.set(title=f"{SHORT[metric]} accuracy")
        axis.locator_params(axis="x", nbins=3, steps=[1, 2, 5, 10])
        axis.set_axisbelow(True)
        axis.grid(alpha=0.3)
    axes[0][0].set(yticks=range(len(names)), yticklabels=names, ylim=(-0.6, len(names) - 0.4))
    words = ["95% over seeds and problems"]
    words += ["grey: not distinguishable from bridge"] * ("bridge" in rows)
    words += ["hollow: one seed"] * any(len(rows[name]) == 1 for name in names)
    figure.supxlabel("; ".join(words), fontsize="medium")
    return figure


def draw_scores(axis, scores: dict[int, Interval], zero: bool = False) -> None:
    """A dot in the row of each score, its interval as a light bar; zero: scores are differences."""
    if zero:
        axis.axvline(0, color="black", linewidth=0.8)
    for row, found in scores.items():
        one_seed = np.isnan(found.low)
        colour = "0.55" if zero and not one_seed and found.low <= 0 <= found.high else "C0"
        if not one_seed:
            axis.hlines(row, found.low, found.high, color=colour, alpha=0.35, linewidth=5)
        axis.plot(found.mean, row, "o", color=colour, mfc="white" if one_seed else colour)


def import_pyplot():
    """matplotlib.pyplot, which is slow to import, without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure, path: pathlib.Path) -> None:
    """Write a picture completely or not at all."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, pil_kwargs={"optimize": True})
    files.replace(path, drawn.getvalue())
