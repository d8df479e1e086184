"""docs/speed.json: what this project did of its work for each FLOP of a matmul, and does now. Run
alone, `pytest -m bench`.

The cases run as users run them: in processes of their own, without the devices and compiler options
of tests (tests/conftest.py).
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from experiments.bench.command import instructions

ROOT = pathlib.Path(__file__).parents[2]
KEPT = json.loads(
    (ROOT / "docs/speed.json").read_text()
)  # case and flags -> instructions -> last line of `experiments.bench`
OF_TESTS = ("XLA_FLAGS", "NPROC")  # set by tests/conftest.py


def compared(line: dict) -> list[str]:
    """Rates of the case, and seconds of its phases of more than half a second."""
    phases = [name.replace("_limit_s", "_s") for name in line if name.endswith("_limit_s")]
    return [name for name in ("tokens_per_s", "rows_per_s") if name in line] + [
        name for name in phases if line[name] > 0.5
    ]


def ratio(line: dict, name: str) -> float:
    """A rate, or one over seconds, over the rate of a matmul of 2048 in the same run.

    Not a phase's share of its limit: work that a phase does needlessly, and counts, raises its
    limit too.
    """
    return (line[name] if name.endswith("_per_s") else 1 / line[name]) / line["matmul_gflops"]


def fallen(kept: dict, now: dict) -> list[str]:
    """What is down by more than a quarter."""
    assert compared(kept)
    return [name for name in compared(kept) if ratio(now, name) < 0.75 * ratio(kept, name)]


def test_what_falls_is_found():
    """A slowdown beyond the margin is found, relative to the machine's speed."""
    kept = {
        "update_s": 60.0,
        "update_limit_s": 40.0,
        "merge_s": 0.1,
        "merge_limit_s": 0.1,
        "matmul_gflops": 100.0,
    }
    assert not fallen(kept, kept | {"update_s": 79.0, "merge_s": 0.4})
    assert fallen(kept, kept | {"update_s": 81.0}) == ["update_s"]
    assert fallen(kept, kept | {"matmul_gflops": 134.0}) == [
        "update_s"
    ]  # a faster machine that is not used
    assert fallen(kept, kept | {"update_s": 81.0, "update_limit_s": 80.0}) == [
        "update_s"
    ]  # more work is no excuse
    rollout = {"tokens_per_s": 300.0, "matmul_gflops": 100.0}
    assert not fallen(rollout, rollout | {"tokens_per_s": 226.0}) and fallen(
        rollout, rollout | {"tokens_per_s": 224.0}
    )


@pytest.mark.bench
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", KEPT)
def test_nothing_has_become_slower_by_a_quarter(case):
    """SmolLM2-135M from models_local/smollm2 (experiments.get_smollm2) or BRIDGE_SMOLLM2; medians
    of three.
    """
    model = os.environ.get("BRIDGE_SMOLLM2", str(ROOT / "models_local/smollm2"))
    if not pathlib.Path(model).is_dir():
        pytest.skip(f"no model in {model}")
    kept = KEPT[case].get(instructions())
    if kept is None:
        pytest.skip(
            f"docs/speed.json has no figures for {instructions() or 'this kind of machine'}"
        )
    command = [
        sys.executable,
        "-m",
        "experiments.bench",
        *case.split(),
        "--repeats=3",
        f"--model={model}",
    ]
    environment = {name: value for name, value in os.environ.items() if name not in OF_TESTS}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    assert not fallen(kept, json.loads(done.stdout.splitlines()[-1]))
