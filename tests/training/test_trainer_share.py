"""Whole runs of BRIDGE whose theta_hat learns from a part of the groups in every second step."""

from __future__ import annotations

import jax
import pytest

from bridge_jax.training import build
from tests import errors, tiny_runs
from tests.tiny_runs import STEPS, go, quick  # noqa: F401 (fixture)

GIVEN = {
    "method__bridge__shadow__share": 0.5,
    "method__bridge__shadow__every": 2,
    "batch__microbatch_rows": 4,
}


@pytest.mark.slow
def test_it_goes_on_where_it_was(quick, tmp_path):
    """A run that ends within the two steps of a period and is started again is the unbroken one:
    the part and the step in which theta_hat learns follow from the step. Lines of other steps have
    no gain.
    """
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert go(whole, **GIVEN)["step"] == STEPS
    go(broken, stop_at=3, **GIVEN)
    assert go(broken, **GIVEN)["step"] == STEPS
    assert tiny_runs.lines(broken) == tiny_runs.lines(whole)
    mine, theirs = (tiny_runs.state(run, **GIVEN) for run in (broken, whole))
    assert [key for key in mine if mine[key].tobytes() != theirs[key].tobytes()] == []
    lines = [line for line in tiny_runs.lines(whole) if line["step"]]
    assert ["bridge/gain" in line for line in lines] == [True, False, True, False, True]
    assert not any("nonfinite" in line or line["update/skipped"] for line in lines)


def test_a_part_that_no_device_has_is_refused_before_anything_is_compiled():
    """Under the full key, with the allowed shares."""
    config = tiny_runs.config(**GIVEN | {"batch__microbatch_rows": 8})
    with errors.raises(ValueError, "method.bridge.shadow.share=0.5", "allowed: 1"):
        build.make_setup(config, jax.devices()[:1])
