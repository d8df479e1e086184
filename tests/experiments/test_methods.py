"""docs/methods.md is what the code says, and what it says of three methods is what their
mathematics says.
"""

from __future__ import annotations

import pathlib
import warnings

import pytest

from bridge_jax import methods
from configs.sweeps import ladder
from experiments.methods import table

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_committed_table_is_up_to_date():
    """Every line that it has, those of the study's methods among them; a new method may come
    later.
    """
    page = (ROOT / "docs" / "methods.md").read_text()
    there = table.named(page)
    assert {given["method"] for given in ladder.METHODS.values()} <= set(there)
    assert page == table.document(there), "run python -m experiments.methods"
    if lacking := set(methods.names()) - set(there):
        warnings.warn(
            f"docs/methods.md has no line of {', '.join(sorted(lacking))}; "
            "python -m experiments.methods adds it",
            stacklevel=1,
        )


@pytest.mark.slow
def test_lines():
    """BRIDGE: two passes over the samples, one over the demos, two copies; theta_hat never sees a
    demo.
    """
    lines = {name: table.line(name) for name in methods.names()}
    assert lines["bridge"][2:7] == [
        "theta",
        "of their own",
        "theta: demos and samples; theta_hat: samples; w: demos and samples and theta_hat",
        "2 backward on samples, 1 backward on demos",
        "2",
    ]
    assert lines["joint"][4] == "theta: demos and samples; w: demos and samples"
    gain = table.line("bridge", {"variant.w_learns": "gain"})
    assert gain[1] == "method.bridge.variant.w_learns='gain'" and gain[4].endswith(
        "w: samples and theta_hat"
    )
    assert lines["sft"][2:7] == [
        "nobody",
        "of their own",
        "theta: demos",
        "1 backward on demos",
        "1",
    ]
    assert lines["grpo"][2:7] == ["theta", "none", "theta: samples", "1 backward on samples", "1"]
    assert lines["alternate"][5] == "1 backward on samples; then 1 backward on demos"
    assert all(len(line) == len(table.COLUMNS) and all(line) for line in lines.values())
