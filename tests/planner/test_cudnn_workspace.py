"""The formula of cuDNN's workspace beside its own answers."""

from __future__ import annotations

import pytest

from bridge_jax.planner.cudnn_workspace import workspace


@pytest.mark.parametrize("heads, answer", [(16, 2.1e9), (24, 3.2e9), (32, 4.3e9)])
def test_formula_beside_answers(heads, answer):
    """One layer, 5 rows, T = 3,000, S + T = 4,024, on an H100: no less than cuDNN says, 7% at most above."""
    assert answer <= workspace(5, heads, 3000, 4024, 128) <= 1.07 * answer
