"""Progress is a bar on a terminal, and a line now and then elsewhere."""

from __future__ import annotations

import sys

import pytest

from bridge_jax.rundir import progress


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    """Without a terminal, progress is a line with pace and time left at intervals."""
    clock = iter([0.0, 1.0, 2.0, 30.0, 31.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress(10, 6, "train") as show:
        for step in (7, 8, 9, 10):
            show(step, f"reward {step}")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["7/10", "9/10", "10/10"]
    assert lines[0] == "train 7/10  1 s/step, 3 s left  reward 7"
    assert lines[1] == "train 9/10  10 s/step, 10 s left  reward 9"


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch):
    """On a terminal, progress is a bar with its count and label."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.progress(4, 1, "train") as show:
        show(3, "reward 0.5")
        show(4, "reward 1")
    text = capsys.readouterr().err
    assert "4/4" in text and "train" in text


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (190.0, "3 min 10 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (3900.0, "1 h 05 min"),
        (100 * 3600.0, "100 h 00 min"),
    ],
)
def test_times_in_their_two_largest_units(seconds, text):
    """Rounded once, so that no minute has 60 seconds."""
    assert progress.duration(seconds) == text


def test_the_time_left_is_in_hours_and_minutes(capsys, monkeypatch):
    """39 more steps at 100 s each."""
    clock = iter([0.0, 100.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress(40, 0, "train") as show:
        show(1)
    assert capsys.readouterr().err == "train 1/40  100 s/step, 1 h 05 min left\n"


def test_progress_without_a_known_end(capsys, monkeypatch):
    """A stream's length is not known: rows and pace alone."""
    clock = iter([0.0, 1.0, 2.0, 30.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress(None, 10, "traces", unit="row") as show:
        for row in (20, 21, 22):
            show(row, f"{row} kept")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["traces 20  0.1 s/row  20 kept", "traces 22  2.5 s/row  22 kept"]
