"""Peaks by what jax calls a device, and the share of them that a step uses."""

from __future__ import annotations

import types

import jax
import pytest

from bridge_jax.distributed import peaks


def device(platform: str, kind: str):
    return types.SimpleNamespace(platform=platform, device_kind=kind)


@pytest.mark.parametrize(
    "platform, kind, flops",
    [
        ("tpu", "TPU v5 lite", 197e12),
        ("tpu", "TPU v5", 459e12),
        ("tpu", "TPU v6 lite", 918e12),
        ("gpu", "NVIDIA H100 80GB HBM3", 989e12),
        ("gpu", "NVIDIA A100-SXM4-40GB", 312e12),
        ("gpu", "NVIDIA B200", 2250e12),
        ("gpu", "NVIDIA L40S", 362e12),
    ],
)
def test_known_devices(platform, kind, flops):
    """The makers' bfloat16 peaks, by jax's names of devices."""
    assert peaks.of_device(device(platform, kind)).flops == flops


def test_memory_tells_a100s_apart():
    """Those of 40 GB are slower; a GH200 is no H200."""
    of = lambda kind: peaks.of_device(device("gpu", kind))
    assert of("NVIDIA A100-SXM4-40GB").memory == 1555e9
    assert of("NVIDIA A100-SXM4-80GB").memory == 2039e9
    assert of("NVIDIA GH200 480GB") is None


@pytest.mark.parametrize("platform, kind", [("tpu", "TPU v9"), ("gpu", "Radeon"), ("cpu", "cpu")])
def test_unknown_devices_have_no_utilization(platform, kind):
    """Nothing is said of a chip that is not in the table, this machine's CPU among them."""
    assert peaks.utilization(1e12, 1.0, [device(platform, kind)]) is None
    assert peaks.of_device(jax.devices()[0]) is None


def test_utilization():
    """Half of what eight v5e do in two seconds."""
    eight = [device("tpu", "TPU v5e")] * 8
    assert peaks.utilization(8 * 197e12, 2.0, eight) == pytest.approx(0.5)
