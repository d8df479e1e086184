"""The formula of cuDNN's workspace beside its own answers."""

from __future__ import annotations

import jax
import pytest

from bridge_jax.planner import cudnn_workspace
from bridge_jax.planner.cudnn_workspace import workspace
from bridge_jax.training import build
from tests import tiny_runs


@pytest.mark.parametrize("heads, answer", [(16, 2.1e9), (24, 3.2e9), (32, 4.3e9)])
def test_formula_with_a_mask(heads, answer):
    """One layer, 5 rows, T = 3,000, S + T = 4,024, on an H100: no less than cuDNN says, 7%
    above.
    """
    assert answer <= workspace(5, heads, 3000, 4024, 128, masked=True) <= 1.07 * answer


@pytest.mark.parametrize(
    "rows, heads, queries, keys, width, answer",
    [
        (5, 16, 3000, 3000, 128, 0.247e9),
        (5, 24, 3000, 3000, 128, 0.370e9),
        (5, 32, 3000, 3000, 128, 0.493e9),
        # five rows of one prompt
        (1, 16, 15000, 1024, 128, 0.132e9),
        (5, 16, 3000, 1024, 128, 0.166e9),
        (5, 16, 3000, 4024, 128, 0.289e9),
        (5, 16, 3000, 3000, 256, 0.492e9),
        (5, 16, 3000, 3000, 64, 0.124e9),
    ],
)
def test_formula_without_a_mask(rows, heads, queries, keys, width, answer):
    """Several query heads per kv head; causal or of the prompt's length makes no difference."""
    assert workspace(rows, heads, queries, keys, width) == pytest.approx(answer, rel=0.01)


@pytest.mark.parametrize(
    "given, masked",
    [({}, False), (dict(batch__pack=64), True)],
)
def test_an_update_has_a_mask_only_in_packed_rows(given, masked, monkeypatch):
    """The calls that of_update counts."""
    seen = []

    def counted(*sizes, masked=False, **more):
        seen.append(masked)
        return workspace(*sizes, masked=masked, **more)

    monkeypatch.setattr(cudnn_workspace, "workspace", counted)
    setup = build.make_setup(tiny_runs.config("grpo", **given), jax.devices()[:1])
    assert cudnn_workspace.of_update(setup, 6) > 0
    assert set(seen) == {masked}
