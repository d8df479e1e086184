"""The report of 40 runs of 500 steps, opened in a real browser; and what it says of runs that lack something."""

from __future__ import annotations

import csv
import html
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from bridge_jax.evaluation import comparison, intervals, report_samples, report_tables
from experiments import report

METRIC = "eval/held_out_accuracy"


def write_run(
    folder,
    method: str,
    seed: int,
    steps: int = 500,
    samples: bool = False,
    skip=(),
    fingerprints=None,
) -> None:
    """A run directory with all that training writes."""
    rng = np.random.default_rng([seed, len(method)])
    folder.mkdir(parents=True)
    config = {
        "seed": seed,
        "steps": steps,
        "method": {"name": method},
        "task": {"name": "arithmetic", "levels": [4]},
    }
    (folder / "config.json").write_text(
        json.dumps({"config": config, "fingerprints": fingerprints or {}})
    )
    lines = []
    for step in range(steps + 1):
        line = {
            "step": step,
            "reward/mean": 0.2 + 0.5 * step / steps + 0.05 * rng.standard_normal(),
        }
        line |= {key: float(step) * 100 for key in comparison.BUDGETS if key != "step"}
        line |= {key: float(rng.random()) for key in report_tables.METRICS[1:14]} | {
            "memory/host_peak_gib": 1.0
        }
        line |= (
            {METRIC: 0.3 + 0.4 * step / steps + 0.01 * rng.standard_normal()}
            if step % 50 == 0 or step == steps
            else {}
        )
        lines.append(json.dumps({key: value for key, value in line.items() if key not in skip}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "solved.jsonl").write_text(
        json.dumps({"step": steps, "held_out": "".join(rng.choice(["0", "1"], 200))}) + "\n"
    )
    if samples:
        (folder / "rollouts").mkdir()
        row = {
            "id": 7,
            "question": "1+2=",
            "answer": "3",
            "policy": "theta",
            "sample": 0,
            "outcome": "correct",
            "text": "<!--<script></script><b>not markup</b>",
        }
        (folder / "rollouts" / "step_000001.jsonl").write_text(json.dumps(row) + "\n")


@pytest.fixture(scope="module")
def browser() -> str:
    """Headless Chromium; installed where the tests may, as on a new machine."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if not found and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"],
        ):
            subprocess.run(command, capture_output=True, timeout=250)
        found = shutil.which("chromium")
    if not found:
        pytest.skip("needs chromium: apt-get install chromium")
    return found


def opened(browser: str, path) -> str:
    """The page's DOM after its scripts have run, without any network."""
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--dump-dom",
        f"file://{path}",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=240).stdout


def made(tmp_path, **options):
    groups = comparison.grouped(
        [comparison.load(folder) for folder in comparison.find(f"{tmp_path}/runs/*")]
    )
    text, tables = report.page(groups, METRIC)
    (tmp_path / "report.html").write_text(text)
    return groups, text, tables


@pytest.mark.slow
def test_forty_runs_open_in_two_seconds(tmp_path, browser):
    """Curves, bars, table, differences, samples and configs are there; the page is ready within 2 s of its start."""
    for method in ("sft", "grpo", "bridge", "alternate", "hybrid"):
        for seed in range(8):
            write_run(tmp_path / "runs" / f"{method}{seed}", method, seed, samples=seed == 0)
    groups, text, _ = made(tmp_path)
    assert len(groups) == 5 and all(len(group) == 8 for group in groups.values())
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    dom = opened(browser, tmp_path / "report.html")
    ready = re.search(r'data-ready="(\d+)"', dom)
    assert ready and int(ready[1]) < 2000, dom[-2000:]
    assert (
        dom.count("<polyline") == 5 + 5
        and dom.count("<polygon") == 5 + 5
        and dom.count("<rect") == 5
    )
    assert all(f"<td>{method}</td>" in dom for method in groups)
    assert (
        "<!--<script></script><b>not markup</b>" in html.unescape(dom)
        and "<b>not markup</b>" not in dom
    )
    assert (
        'class="notes"' not in dom
        and "No curve, since" not in dom.split("</svg>", 1)[1].split("<script", 1)[0]
    )


def test_what_is_missing_is_marked(tmp_path, browser):
    """A run without the metric, an unfinished one and a lonely seed: named on the page, "-" in the table, no curve."""
    for seed in range(2):
        write_run(
            tmp_path / "runs" / f"sft{seed}", "sft", seed, steps=4, skip=(METRIC,) if seed else ()
        )
        write_run(tmp_path / "runs" / f"grpo{seed}", "grpo", seed, steps=4)
    write_run(tmp_path / "runs" / "bridge", "bridge", 0, steps=4)
    groups, _, tables = made(tmp_path)
    dom = opened(browser, tmp_path / "report.html")
    assert (
        'class="notes"' in dom
        and f"no {METRIC}; sft has no mean" in dom
        and "bridge: one seed" in dom
    )
    assert re.search(r'<p id="missing">No curve, [^<]*: sft</p>', dom)
    (line,) = [line for line in tables["md"].splitlines() if line.startswith("| sft |")]
    assert line.split("|")[2].strip() == "-"
    assert report_tables.curves(groups, METRIC)[METRIC]["step"].keys() == {"grpo", "bridge"}
    assert tables["tex"].count("\\\\") == 4 and tables["csv"].splitlines()[0].startswith("method,")


def test_table_by_hand(tmp_path):
    """What was solved gives an interval over seeds and problems; else Student's over seeds, of a share within [0, 1]."""
    for seed in range(3):
        write_run(tmp_path / "runs" / f"grpo{seed}", "grpo", seed, steps=1)
    groups, _, _ = made(tmp_path)
    solved = np.stack([run.solved["held_out"] for run in groups["grpo"]])
    mean, low, high, _ = intervals.over_runs_and_problems(solved)
    row = report_tables.rows_of(groups, METRIC)[0]
    assert row[1] == f"{mean:.3f} [{low:.3f}, {high:.3f}]" and "[" not in row[2]
    for seed in range(3):
        (tmp_path / "runs" / f"grpo{seed}" / "solved.jsonl").unlink()
    groups, _, _ = made(tmp_path)
    mean, low, high, _ = intervals.over_runs(
        [run.lines[-1][METRIC] for run in groups["grpo"]], shares=True
    )
    assert report_tables.rows_of(groups, METRIC)[0][1] == f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def test_differences_by_hand(tmp_path):
    """Paired by seed whatever the order of folders; runs of equal seeds are kept apart; of one seed, problems alone."""
    for seed in range(3):
        write_run(tmp_path / "runs" / f"grpo{seed}", "grpo", seed, steps=1)
        write_run(tmp_path / "runs" / f"sft{9 - seed}", "sft", seed, steps=1)
        solved = "1" * (80 + 20 * seed) + "0" * (120 - 20 * seed)
        for folder in (f"grpo{seed}", f"sft{9 - seed}"):
            line = {"step": 1, "held_out": solved if folder < "h" else solved[::-1]}
            (tmp_path / "runs" / folder / "solved.jsonl").write_text(json.dumps(line) + "\n")
    write_run(tmp_path / "runs" / "bridge0", "bridge", 0, steps=1)
    groups, _, _ = made(tmp_path)
    solved = {
        name: {run.config["seed"]: run.solved["held_out"] for run in group}
        for name, group in groups.items()
    }
    assert list(solved["sft"]) != list(solved["grpo"])
    found = {frozenset(row[:2]): row for row in report_tables.differences(groups, METRIC)}
    first, second, difference, _ = found[frozenset(("grpo", "sft"))]
    expected = intervals.difference(solved[first], solved[second])
    assert difference == report_tables.signed(expected)
    first, second, difference, mark = found[frozenset(("grpo", "bridge"))]
    means = [np.mean(list(solved[name].values()), axis=0) for name in (first, second)]
    assert difference == report_tables.signed(intervals.difference_of_models(*means))
    assert "of one seed" in mark
    groups["grpo"][1].config["seed"] = 0
    assert list(report_tables.solved_by(groups, METRIC)["grpo"]) == [(0, 0), (0, 1), (2, 0)]


def test_an_unfinished_seed_is_not_averaged(tmp_path):
    """Its last accuracy is of an earlier step: no final figure, no difference, and said so; where it began is still shown."""
    for method in ("grpo", "sft"):
        for seed in range(2):
            write_run(tmp_path / "runs" / f"{method}{seed}", method, seed, steps=4)
    path = tmp_path / "runs" / "sft1" / "metrics.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    groups, _, _ = made(tmp_path)
    cells = {
        row[0]: dict(zip(["method", *report_tables.COLUMNS], row))
        for row in report_tables.rows_of(groups, METRIC)
    }
    assert cells["sft"]["final"] == cells["sft"]["time/wall_s"] == "-" != cells["sft"]["base"]
    assert cells["grpo"]["final"] != "-" and report_tables.differences(groups, METRIC) == []
    told = report_tables.notes(groups, METRIC)
    assert any("sft1: at step 3 of 4, not finished" in note for note in told) and told[-1].endswith(
        "solved: sft"
    )


def test_other_problems_are_not_paired(tmp_path):
    """As many problems, but not the same ones: no difference is computed, and the page says why."""
    for method, rows in (("grpo", "x"), ("sft", "y"), ("bridge", "x")):
        write_run(
            tmp_path / "runs" / method,
            method,
            0,
            steps=1,
            fingerprints={"rows": {"held_out": rows}},
        )
    groups, _, _ = made(tmp_path)
    found = {frozenset(row[:2]): row[2:] for row in report_tables.differences(groups, METRIC)}
    assert (
        found[frozenset(("grpo", "sft"))]
        == found[frozenset(("bridge", "sft"))]
        == ["-", "not the same problems"]
    )
    difference, mark = found[frozenset(("grpo", "bridge"))]
    assert "[" in difference and "of one seed" in mark
    assert "2 different tasks" in report_tables.notes(groups, METRIC)[0]


def test_viewer_shows_a_problem_across_steps_and_methods(tmp_path):
    """30 steps of one problem each; problem 5 comes in steps 3 and 20 of both methods, and is shown first, with both steps."""
    for method in ("grpo", "sft"):
        write_run(tmp_path / "runs" / method, method, 0, steps=1)
        (tmp_path / "runs" / method / "rollouts").mkdir()
        for step in range(1, 31):
            row = {
                "policy": "theta",
                "id": 5 if step in (3, 20) else 100 + step,
                "question": "q",
                "answer": "3",
            }
            rows = [
                row | {"sample": m, "outcome": "wrong", "text": "a\u2028b"}
                for m in range(report_samples.SAMPLES + 1)
            ]
            (tmp_path / "runs" / method / "rollouts" / f"step_{step:06d}.jsonl").write_text(
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            )
    first, *others = report_samples.samples(made(tmp_path)[0])
    expected = [
        (method, step)
        for method in ("grpo", "sft")
        for step in (3, 20)
        for _ in range(report_samples.SAMPLES)
    ]
    assert [tuple(row[:2]) for row in first["rows"]] == expected and len(
        others
    ) == report_samples.PROBLEMS - 1


def test_tables_hold_any_name():
    """A name with what Markdown, CSV and LaTeX read as their own."""
    name = 'bridge (lora_targets=layers/(q|k)_proj$, x="^a")'
    tables = report_tables.tables([[name, *["-"] * len(report_tables.COLUMNS)]])
    assert next(iter(csv.reader([tables["csv"].splitlines()[1]])))[0] == name
    assert tables["md"].splitlines()[2].startswith("| bridge (lora_targets=layers/(q\\|k)_proj$")
    assert 'layers/(q|k)\\_proj\\$, x="\\^{}a")' in tables["tex"]
