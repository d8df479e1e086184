"""Rates beside a chip's peaks: which are noted, which FAIL, and that collectives are compared."""

from __future__ import annotations

import numpy as np
import pytest

from bridge_jax.preflight import rates
from bridge_jax.preflight.record import FAIL, NOTE, OK
from tests.preflight import subjects


@pytest.mark.parametrize(
    "found, peak, grade",
    [
        ([60.0], 100.0, OK),
        ([30.0], 100.0, NOTE),
        ([5.0], 100.0, FAIL),
        # of a CPU nothing is known
        ([0.1], None, OK),
        # one device delays all
        ([60.0, 90.0], 100.0, NOTE),
        ([80.0, 90.0], 100.0, OK),
    ],
)
def test_grades(found, peak, grade):
    """By the slowest device's share of the peak, and of the fastest device's rate."""
    record = rates.judge("matmul", found, peak, "TFLOP/s", "look at nvidia-smi")
    assert record.grade == grade and f"{min(found):.3g} TFLOP/s" in record.text
    assert bool(record.way_out) == (grade != OK)
    assert ("no peaks known" in record.text) == (peak is None)


def test_a_wrong_sum_over_devices_fails(monkeypatch):
    """What the devices gather is compared, not only timed."""
    monkeypatch.setattr(rates, "best", lambda call: 1.0)
    subject = subjects.make(devices=2, batch__prompts_per_step=4)
    assert rates.collectives(subject).grade == OK
    monkeypatch.setattr(rates.np, "array_equal", lambda a, b: False)
    assert rates.collectives(subject).grade == FAIL


def test_the_best_of_a_few(monkeypatch):
    """The first call compiles, and is not counted."""
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0, 29.0])
    monkeypatch.setattr(rates.time, "monotonic", lambda: next(clock))
    assert rates.best(lambda: np.zeros(1)) == 2.0
