"""log.profile traces one step of a run; time/mfu is logged where the chip is known."""

from __future__ import annotations

import types

import pytest

from bridge_jax.distributed import peaks
from bridge_jax.rundir import logbook
from bridge_jax.training import profile
from tests import tiny_runs


@pytest.mark.slow
def test_a_run_leaves_a_trace_of_its_step(tmp_path, monkeypatch):
    """The last step, whose update ends in the evaluation; the line has MFU for a known chip."""
    chip = peaks.CHIPS["v5e"]._replace(flops=1e9)
    monkeypatch.setattr(peaks, "of_device", lambda _: chip)
    tiny_runs.go(tmp_path, "grpo", steps=2, log__profile=2)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    first, last = logbook.read(str(tmp_path))[-2:]
    spent = last["budget/flops"] - first["budget/flops"]
    seconds = last["time/device_s"] - first["time/device_s"]
    assert last["time/mfu"] == pytest.approx(spent / seconds / 1e9, rel=1e-6)


def test_only_its_step(tmp_path, monkeypatch):
    """The profiler runs from the start of its step to the end of that update, once."""
    calls = []
    fake = types.SimpleNamespace(
        start_trace=lambda folder: calls.append(folder), stop_trace=lambda: calls.append("stop")
    )
    monkeypatch.setattr(profile.jax, "profiler", fake)
    traced, without = profile.Profile(str(tmp_path), 2), profile.Profile(str(tmp_path), 0)
    for number in (1, 2, 3):
        for one in (traced, without):
            one.start(number)
            # the update of the step before ends while this step samples
            one.stop(number - 1)
    assert calls == [str(tmp_path / "profile"), "stop"]
