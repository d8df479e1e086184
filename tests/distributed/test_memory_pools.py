"""What is set of XLA's memory pools, and what is said of them."""

from __future__ import annotations

import types

from bridge_jax.distributed import memory_pools


def test_what_the_user_set_stays():
    """Only what is not set is set; without a pool there is no share of it."""
    found = {}
    memory_pools.set_pools(found)
    assert found[memory_pools.FRACTION] == "0.92"
    assert 0 < int(found[memory_pools.HOST_LIMIT]) < memory_pools.host_memory() / 1e9
    given = {memory_pools.FRACTION: "0.5", memory_pools.HOST_LIMIT: "7"}
    memory_pools.set_pools(given)
    assert given == {memory_pools.FRACTION: "0.5", memory_pools.HOST_LIMIT: "7"}
    without = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    memory_pools.set_pools(without)
    assert memory_pools.FRACTION not in without


def test_line_at_the_start(monkeypatch):
    """A GPU's limit and the variables that set it; nothing of a CPU."""
    monkeypatch.setenv(memory_pools.FRACTION, "0.92")
    gpu = types.SimpleNamespace(
        platform="gpu", device_kind="NVIDIA H100", memory_stats=lambda: dict(bytes_limit=78 * 10**9)
    )
    line = memory_pools.describe(gpu)
    assert "78.0 GB" in line and f"{memory_pools.FRACTION}=0.92" in line
    gpu.memory_stats = lambda: None
    assert memory_pools.describe(gpu) == ""
    cpu = types.SimpleNamespace(platform="cpu", memory_stats=lambda: None)
    assert memory_pools.describe(cpu) == ""
