"""docs/speed.json: how near each phase of a step came to what the machine could do, and does now. Run alone, `pytest -m bench`."""
from __future__ import annotations

import json
import os
import pathlib
import statistics

import pytest

from experiments import bench, bench_model

ROOT = pathlib.Path(__file__).parents[2]
KEPT = json.loads((ROOT / "docs/speed.json").read_text())  # case -> instructions -> the last line of `experiments.bench CASE`


def fallen(kept: dict, now: dict) -> dict[str, tuple[float, float]]:
    """Phases of more than half a second whose share of the machine's rate is down by more than a quarter: then and now."""
    names = [key for key in kept if key.endswith("_share") and kept[key.replace("_share", "_s")] > 0.5]
    assert names
    return {name: (kept[name], now[name]) for name in names if now[name] < 0.75 * kept[name]}


def test_what_falls_is_found():
    kept = {"update_share": 0.8, "update_s": 60.0, "merge_share": 0.5, "merge_s": 0.1}
    assert not fallen(kept, {"update_share": 0.61, "merge_share": 0.01})
    assert fallen(kept, {"update_share": 0.59, "merge_share": 0.5}) == {"update_share": (0.8, 0.59)}


@pytest.mark.bench
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", ["step_grpo", "step_bridge"])
def test_no_phase_has_become_slower_by_a_quarter(case):
    """SmolLM2-135M from models_local/smollm2 (experiments.get_smollm2) or BRIDGE_SMOLLM2; medians of three."""
    model = os.environ.get("BRIDGE_SMOLLM2", str(ROOT / "models_local/smollm2"))
    if not pathlib.Path(model).is_dir():
        pytest.skip(f"no model in {model}")
    kept = KEPT[case].get(bench.instructions())
    if kept is None:
        pytest.skip(f"docs/speed.json has no figures for {bench.instructions() or 'this kind of machine'}")
    lines = bench_model.step(3, model, "", "float32", case.removeprefix("step_"))
    assert not fallen(kept, {key: statistics.median(line[key] for line in lines) for key in lines[0]})
