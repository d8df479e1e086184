"""The report of 40 runs of 500 steps, opened in a real browser; and what it says of runs that lack
something.
"""

from __future__ import annotations

import csv
import html
import json
import os
import re
import shutil
import subprocess
import unicodedata
import zlib

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


# without any network
HEADLESS = ("--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND")


def opened(browser: str, path) -> str:
    """The page's DOM after its scripts have run."""
    command = [browser, *HEADLESS, "--dump-dom", f"file://{path}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=240).stdout


def printed(browser: str, path) -> list[str]:
    """The text of each page of the printed page, without spaces."""
    pdf = path.with_suffix(".pdf")
    command = [browser, *HEADLESS, "--no-pdf-header-footer", f"--print-to-pdf={pdf}"]
    subprocess.run([*command, f"file://{path}"], capture_output=True, timeout=240)
    return text_of_pages(pdf.read_bytes())


def text_of_pages(pdf: bytes) -> list[str]:
    """Text of a PDF as Chromium writes it: glyphs in hexadecimal, a table of letters a font."""
    objects = dict(re.findall(rb"\n(\d+) 0 obj\n(.*?)endobj", pdf, re.DOTALL))
    stream = lambda key: zlib.decompress(re.split(rb"stream\r?\n", objects[key], maxsplit=1)[1])
    letters: dict[bytes, dict[int, str]] = {}
    for font, key in set(re.findall(rb"/(F\d+) (\d+) 0 R", pdf)):
        found = letters[font] = {}
        table = stream(re.search(rb"/ToUnicode (\d+) 0 R", objects[key])[1])
        for line in re.findall(rb"^<.*>$", table, re.MULTILINE):
            *bounds, letter = re.findall(r"<(\w+)>", line.decode())
            first, last = int(bounds[0], 16), int(bounds[-1], 16)
            *start, end = bytes.fromhex(letter).decode("utf-16-be")
            for i in range(last - first + 1):
                found[first + i] = "".join([*start, chr(ord(end) + i)])
    pages = []
    for body in objects.values():
        if not re.search(rb"/Type /Page\b", body):
            continue
        text, font = "", b""
        drawn = stream(re.search(rb"/Contents (\d+) 0 R", body)[1])
        for name, glyphs in re.findall(rb"/(F\d+) [\d.]+ Tf|<(\w+)> Tj", drawn):
            font = name or font
            numbers = (int(glyphs[i : i + 4], 16) for i in range(0, len(glyphs), 4))
            text += "".join(letters[font].get(number, "?") for number in numbers)
        # the compatible form of a ligature is its letters
        pages.append(unicodedata.normalize("NFKC", text).replace(" ", ""))
    return pages


def made(tmp_path, **options):
    groups = comparison.grouped(
        [comparison.load(folder) for folder in comparison.find(f"{tmp_path}/runs/*")]
    )
    text, tables = report.page(groups, METRIC)
    (tmp_path / "report.html").write_text(text)
    return groups, text, tables


@pytest.mark.slow
def test_forty_runs_open_in_two_seconds(tmp_path, browser):
    """Curves, bars, table, differences, samples and configs are there; the page is ready within 2 s
    of its start.
    """
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


def is_round(values: list[float]) -> bool:
    """Whether the values are multiples of their distance, and that is 1, 2 or 5 times 10^k."""
    step = values[1] - values[0]
    leading = step / 10 ** np.floor(np.log10(step) + 1e-6)
    return (
        np.isclose(leading, [1, 2, 5]).any()
        and np.allclose(np.diff(values), step)
        and np.allclose(np.array(values) / step, np.rint(np.array(values) / step), atol=1e-6)
    )


@pytest.mark.slow
def test_ticks_are_round_and_few_seeds_are_thin_lines(tmp_path, browser):
    """Three seeds are three thin lines without a band, four are a band, one is its line alone.

    Accuracies near 0 and near 1: neither bands nor ticks leave [0, 1].
    """
    low, high = (0.02, 0.0, 0.01, 0.0), (0.97, 1.0, 0.95, 1.0)
    for method, last, seeds in (("sft", low, 4), ("grpo", high, 4), ("bridge", high, 3)):
        for seed in range(seeds):
            folder = tmp_path / "runs" / f"{method}{seed}"
            write_run(folder, method, seed, steps=37, skip=(METRIC,))
            with (folder / "metrics.jsonl").open("a") as file:
                for step, value in ((0, 0.43), (37, last[seed])):
                    file.write(json.dumps({"step": step, METRIC: value}) + "\n")
    write_run(tmp_path / "runs" / "luffy", "luffy", 0, steps=37)
    groups, text, _ = made(tmp_path)
    curves = report_tables.curves(groups, METRIC)[METRIC]["step"]
    for name, count in (("sft", 0), ("grpo", 0), ("bridge", 3), ("luffy", 0)):
        assert len(curves[name]["seeds"]) == count
    for bound in (curves[name][end] for name in ("sft", "grpo") for end in ("low", "high")):
        assert 0 <= min(bound) <= max(bound) <= 1
    ranges = [[0.137, 0.842, 6], [-3.7e-7, 9.1e-6, 5], [0, 8.45e15, 9], [-0.4, 0.93, 8]]
    probe = (
        f"const scales = {ranges}.map(given => ticks(...given));"
        "document.body.dataset.ticks = JSON.stringify(scales.map(s => [s.values, labels(s)]));"
    )
    page = tmp_path / "report.html"
    page.write_text(text.replace("</html>", f"<script>{probe}</script></html>"))
    dom = opened(browser, page)
    plot = re.search(r'<svg id="plot".*?</svg>', dom, re.DOTALL)[0]
    for axis, least, most in (("y", 0, 1), ("x", 0, 37)):
        shown = re.findall(rf'class="tick {axis}" data-value="([^"]+)"[^>]*>([^<]+)<', plot)
        values = [float(value) for value, _ in shown]
        assert 4 <= len(values) <= 12 and is_round(values)
        assert least <= min(values) <= max(values) <= most
        assert [float(label) for _, label in shown] == values
    for (first, last, most), (values, labels) in zip(
        ranges, json.loads(html.unescape(re.search(r'data-ticks="([^"]+)"', dom)[1]))
    ):
        assert is_round(values) and first <= values[0] < values[-1] <= last
        assert most / 2.5 - 1 <= len(values) <= most + 1 and len(set(labels)) == len(labels)
    lines = {
        name: (body.count('class="band"'), body.count('class="seed"'), body.count('class="mean"'))
        for name, body in re.findall(r'class="curve" data-name="(\w+)">(.*?)</g>', plot)
    }
    banded, thin = (1, 0, 1), (0, 3, 1)
    assert lines == {"sft": banded, "grpo": banded, "bridge": thin, "luffy": (0, 0, 1)}


@pytest.mark.slow
def test_the_printed_page_has_everything_but_the_controls(tmp_path, browser):
    """Sections that are closed on the screen are printed, pages begin with a section's title."""
    for method in ("sft", "grpo"):
        write_run(tmp_path / "runs" / method, method, 0, steps=4, samples=True)
    _, text, _ = made(tmp_path)
    closed = tmp_path / "closed.html"
    closed.write_text(text.replace("<details open", "<details"))
    pages = printed(browser, closed)
    assert pages == printed(browser, tmp_path / "report.html")
    titles = [title.replace(" ", "") for title in re.findall("<h2>(.*?)</h2>", text)]
    assert len(titles) == 7 and all(title in "".join(pages) for title in titles)
    assert [page.startswith(title) for page, title in zip(pages[-3:], titles[-3:])] == [True] * 3
    assert 4 <= len(pages) <= 8
    # a cell of the last table, a sample, a tick
    assert "method.name" in pages[-1] and "<b>notmarkup</b>" in pages[-2] and "0.2" in pages[0]
    # the names of formats, and the caption's advice
    assert not any(word in "".join(pages) for word in ("Markdown", "LaTeX", "aclick"))


def test_a_metric_that_no_run_has_is_refused(tmp_path):
    """With the nearest that one has; a metric of one run alone is enough."""
    write_run(tmp_path / "runs" / "bridge", "bridge", 0, steps=4)
    write_run(tmp_path / "runs" / "sft", "sft", 0, steps=4, skip=(METRIC,))
    groups, _, _ = made(tmp_path)
    report.check_metric(groups, METRIC)
    with pytest.raises(
        ValueError, match=f"eval/heldout_accuracy: no run has it; nearest: {METRIC}"
    ):
        report.check_metric(groups, "eval/heldout_accuracy")


def test_what_is_missing_is_marked(tmp_path, browser):
    """A run without the metric, an unfinished one and a lonely seed: named on the page, "-" in the
    table, no curve.
    """
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
        and "<li>one seed, hence no interval: bridge</li>" in dom
    )
    assert re.search(r'<p id="missing">No curve, [^<]*: sft</p>', dom)
    (line,) = [line for line in tables["md"].splitlines() if line.startswith("| sft |")]
    assert line.split("|")[2].strip() == "-"
    assert report_tables.curves(groups, METRIC)[METRIC]["step"].keys() == {"grpo", "bridge"}
    assert tables["tex"].count("\\\\") == 4 and tables["csv"].splitlines()[0].startswith("method,")


def test_table_by_hand(tmp_path):
    """What was solved gives an interval over seeds and problems; else Student's over seeds, of a
    share within [0, 1].
    """
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
    """Paired by seed whatever the order of folders; runs of equal seeds are kept apart; of one
    seed, problems alone.
    """
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
    """Its last accuracy is of an earlier step: no final figure, no difference, and said so; where
    it began is still shown.
    """
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
    notes = report_tables.notes(groups, METRIC)
    assert any("sft1: at step 3 of 4, not finished" in note for note in notes) and notes[
        -1
    ].endswith("solved: sft")


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
    """30 steps of one problem each; problem 5 comes in steps 3 and 20 of both methods, and is shown
    first, with both steps.
    """
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
