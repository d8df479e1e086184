"""The quickstart's table and picture from metrics written by hand; `make quickstart` itself is run by people."""

from __future__ import annotations

import pathlib
import sys

import pytest


def lines(sampled: bool) -> list[dict]:
    judged = lambda step, value: {
        "step": step,
        "eval/held_out_accuracy": value,
        "eval/held_out_n": 100,
    }
    step = {"step": 1, "budget/demo_tokens": 1234.0, "time/train_s": 12.3}
    return [
        judged(0, 0.25),
        step
        | judged(1, 0.5)
        | ({"reward/mean": 0.375, "budget/generated_tokens": 99.0} if sampled else {}),
    ]


def test_table_and_picture(tmp_path: pathlib.Path):
    """The table has each method's accuracy with its interval, and the picture is drawn."""
    from experiments import quickstart

    metrics = {"sft": lines(False), "grpo": lines(True), "bridge": lines(True)}
    text = quickstart.table(metrics).splitlines()
    assert text[0].split()[:2] == ["method", "accuracy"]
    assert text[1].split() == ["base", "0.250", "[0.175,", "0.344]"]  # Wilson's, with t of 99
    assert "0.500 [0.403, 0.597]" in text[2]
    assert "samples none" in text[2] and "0.375" in text[3] and "1,234" in text[4]
    quickstart.draw(metrics, tmp_path / "rewards.png")
    assert (tmp_path / "rewards.png").read_bytes()[:4] == b"\x89PNG"


def test_nothing_is_built_on_a_run_that_was_stopped(tmp_path: pathlib.Path, monkeypatch):
    """A base that a signal cut short is no base: it is not exported, and no method begins."""
    from experiments import quickstart

    begun = []
    train = lambda config, workdir: begun.append(workdir) or {"stopped": True}
    monkeypatch.setattr(quickstart.trainer, "train", train)
    monkeypatch.setattr(quickstart, "export", lambda *_: begun.append("export"))
    monkeypatch.setattr(quickstart, "leave", sys.exit)
    with pytest.raises(SystemExit) as end:
        quickstart.run(tmp_path)
    assert not end.value.code and begun == [str(tmp_path / "base")]
