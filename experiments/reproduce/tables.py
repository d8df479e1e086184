"""The main table: ours beside the published figures; as CSV and as LaTeX.

A table is a head and rows of text. Accuracies are in percent, with 95% intervals in brackets: over
problems for one seed, over seeds and problems for several.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bridge_jax.evaluation.scores import Score
from experiments.reproduce import estimate, results
from experiments.reproduce.request import LABELS, METHODS, Request
from experiments.reproduce.results import Entry

AVERAGE = "average"
FULL = Path(__file__).parents[1] / "paper" / "published.json"
PUBLISHED = "published: "


class Table(NamedTuple):
    """Head and rows; every row has a cell for each column of the head."""

    head: list[str]
    rows: list[list[str]]


def percent(score: Score | None) -> str:
    """12.3 [10.1, 14.9]; "-" without a score."""
    if score is None:
        return "-"
    interval = score.interval
    bounds = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return f"{100 * score.value:.1f}{bounds}"


def published_scores(request: Request) -> dict[str, dict[str, float]]:
    """Method -> benchmark or "average" -> the paper's percent, as far as it gives them.

    An average stands only beside all five of the paper's benchmarks.
    """
    model = estimate.published(request)
    found = {method: {AVERAGE: value} for method, value in model.get("averages", {}).items()}
    full = json.loads(FULL.read_text(encoding="utf-8"))
    if model.get("name") == full["model"]:
        names = {label: method for method, label in METHODS.items()}
        for row in full["rows"]:
            found.setdefault(names[row["method"]], {}).update(row["scores"])
    return found


def main_table(request: Request, entries: Sequence[Entry]) -> Table:
    """A row for each line of ours, below it the published one where the paper has it."""
    counts = {
        task: len(scores)
        for entry in entries
        for by_task in entry.greedy.values()
        for task, scores in by_task.items()
    }
    head = [f"{task} (n={counts[task]})" if task in counts else task for task in request.tasks]
    theirs, rows = published_scores(request), []
    for entry in entries:
        scores = [results.score(entry, task) for task in request.tasks]
        cells = [*map(percent, scores), percent(results.mean_score(request, entry))]
        rows.append([entry.variant.label, *cells])
        values = theirs.pop(entry.variant.method, {}) if not entry.variant.kind else {}
        if values:
            rows.append(published_row(request, entry.variant.label, values))
    rows += [
        published_row(request, LABELS.get(name, name), values) for name, values in theirs.items()
    ]
    return Table(["%", *head, AVERAGE], rows)


def published_row(request: Request, label: str, values: dict[str, float]) -> list[str]:
    """The row of the paper's figures."""
    cells = [f"{values[task]:.1f}" if task in values else "-" for task in (*request.tasks, AVERAGE)]
    return [f"{PUBLISHED}{label}", *cells]


def as_csv(request: Request, entries: Sequence[Entry]) -> str:
    """A record for each cell of the main table: line, published, benchmark, n, value, low, high."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["line", "published", "benchmark", "n", "seeds", "value", "low", "high"])
    for entry in entries:
        found = {task: results.score(entry, task) for task in request.tasks}
        found[AVERAGE] = results.mean_score(request, entry)
        for name, score in found.items():
            if score is not None:
                first = next(iter(entry.greedy.values()))
                n = len(first[name]) if name in first else ""
                bounds = [f"{bound:.6f}" for bound in score.interval or ()] or ["", ""]
                label = entry.variant.label
                writer.writerow(
                    [label, 0, name, n, len(entry.greedy), f"{score.value:.6f}", *bounds]
                )
    for method, values in published_scores(request).items():
        for name, value in values.items():
            label = LABELS.get(method, method)
            writer.writerow([label, 1, name, "", "", f"{value / 100:.6f}", "", ""])
    return out.getvalue()


def as_latex(table: Table, caption: str) -> str:
    """The table as a booktabs tabular with its caption, published rows in italics."""
    escape = lambda text: "".join(f"\\{c}" if c in "_%&#$" else c for c in text)

    def line(row: list[str]) -> str:
        cells = [escape(cell) for cell in row]
        if row[0].startswith(PUBLISHED):
            cells = [rf"\textit{{{cell}}}" for cell in cells]
        return " & ".join(cells) + r" \\"

    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{escape(caption)}}}",
            r"\begin{tabular}{l" + "r" * (len(table.head) - 1) + "}",
            r"\toprule",
            line(table.head),
            r"\midrule",
            *map(line, table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
