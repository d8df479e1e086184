"""The quickstart's page from files written by hand, and its launcher with processes that train
nothing; `make quickstart` itself is run by people."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import sys
import threading

import numpy as np
import pytest

from experiments.quickstart import launch, page

PROBLEMS = 200


def write_run(folder: pathlib.Path, greedy: float, sampled: float) -> None:
    """Files of a run that solves these shares of 200 problems, the first of them; 2 samples
    each.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": {"eval": {"samples": 2}}}))
    lines, solved = [], []
    for step, share, of_samples in ((0, 0.2, 0.1), (5, greedy, sampled)):
        right = round(share * PROBLEMS)
        accuracy = {"eval/held_out_accuracy": right / PROBLEMS, "eval/held_out_n": PROBLEMS}
        lines.append({"step": step, **accuracy, "time/train_s": 2.0 * step})
        both = round(of_samples * PROBLEMS)
        solved.append(
            {
                "step": step,
                "held_out": "1" * right + "0" * (PROBLEMS - right),
                "held_out_sampled": "2" * both + "0" * (PROBLEMS - both),
            }
        )
    for name, rows in (("metrics.jsonl", lines), ("solved.jsonl", solved)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def results(tmp_path: pathlib.Path) -> dict[str, page.Result]:
    """bridge is above all greedily, and level with hybrid when sampled."""
    for name, greedy, sampled in (
        ("sft", 0.4, 0.3),
        ("grpo", 0.5, 0.4),
        ("hybrid", 0.6, 0.55),
        ("bridge", 0.7, 0.55),
    ):
        write_run(tmp_path / name, greedy, sampled)
    return page.read(tmp_path)


def test_read_and_table(results):
    """The base is the first evaluation of a run, the methods are the last of theirs."""
    assert list(results) == ["base", "sft", "grpo", "hybrid", "bridge"]
    assert results["base"].accuracy(page.GREEDY).mean == 0.2
    assert results["base"].accuracy(page.SAMPLED).mean == 0.1
    rows = [line.split("  ") for line in page.table(results).splitlines()]
    assert rows[1][0] == "base" and "20.0 [" in " ".join(rows[1])
    text = " ".join(rows[5])
    assert "70.0 [" in text and "55.0 [" in text and text.endswith("10")


def test_findings(results):
    """Each comparison says what its paired interval allows, and the summary what they add up to."""
    *lines, summary, _ = page.findings(results).splitlines()
    pairs = {tuple(line.partition(":")[0].split(" minus ")): line for line in lines}
    assert set(pairs) == set(page.PAIRS)
    assert "+30.0 [" in pairs["bridge", "sft"]
    assert "above sft (greedy, sampled)" in pairs["bridge", "sft"]
    assert pairs["bridge", "hybrid"].endswith(": above hybrid (greedy)")
    assert "together is above either alone" in summary and "bridge is above hybrid" in summary


def test_summary_where_one_comparison_is_level():
    """Not all of both are above either alone: the number of those that are is said."""
    verdicts = {pair: f"above {pair[1]} (greedy)" for pair in page.PAIRS}
    verdicts |= {("hybrid", "grpo"): "level with grpo", ("bridge", "hybrid"): "level with hybrid"}
    text = page.summary(verdicts)
    assert "3 of 4" in text and "bridge is level with hybrid" in text


def test_verdict_of_level_and_below():
    """An interval that holds 0 says nothing; one below it says below."""
    gap = lambda low, high: page.Interval((low + high) / 2, low, high, 9)
    level = {page.GREEDY: gap(-0.1, 0.1), page.SAMPLED: gap(-0.2, 0.1)}
    assert page.verdict("grpo", level) == "level with grpo"
    below = level | {page.SAMPLED: gap(-0.3, -0.1)}
    assert page.verdict("grpo", below) == "below grpo (sampled)"


def test_missing_run(results, tmp_path):
    """A run without metrics is named."""
    (tmp_path / "grpo" / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="grpo"):
        page.read(tmp_path)


def test_picture(results, tmp_path):
    """The picture is a PNG in which not all is white."""
    from matplotlib import image

    page.draw(results, tmp_path / "picture.png")
    pixels = image.imread(tmp_path / "picture.png")
    assert pixels.shape[1] == 1200 and np.mean(pixels[..., :3] < 0.9) > 0.01


# ---- launcher


def command(text: str) -> list[str]:
    """A process that runs this code; FOLDER stands for its run directory."""
    return [sys.executable, "-c", text]


def test_all_are_trained(tmp_path, monkeypatch, capfd):
    """Every method runs once, in the given order, on a share of the cores, and shows its step."""
    code = """
import json, os, pathlib, sys, time
folder = pathlib.Path({folder!r}); folder.mkdir()
(folder / "metrics.jsonl").write_text(json.dumps({{"step": 7, "reward/mean": 0.25}}) + "\\n")
(folder / "cores").write_text(str(len(os.sched_getaffinity(0))))
while not (folder.parent / "seen").exists(): time.sleep(0.05)
"""
    monkeypatch.setattr(launch, "LOOK_S", 0.05)
    monkeypatch.setattr(launch, "LINE_S", 0.0)
    monkeypatch.setattr(
        launch, "command_of", lambda _, folder: command(code.format(folder=str(folder)))
    )
    shown = launch.Display.show

    def show(self, text):
        shown(self, text)
        if "7/50 reward 25%" in text:
            (tmp_path / "seen").touch()

    monkeypatch.setattr(launch.Display, "show", show)
    assert launch.train(("bridge", "sft"), tmp_path) == []
    share = max(1, len(launch.available_cores()) // 2)
    assert {(tmp_path / name / "cores").read_text() for name in ("bridge", "sft")} == {str(share)}
    assert "bridge 7/50 reward 25%" in capfd.readouterr().err


def test_the_line_fits_any_terminal(monkeypatch, capfd):
    """It is cut to the width of the terminal, and shown where the terminal knows no width."""
    monkeypatch.setattr(launch.streams, "has_terminal", lambda _: True)
    monkeypatch.setattr(launch.os, "get_terminal_size", lambda _: os.terminal_size((width, 0)))
    for width, shown in ((0, "38 s  bridge"), (7, "38 s  ")):
        display = launch.Display()
        display.show("38 s  bridge")
        assert capfd.readouterr().err.rstrip(" ") == "\r" + shown.rstrip(" ")


@pytest.mark.parametrize(
    "codes, begun, code",
    [((5, 0, 3), "bridge sft grpo", 5), ((3, 3, 0), "bridge sft grpo", 1), ((2, 2, 0), None, 2)],
)
def test_failures_are_reported(tmp_path, monkeypatch, codes, begun, code):
    """The last line of the log, once for all runs that have it; the exit code of all of them.

    After an invalid request no other run is started.
    """
    exits = dict(zip(("bridge", "sft", "grpo"), codes))
    monkeypatch.setattr(launch, "LOOK_S", 0.05)
    monkeypatch.setattr(launch, "available_cores", lambda: [0, 1])
    monkeypatch.setattr(
        launch,
        "command_of",
        lambda name, _: command(
            f"print('error: no luck'); print(); raise SystemExit({exits[name]})"
        ),
    )
    failed = launch.train(("bridge", "sft", "grpo"), tmp_path)
    assert [one.code for one in failed] == [code for code in codes if code]
    text, found = launch.explain(failed)
    assert found == code and text.count("no luck") == 1 and "error" not in text
    assert all(one.method in text for one in failed)
    logs = {path.stem for path in tmp_path.glob("*.log")}
    assert logs == set(begun.split()) if begun else "grpo" not in logs


def test_an_interrupt_reaches_the_runs(tmp_path, monkeypatch):
    """Each run under way is asked to end, and has ended when the interrupt is raised."""
    code = """
import pathlib, signal, sys, time
folder = pathlib.Path({folder!r})
signal.signal(signal.SIGTERM, lambda *_: ((folder.with_suffix(".saved")).touch(), sys.exit(0)))
folder.with_suffix(".ready").touch()
time.sleep(600)
"""
    monkeypatch.setattr(launch, "LOOK_S", 0.05)
    monkeypatch.setattr(
        launch, "command_of", lambda _, folder: command(code.format(folder=str(folder)))
    )
    shown = launch.Display.show

    def show(self, text):
        shown(self, text)
        if (tmp_path / "bridge.ready").exists():
            signal.raise_signal(signal.SIGINT)

    assert threading.current_thread() is threading.main_thread()
    monkeypatch.setattr(launch.Display, "show", show)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            launch.train(("bridge",), tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "bridge.saved").exists()
