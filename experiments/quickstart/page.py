"""The result of the quickstart: a table, sentences, a picture, all from the files of its runs."""

from __future__ import annotations

import io
import pathlib
from typing import NamedTuple

import numpy as np

from bridge_jax.evaluation import comparison, intervals
from bridge_jax.evaluation.intervals import Interval
from bridge_jax.filesystem import files
from bridge_jax.rundir import logbook

# method -> what it learns from
METHODS = {
    "sft": "demonstrations",
    "grpo": "rewards",
    "hybrid": "both, mixed",
    "bridge": "both, by BRIDGE",
}
# so that no core waits for a long run at the end
LONGEST_FIRST = ("bridge", "hybrid", "grpo", "sft")
COLOURS = {"base": "0.5", "sft": "C0", "grpo": "C1", "hybrid": "C2", "bridge": "C3"}
# compared with each other
PAIRS = (
    ("hybrid", "sft"),
    ("hybrid", "grpo"),
    ("bridge", "sft"),
    ("bridge", "grpo"),
    ("bridge", "hybrid"),
)
LIMITS = "points, 95% over problems, for these very models: one seed shows no ranking of methods"
GREEDY, SAMPLED = "held_out", "held_out_sampled"
MEASURES = {GREEDY: "greedy", SAMPLED: "sampled"}


class Result(NamedTuple):
    """One model: its scores for each held-out problem, and the accuracies of its run."""

    scores: dict[str, np.ndarray]  # measure -> share of right answers, one a problem
    steps: list[int]  # of the evaluations
    curve: list[intervals.Bounds]  # greedy accuracy and its interval over problems
    seconds: float  # of training and evaluation

    def accuracy(self, measure: str) -> intervals.Bounds:
        """Mean over problems and its 95% interval."""
        score_P = self.scores[measure]
        return intervals.of_shares(score_P.mean(), score_P.var(), len(score_P))


def read(out: pathlib.Path) -> dict[str, Result]:
    """The results of the base model and of every method; ValueError where a run is missing."""
    first = str(out / next(iter(METHODS)))
    base = Result(scores_at(first, step=0), [], [], 0.0)
    return {"base": base} | {method: read_run(out / method) for method in METHODS}


def read_run(folder: pathlib.Path) -> Result:
    """The result of one run."""
    lines = [line for line in logbook.read(str(folder)) if "eval/held_out_accuracy" in line]
    curve = []
    for line in lines:
        share = line["eval/held_out_accuracy"]
        curve.append(intervals.of_shares(share, share * (1 - share), line["eval/held_out_n"]))
    seconds = lines[-1]["time/train_s"]
    return Result(scores_at(str(folder)), [line["step"] for line in lines], curve, seconds)


def scores_at(folder: str, step: int | None = None) -> dict[str, np.ndarray]:
    """Share of each problem's answers that are right, greedy and sampled; step None: the last."""
    samples = comparison.load(folder).config["eval"]["samples"]
    solved = logbook.read_solved(folder, step)
    answers = {GREEDY: 1, SAMPLED: samples}
    return {key: np.array([int(digit) for digit in solved[key]]) / answers[key] for key in MEASURES}


def table(results: dict[str, Result]) -> str:
    """Aligned rows: accuracies with 95% intervals over problems, and seconds."""
    rows = [("method", "learns from", "greedy [95%]", "sampled [95%]", "seconds")]
    for name, result in results.items():
        cells = [interval_text(result.accuracy(measure)) for measure in MEASURES]
        seconds = f"{result.seconds:.0f}" if result.seconds else ""
        rows.append((name, METHODS.get(name, ""), *cells, seconds))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def interval_text(found: intervals.Bounds) -> str:
    """The mean and its interval, in percent."""
    return f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def findings(results: dict[str, Result]) -> str:
    """Sentences about pairs of methods, in points, paired over problems."""
    verdicts, lines = {}, []
    for one, other in PAIRS:
        gaps = {
            measure: intervals.difference_of_models(
                results[one].scores[measure], results[other].scores[measure]
            )
            for measure in MEASURES
        }
        verdicts[one, other] = verdict(other, gaps)
        numbers = ", ".join(
            f"{MEASURES[measure]} {100 * gap.mean:+.1f} "
            f"[{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
            for measure, gap in gaps.items()
        )
        lines.append(f"{one} minus {other}: {numbers}: {verdicts[one, other]}")
    return "\n".join([*lines, summary(verdicts), LIMITS])


def summary(verdicts: dict[tuple[str, str], str]) -> str:
    """Whether learning from both is above either alone, and BRIDGE above plain mixing."""
    alone = [verdicts[one, other] for one in ("hybrid", "bridge") for other in ("sft", "grpo")]
    above = [text.startswith("above") and "below" not in text for text in alone]
    if all(above):
        first = "learning from demonstrations and rewards together is above either alone"
    else:
        first = f"{sum(above)} of 4 comparisons of both with either alone are above it"
    return f"here {first}, and bridge is {verdicts['bridge', 'hybrid']} (plain mixing)"


def verdict(other: str, gaps: dict[str, Interval]) -> str:
    """The conclusions that the intervals allow."""
    clear = {
        sign: [MEASURES[measure] for measure, gap in gaps.items() if sign * bound(gap, sign) > 0]
        for sign in (1, -1)
    }
    if not clear[1] and not clear[-1]:
        return f"level with {other}"
    parts = [
        f"{word} {other} ({', '.join(names)})"
        for word, names in (("above", clear[1]), ("below", clear[-1]))
        if names
    ]
    return ", ".join(parts)


def bound(gap: Interval, sign: int) -> float:
    """The end of the interval that is nearest to 0 for a difference of this sign."""
    return gap.low if sign > 0 else gap.high


def draw(results: dict[str, Result], path: pathlib.Path) -> None:
    """Two panels: greedy accuracy over the steps; final accuracies, greedy and sampled."""
    # slow to import
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # legible at half the size
    with pyplot.rc_context({"font.size": 12, "axes.titlesize": "medium"}):
        figure, (left, right) = pyplot.subplots(
            1, 2, figsize=(10, 4.2), layout="constrained", width_ratios=(3, 2)
        )
        draw_curves(left, results)
        draw_scores(right, results)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=120)
        pyplot.close(figure)
    files.replace(path, drawn.getvalue())


def draw_curves(axis, results: dict[str, Result]) -> None:
    """Greedy held-out accuracy of each method over its steps, with its interval."""
    for name, result in results.items():
        if not result.curve:
            continue
        means = [100 * point.mean for point in result.curve]
        axis.plot(result.steps, means, COLOURS[name], marker="o", markersize=4, label=name)
        low, high = ([100 * point[end] for point in result.curve] for end in (1, 2))
        axis.fill_between(result.steps, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
    axis.set(title="held-out accuracy, greedy (%)", xlabel="step", ylim=(0, 100))
    axis.legend(loc="lower right")
    axis.grid(alpha=0.3)


def draw_scores(axis, results: dict[str, Result]) -> None:
    """The accuracy of each model at the end: greedy as a dot, sampled as a square."""
    for place, (name, result) in enumerate(results.items()):
        for measure, marker, shift in ((GREEDY, "o", -0.12), (SAMPLED, "s", 0.12)):
            found = result.accuracy(measure)
            position = place + shift
            axis.hlines(position, 100 * found.low, 100 * found.high, color=COLOURS[name])
            face = COLOURS[name] if measure == GREEDY else "white"
            axis.plot(100 * found.mean, position, marker, color=COLOURS[name], mfc=face)
    axis.set(
        title="at the end, 95% over problems (%)",
        xlim=(0, 100),
        yticks=range(len(results)),
        yticklabels=list(results),
    )
    axis.invert_yaxis()
    axis.plot([], [], "o", color="0.3", label="greedy")
    axis.plot([], [], "s", color="0.3", mfc="white", label="sampled")
    # below the axis, where no model can lie
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=2, frameon=False)
    axis.grid(alpha=0.3)
