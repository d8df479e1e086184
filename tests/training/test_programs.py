"""The programs of a run are compiled before its first step."""

from __future__ import annotations

import pytest

from bridge_jax.rundir import logbook
from bridge_jax.training.rollouts import StepSampler
from tests.tiny_runs import go, quick  # noqa: F401 (fixtures)


@pytest.mark.slow
def test_nothing_compiles_after_warm_up(quick, tmp_path, monkeypatch):
    """Two prompt buckets, evaluations, checkpoints: the count of the first step is that of the
    last; also resumed.
    """
    used, rows = [], StepSampler.rows
    monkeypatch.setattr(StepSampler, "rows", lambda *given: used.append(rows(*given)) or used[-1])
    given = dict(data__buckets=(4, 6), eval__every=2)
    go(tmp_path, "grpo", stop_at=3, **given)
    go(tmp_path, "grpo", **given)
    counts = [line["compile/count"] for line in logbook.read(str(tmp_path))[1:]]
    assert len(set(counts[:3])) == 1 and len(set(counts[3:])) == 1, counts
    assert {rows.bucket for rows in used} == {4, 6}
