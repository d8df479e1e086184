"""finished.json is believed as long as nothing in the run directory contradicts it."""

from __future__ import annotations

import json

import pytest

from bridge_jax.rundir import finished


@pytest.fixture
def run(tmp_path):
    """A directory as a run of two steps leaves it."""
    state = tmp_path / "checkpoints" / "step_000002" / "state"
    state.mkdir(parents=True)
    (state / "array").write_bytes(b"12345")
    (tmp_path / "config.json").write_text("{}")
    lines = [{"step": step, "reward/mean": 0.5} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    finished.write(str(tmp_path), 2)
    return tmp_path


def test_the_last_line_comes_back(run):
    """For as many steps as were taken, or fewer; more are to do."""
    assert finished.last_line(str(run), 2)["step"] == 2 == finished.last_line(str(run), 1)["step"]
    assert finished.last_line(str(run), 3) is None
    record = json.loads((run / finished.NAME).read_text())
    assert record == {"step": 2, "files": {"state/array": 5}}


@pytest.mark.parametrize(
    "change",
    [
        lambda run: (run / finished.NAME).write_text("{"),
        lambda run: (run / "config.json").unlink(),
        lambda run: (run / "metrics.jsonl").write_text('{"step": 1}\n'),
        lambda run: (run / "checkpoints/step_000002/state/array").write_bytes(b"1234"),
        lambda run: (run / "checkpoints/step_000003").mkdir(),
    ],
    ids=["torn", "no config", "a line less", "a smaller file", "a newer checkpoint"],
)
def test_what_contradicts_it_has_the_state_read(run, change):
    """Then the run is opened as any other."""
    change(run)
    assert finished.last_line(str(run), 2) is None
