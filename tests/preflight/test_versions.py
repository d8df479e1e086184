"""Known-bad packages are found, and those of this environment are not among them."""

from __future__ import annotations

import pytest

from bridge_jax.preflight import versions
from bridge_jax.preflight.record import FAIL, NOTE, OK

GOOD = versions.installed()


def test_this_environment_is_good():
    """The packages that the tests run with."""
    record = versions.judge(GOOD, "cpu")
    assert record.grade == OK and f"jax {GOOD['jax']}" in record.text


@pytest.mark.parametrize(
    "package, version, capability, grade",
    [
        # of another version than jaxlib, jax does not use it
        ("jax-cuda13-plugin", "0.0.1", 9.0, FAIL),
        ("jax-cuda13-pjrt", GOOD["jaxlib"], 9.0, OK),
        # miscompiles on Hopper and later, not before
        ("nvidia-cuda-nvcc-cu12", "12.4.131", 9.0, FAIL),
        ("nvidia-cuda-nvcc-cu12", "12.4.131", 8.0, OK),
        ("nvidia-cuda-nvcc-cu12", "12.6.85", 9.0, OK),
        ("nvidia-cudnn-cu13", "9.20.0.48", 9.0, NOTE),
        ("nvidia-cudnn-cu12", "9.14.0.64", 9.0, NOTE),
        ("nvidia-cudnn-cu12", "9.15.0.57", 9.0, OK),
    ],
)
def test_parts_for_gpus(package, version, capability, grade):
    """The record names package, version and way out."""
    record = versions.judge(GOOD | {package: version}, "gpu", capability)
    assert record.grade == grade
    assert grade == OK or (package in record.text and version in record.text and record.way_out)


def test_a_missing_or_old_package_fails():
    """With the command that installs what requirements-run.txt asks for."""
    record = versions.judge(GOOD | {"numpy": "1.26.4"}, "cpu")
    assert record.grade == FAIL and "numpy" in record.text and "pip install" in record.way_out
    without = {name: version for name, version in GOOD.items() if name != "optax"}
    assert "optax" in versions.judge(without, "cpu").text


def test_a_gpu_plugin_beside_a_cpu_is_noted(monkeypatch):
    """jax computes on the CPU although the packages for GPUs are there."""
    monkeypatch.setattr(versions.platforms, "startable", lambda: ["cpu", "cuda"])
    record = versions.judge(GOOD | {"jax-cuda13-plugin": GOOD["jaxlib"]}, "cpu")
    assert record.grade == NOTE and "JAX_PLATFORMS" in record.way_out and "cuda" in record.way_out


def test_a_fail_comes_before_a_note():
    """One line, the worst finding; the others are counted."""
    bad = {"nvidia-cudnn-cu13": "9.20.0.48", "nvidia-cuda-nvcc-cu12": "12.4.131"}
    record = versions.judge(GOOD | bad, "gpu", 9.0)
    assert record.grade == FAIL and "nvcc" in record.text and "1 more" in record.text


def test_every_known_fault_has_a_source():
    """A public thread."""
    assert all(bad.source.startswith("github.com/") for bad in versions.KNOWN_BAD)
