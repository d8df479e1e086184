"""Compare runs on one page: `python -m experiments.report --runs='runs/sweep/*' --out=report.html
[--metric=KEY]`.

Writes one self-contained HTML file, which works offline: metrics over any budget, the paper's three
views (training dynamics, comparison of methods, cost), the differences between methods, samples of
a problem across steps and methods, and the differences of the configs. Next to it the table is
written as .md, .csv and .tex. Runs that differ only in their seed are one group. Intervals are 95%
(bridge_jax/evaluation/intervals.py): those of final accuracies and differences are over seeds and
problems, those of curves over seeds, for the given problems. Notes at the top of the page say what
is missing or cannot be compared.

Exit codes: 0 done; 2 nothing to read or to write.
"""

from __future__ import annotations

import html
import json
import pathlib

from absl import flags

from bridge_jax.config import renamed, schema
from bridge_jax.evaluation import comparison, intervals, report_samples, report_tables
from bridge_jax.evaluation.comparison import BUDGETS, Run
from bridge_jax.filesystem import files
from experiments.cli import define_path, fail, fail_by, run_command

PAGE = pathlib.Path(__file__).with_name("report_page.html")
EXAMPLE = "python -m experiments.report --runs='runs/quickstart/*' --out=report.html"


def page(
    groups: dict[str, list[Run]], metric: str, not_started: tuple[str, ...] | list[str] = ()
) -> tuple[str, dict[str, str]]:
    """The HTML page and the tables; not_started: notes on directories without a run yet."""
    rows = report_tables.rows_of(groups, metric)
    made = report_tables.tables(rows)
    given = {
        "metric": metric,
        "budgets": BUDGETS,
        "notes": [*not_started, *report_tables.notes(groups, metric)],
        "columns": ["method", *report_tables.COLUMNS.values()],
        "rows": rows,
        "curves": report_tables.curves(groups, metric),
        "band_runs": intervals.BAND_RUNS,
        "groups": list(groups),
        "tables": made,
        "differences": report_tables.differences(groups, metric),
        "samples": report_samples.samples(groups),
        "configs": report_tables.config_differences(groups),
    }
    # no text of a model may end the script, or open a comment in it
    text = json.dumps(given, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    title = html.escape(f"{sum(map(len, groups.values()))} runs, {len(groups)} groups")
    return PAGE.read_text(encoding="utf-8").replace("{{title}}", title).replace(
        "{{data}}", text
    ), made


def check_metric(groups: dict[str, list[Run]], metric: str) -> None:
    """ValueError where no run has the metric, with the nearest that one has."""
    there = {
        key for group in groups.values() for run in group for line in run.lines for key in line
    }
    if metric not in there:
        nearest = ", ".join(schema.nearest_first(metric, there)[:3])
        raise ValueError(
            f"--metric={metric}: no run has it; nearest: {nearest} (docs/logging.md explains all)"
        )


def main(argv: list[str]) -> None:
    """Read, compare, write."""
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}")
    out = pathlib.Path(flags.FLAGS.out)
    if out.suffix in (".md", ".csv", ".tex"):
        fail(
            f"--out={out}: the page is HTML, and the table gets this name; take another, such as "
            "report.html"
        )
    metric = flags.FLAGS.metric
    if (new := renamed.metric(metric)) != metric:
        fail(f"--metric={metric}: it is {new} now")
    try:
        not_started = comparison.not_started(flags.FLAGS.runs)
        skipped = comparison.skipped(flags.FLAGS.runs)
        groups = comparison.grouped(
            [comparison.load(folder) for folder in comparison.find(flags.FLAGS.runs)]
        )
        if flags.FLAGS["metric"].present:
            check_metric(groups, metric)
        text, made = page(groups, metric, not_started)
        out.parent.mkdir(parents=True, exist_ok=True)
        files.replace(out, text)
        for suffix, table in made.items():
            files.replace(out.with_suffix(f".{suffix}"), table)
    except (ValueError, OSError) as error:
        fail_by(error)
    print(f"{made['md']}\n{out}: {len(text) / 1e6:.1f} MB")
    for note in skipped + not_started + report_tables.notes(groups, metric):
        print(f"note: {note}")


def define_flags() -> None:
    """The flags of this command."""
    define_path(
        "runs", None, "run directories: a glob, or several with commas between them", several=True
    )
    define_path("out", "report.html", "the page; the tables are written next to it")
    flags.DEFINE_string("metric", "eval/held_out_accuracy", "the metric that is compared")
    flags.mark_flags_as_required(["runs"])


if __name__ == "__main__":
    define_flags()
    run_command(main, EXAMPLE)
