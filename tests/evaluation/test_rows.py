"""Completions at once are chosen from free memory, unless the options say how many."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import pytest

from bridge_jax.distributed import memory, sharding
from bridge_jax.evaluation import rows
from bridge_jax.evaluation.options import Options
from tests import errors, toys

OPTIONS = Options(max_new=100, buckets=(8, 16), dtype="float32")
FP32 = jnp.dtype(jnp.float32)


def mesh(devices: int = 1, platform: str = "tpu"):
    """As much of a mesh as is asked for."""
    device = types.SimpleNamespace(platform=platform)
    made = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:devices])
    flat = types.SimpleNamespace(flat=[device] * devices)
    return types.SimpleNamespace(shape=made.shape, devices=flat)


@pytest.fixture
def free(monkeypatch):
    """free(n): room for n slots on every device."""
    each = rows.slot_bytes(toys.CFG, OPTIONS, FP32)
    return lambda n: monkeypatch.setattr(
        memory, "free_bytes", lambda devices: int((n + 0.5) * each / rows.SHARE)
    )


def test_a_slot_has_its_own_cache_and_its_prompts():
    """Keys and values of 2 layers, 2 heads of 8: of 100 tokens, and twice of 16; logits of 32."""
    assert rows.slot_bytes(toys.CFG, OPTIONS, FP32) == 2 * 2 * 2 * 8 * 132 * 4 + 3 * 32 * 4
    shared = Options(max_new=100, buckets=(8, 16), decode_tensor=4)
    assert rows.slot_bytes(toys.CFG, shared, FP32) == 2 * 2 * 1 * 8 * 132 * 4 + 3 * 32 * 4


def test_as_many_as_fit(free):
    """On every device; a CPU has a bound of its own."""
    free(20)
    assert rows.choose(toys.CFG, OPTIONS, FP32, mesh()) == 20
    assert rows.choose(toys.CFG, OPTIONS, FP32, mesh(4)) == 80
    free(10**6)
    assert rows.choose(toys.CFG, OPTIONS, FP32, mesh()) == rows.MOST
    assert rows.choose(toys.CFG, OPTIONS, FP32, mesh(1, "cpu")) == rows.MOST_ON_CPU


def test_given_rows_are_taken(free):
    """Whatever the memory."""
    free(0)
    given = Options(rows=7, max_new=100, buckets=(8, 16))
    assert rows.choose(toys.CFG, given, FP32, mesh()) == 7


def test_not_one_fits(free):
    """What can be lowered is named."""
    free(0)
    with errors.raises(ValueError, "--max_new=100", "--decode_tensor", "--dtype=bfloat16"):
        rows.choose(toys.CFG, OPTIONS, FP32, mesh())


def test_free_memory_of_devices():
    """The least of several; a CPU's is that of the machine, shared by its devices."""
    stats = lambda limit, used: types.SimpleNamespace(
        memory_stats=lambda: {"bytes_limit": limit, "bytes_in_use": used}
    )
    assert memory.free_bytes([stats(10, 3), stats(10, 6)]) == 4
    cpu = types.SimpleNamespace(memory_stats=lambda: None)
    assert memory.free_bytes([cpu] * 1000) < memory.free_bytes([cpu])
