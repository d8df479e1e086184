"""Described GPUs: their descriptions, the error without a compiler, and plans with one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from bridge_jax.planner import chips, gpus
from tests import errors
from tests.same_digits import ROOT

needs_compiler = pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in gpus.COMPILERS),
    reason='the GPUs\' compiler is not installed: pip install "jax[cuda13]"',
)


def test_every_description_has_a_chip():
    """Described GPUs are in the table of peaks; memory and bandwidth agree within 10%."""
    for name, gpu in gpus.GPUS.items():
        chip = chips.CHIPS[name]
        assert gpu.memory == pytest.approx(chip.hbm, rel=0.1), name
        assert gpu.memory_bandwidth == pytest.approx(chip.memory, rel=0.01), name


def test_description_as_xla_reads_it():
    """An H100 in the protobuf's words; braces are balanced."""
    text = gpus.target_config(gpus.GPUS["h100"])
    values = dict(re.findall(r"(\w+): ([\w.]+)", text))
    wanted = {
        "core_count": "132",
        "fpus_per_core": "128",
        "memory_bandwidth": "3352320000000",
        "device_memory_size": "84942979072",
        "shared_memory_per_block": "49152",
        "shared_memory_per_block_optin": "232448",
        "clock_rate_ghz": "1.98",
    }
    assert {key: values[key] for key in wanted} == wanted
    assert "cuda_compute_capability { major: 9 minor: 0 }" in text
    assert text.count("{") == text.count("}") == 4


def test_without_the_compiler_it_says_how_to_install_it(monkeypatch):
    """The pip command, and what works without it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with errors.raises(ValueError, "h100:8", "jax[cuda13]", "cpu:8"):
        chips.devices(chips.parse("h100:8"))


def plan(tmp_path, topology: str, *more: str) -> subprocess.CompletedProcess:
    """experiments.plan of the quickstart's bridge, in a process of its own."""
    # without the flags of the tests for CPUs
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-m", "experiments.plan", "--config=configs/quickstart.py:bridge"]
    command += [f"--topology={topology}", "--against=", f"--out={tmp_path}/plans.jsonl", *more]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@needs_compiler
@pytest.mark.slow
def test_tiny_bridge_compiles_for_gpus(tmp_path):
    """Every phase for two H100: memory, seconds, what is typical, and the compiler's version."""
    done = plan(tmp_path, "h100:2")
    assert done.returncode == 0, done.stderr[-2000:]
    (made,) = [json.loads(line) for line in (tmp_path / "plans.jsonl").read_text().splitlines()]
    assert made["device_kind"] == "NVIDIA H100 80GB HBM3" and made["devices"] == 2
    assert [phase["phase"] for phase in made["phases"]] == [
        "merge",
        "prefill",
        "decode",
        "logp",
        "update",
    ]
    assert all(phase["fits"] and phase["peak"] > 0 for phase in made["phases"])
    # fp32 does not run at the rate of bfloat16
    update = made["phases"][-1]
    assert update["compute_s"] == pytest.approx(update["flops"] / chips.CHIPS["h100"].fp32_flops)
    assert "all-reduce" in update["collectives"] or "reduce-scatter" in update["collectives"]
    low, high = made["typical"]["update"]
    assert made["step"]["update"] < low < high


@needs_compiler
def test_a_shadow_in_host_memory_is_refused(tmp_path):
    """Described GPUs have no memory kinds; the reason and the way out are told."""
    done = plan(tmp_path, "h100:1", "--config.method.bridge.shadow.offload=True")
    assert done.returncode == 2
    errors.assert_names(done.stderr, "shadow.offload", "h100:1", "--topology=gpu")
