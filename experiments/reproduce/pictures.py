"""The picture of training: rewards, lengths, held-out accuracy and demonstrations over the
steps.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from bridge_jax.evaluation import comparison
from bridge_jax.filesystem import files
from experiments.reproduce.results import Entry

PANELS = {
    "reward/mean": "mean reward of the samples",
    "rollout/length": "mean length of the samples, tokens",
    "eval/math500_accuracy": "accuracy on MATH500's problems in training",
    "sft/logp": "log-likelihood of a demonstration's token",
}
COLUMNS = 2
# method -> its colour and its marker, by which lines that lie on each other are told apart
STYLES = {
    "sft": ("C0", "s"),
    "grpo": ("C1", "o"),
    "cold_start": ("C4", "v"),
    "alternate": ("C5", "^"),
    "hybrid": ("C2", "D"),
    "chord": ("C6", "P"),
    "bridge": ("C3", "*"),
    "joint": ("C7", "X"),
    "luffy": ("C8", "p"),
}
OTHER = ("0.5", "h")
# markers on a line, at most
MARKED = 8


def draw(entries: Sequence[Entry], path: Path) -> bool:
    """Draw the methods as published; the mean over seeds. False where no run has a curve."""
    shown = [entry for entry in entries if entry.runs and not entry.variant.kind]
    curves = {
        (key, entry.variant.method): comparison.curve(entry.runs, key, "step")
        for key in PANELS
        for entry in shown
    }
    present = {place: made for place, made in curves.items() if made is not None}
    if not present:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    keys = [key for key in PANELS if any(place[0] == key for place in present)]
    with pyplot.rc_context({"font.size": 12, "axes.titlesize": "medium"}):
        rows = -(-len(keys) // COLUMNS)
        size = (6 * COLUMNS, 3.6 * rows + 0.8)
        figure, axes = pyplot.subplots(
            rows, COLUMNS, figsize=size, squeeze=False, layout="constrained"
        )
        for axis, key in zip(axes.flat, keys):
            draw_panel(axis, key, shown, present)
        for axis in axes.flat[len(keys) :]:
            axis.remove()
        add_legend(figure, shown)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=100, pil_kwargs={"optimize": True})
        pyplot.close(figure)
    files.replace(path, drawn.getvalue())
    return True


def add_legend(figure, shown: Sequence[Entry]) -> None:
    """One legend for all panels, in the order of the table."""
    found = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles))
    labels = [entry.variant.label for entry in shown if entry.variant.label in found]
    handles = [found[label] for label in labels]
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)))


def draw_panel(axis, key: str, shown: Sequence[Entry], present: dict) -> None:
    """One figure of all methods, each above those before it; a band with enough seeds."""
    for number, entry in enumerate(shown):
        method = entry.variant.method
        made = present.get((key, method))
        if made is None:
            continue
        colour, marker = STYLES.get(method, OTHER)
        apart = max(1, len(made.x) // MARKED)
        # from 1 for the first method to 0: what lies above is narrower
        above = 1 - number / max(1, len(shown) - 1)
        axis.plot(
            made.x,
            made.mean,
            color=colour,
            linewidth=1.5 + 3 * above,
            alpha=0.7,
            marker=marker,
            markersize=7 + 8 * above,
            markeredgewidth=1.5,
            markerfacecolor="none",
            # those of two methods at different steps
            markevery=(apart * number // len(shown), apart),
            label=entry.variant.label,
            # those at 0 are whole too
            clip_on=False,
            zorder=3,
        )
        axis.fill_between(made.x, made.low, made.high, color=colour, alpha=0.15, linewidth=0)
    axis.set(title=PANELS[key], xlabel="step")
    axis.xaxis.get_major_locator().set_params(integer=True)
    if key != "sft/logp":
        axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
