"""The tables of an evaluation: results.json, Markdown, CSV and LaTeX, from benchmark scores.

Left out: how scores are computed (scores.py), writing files (session.py).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bridge_jax.evaluation.markdown import grid
from bridge_jax.evaluation.scores import READINGS, Score, average
from bridge_jax.grading.outcome import Outcome

AVERAGE = "average"


class Line(NamedTuple):
    """One line of the main table."""

    label: str
    # benchmark or AVERAGE -> score; the table is empty where one is missing
    cells: dict[str, Score]
    published: bool = False


def our_lines(model: str, benchmarks: Mapping[str, Mapping]) -> list[Line]:
    """A line for each metric and reading.

    benchmarks: name -> {"scores": {reading: {metric: Score}}}.
    """
    lines, first = [], next(iter(benchmarks.values()))["scores"]
    # pass@1 of the samples equals avg@k
    for metric in (name for name in first["strict"] if name != "pass@1"):
        for reading in READINGS:
            cells = {name: part["scores"][reading][metric] for name, part in benchmarks.items()}
            label = f"{model}, {metric}" + (", lenient" if reading == "lenient" else "")
            lines.append(Line(label, cells | {AVERAGE: average(list(cells.values()))}))
    return lines


def published_lines(published: Mapping, names: Sequence[str]) -> list[Line]:
    """The published rows that have one of these benchmarks.

    A row has an average only if it has all of them. published: {"source", "model",
    "unit": "percent", "rows": [{"method", "scores": {benchmark: percent}}]}.
    """
    lines = []
    for row in published["rows"]:
        cells = {name: Score(row["scores"][name] / 100) for name in names if name in row["scores"]}
        if len(cells) == len(names):
            cells[AVERAGE] = Score(sum(cell.value for cell in cells.values()) / len(names))
        if cells:
            lines.append(
                Line(f"published: {published['model']} {row['method']}", cells, published=True)
            )
    return lines


def shown(score: Score | None) -> str:
    """Per cent, [95% interval over problems], (95% interval over samples)."""
    if score is None:
        return ""
    text = f"{100 * score.value:.1f}"
    if score.interval is not None:
        text += " [{:.1f}, {:.1f}]".format(*(100 * bound for bound in score.interval))
    if score.sampling_interval is not None:
        text += " ({:.1f}, {:.1f})".format(*(100 * bound for bound in score.sampling_interval))
    return text


def markdown(
    benchmarks: Mapping[str, Mapping], lines: Sequence[Line], source: str, notes: Sequence[str]
) -> str:
    """The main table, what the columns mean, and lengths and outcomes of each benchmark."""
    names = list(benchmarks)
    head = ["%", *(f"{name} (n={part['n']})" for name, part in benchmarks.items()), AVERAGE]
    body = [
        [line.label, *(shown(line.cells.get(name)) for name in [*names, AVERAGE])] for line in lines
    ]
    parts = [
        grid(head, body),
        "In square brackets the 95% interval over problems, in round ones that over samples for "
        "these very problems, where some can be left out; both are of this one model. Strict "
        "reading unless lenient is said; pass@1 of the samples is avg@k.",
    ]
    if any(line.published for line in lines):
        parts.append(
            f"Lines marked published are those of {source}, not ours; an average stands where all "
            "the benchmarks shown were published."
        )
    kinds = [*map(str, Outcome), "too_long"]
    rows = []
    for name, part in benchmarks.items():
        for kind, numbers in part["lengths_and_outcomes"].items():
            for reading in READINGS:
                shares = [f"{100 * numbers['outcomes'][reading][outcome]:.1f}" for outcome in kinds]
                rows.append(
                    [
                        f"{name}, {kind}, {reading}",
                        str(numbers["rows"]),
                        f"{numbers['tokens']:.0f}",
                        f"{100 * numbers['truncated']:.1f}",
                        *shares,
                    ]
                )
    parts.append(grid(["outcomes, % of rows", "rows", "mean tokens", "truncated", *kinds], rows))
    return "\n\n".join([*parts, *notes]) + "\n"


def as_csv(benchmarks: Mapping[str, Mapping], lines: Sequence[Line]) -> str:
    """One record for each cell of the main table: score, standard errors, 95% intervals."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["line", "published", "benchmark", "n", "value", "stderr", "sampling_error"]
    writer.writerow([*head, "low", "high", "sampling_low", "sampling_high"])
    for line in lines:
        for name, score in line.cells.items():
            n = benchmarks[name]["n"] if name in benchmarks and not line.published else ""
            bounds = [*(score.interval or (None, None)), *(score.sampling_interval or (None, None))]
            writer.writerow(
                [
                    line.label,
                    int(line.published),
                    name,
                    n,
                    *("" if x is None else repr(x) for x in [*score[:3], *bounds]),
                ]
            )
    return out.getvalue()


def latex(benchmarks: Mapping[str, Mapping], lines: Sequence[Line]) -> str:
    """The main table as a booktabs tabular; a rule separates the published lines."""
    escape = lambda text: "".join(f"\\{c}" if c in "_%&#$" else c for c in text)
    head = [
        r"\%",
        *(escape(f"{name} (n={part['n']})") for name, part in benchmarks.items()),
        AVERAGE,
    ]
    rows = [
        r"\begin{tabular}{l" + "r" * (len(head) - 1) + "}",
        r"\toprule",
        " & ".join(head) + r" \\",
        r"\midrule",
    ]
    for before, line in zip([None, *lines], lines):
        if line.published and before is not None and not before.published:
            rows.append(r"\midrule")
        cells = [shown(line.cells.get(name)) for name in [*benchmarks, AVERAGE]]
        rows.append(" & ".join([escape(line.label), *cells]) + r" \\")
    return "\n".join([*rows, r"\bottomrule", r"\end{tabular}"]) + "\n"


def tables(report: Mapping, published: Mapping) -> dict[str, str]:
    """File name -> text of results.json, table.md, table.csv and table.tex.

    report: {"model", "settings", "benchmarks": {name: part}}, with the part {"n", "too_long",
    "lengths_and_outcomes", "scores"}.
    Published rows are added where they have one of the benchmarks.
    """
    benchmarks, s = report["benchmarks"], report["settings"]
    ours = our_lines(report["model"], benchmarks)
    theirs = published_lines(published, list(benchmarks))
    note = (
        f"{report['model']}: {s['dtype']}, at most {s['max_new']} new tokens, prompt {s['prompt']}"
    )
    if s["samples"] > 1 or not s["greedy"]:
        note += f", samples at temperature {s['temperature']}, seed {s['seed']}"
    named = lambda part: {
        reading: {metric: score._asdict() for metric, score in metrics.items()}
        for reading, metrics in part["scores"].items()
    }
    content = {
        **report,
        "benchmarks": {name: {**part, "scores": named(part)} for name, part in benchmarks.items()},
        "averages": {line.label: line.cells[AVERAGE]._asdict() for line in ours},
    }
    if theirs:
        content["published"] = published
    lines = ours + theirs
    return {
        "results.json": json.dumps(content, indent=1) + "\n",
        "table.csv": as_csv(benchmarks, lines),
        "table.tex": latex(benchmarks, lines),
        "table.md": markdown(benchmarks, lines, published["source"], [note + "."]),
    }
