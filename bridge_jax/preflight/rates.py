"""Rates of the devices beside the peaks of their chip: matmul, copy, collectives.

A device far below its peak is throttled, shared, or not what it seems to be. Every local device is
measured alone, since one slow device sets the pace of all. Nothing is known of CPUs: the rates are
printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bridge_jax.distributed import arrays, multihost, peaks
from bridge_jax.models.precision import matmul_precision
from bridge_jax.preflight.record import FAIL, NOTE, OK, Record
from bridge_jax.preflight.subject import Subject
from bridge_jax.training.settings import dtype_of

# shares of the peak: below the first a note, below the second a FAIL. Large matmuls reach 60 to 80%
# of the peak, copies 80 to 90%, and collectives of all devices less.
USUAL, LEAST = 0.4, 0.1
# a device below this share of the fastest one delays all
ALIKE = 0.8
REPEATS = 3
WAY_OUT = (
    "look for other processes on the device, for throttling (nvidia-smi -q -d PERFORMANCE), and "
    "whether it is the device you meant"
)
LINKS = "look at the links between the devices (nvidia-smi topo -m; NCCL_DEBUG=INFO says which)"


def best(call: Callable[[], jax.Array]) -> float:
    """Seconds of the fastest of a few calls; the first compiles and is not counted."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(REPEATS):
        began = time.monotonic()
        jax.block_until_ready(call())
        seconds.append(time.monotonic() - began)
    return min(seconds)


def on_cpu(subject: Subject) -> bool:
    """Whether the devices are CPUs, which take smaller arrays."""
    return subject.setup.mesh.devices.flat[0].platform == "cpu"


def matmul(subject: Subject) -> Record:
    """Matmuls in the compute dtype, with its precision, on each local device."""
    name = subject.setup.settings.model.dtype
    dtype, size = dtype_of("model.dtype", name), 1024 if on_cpu(subject) else 8192
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision=matmul_precision(dtype)))
    rates = []
    for device in subject.setup.mesh.local_devices:
        a = jax.device_put(jnp.ones((size, size), dtype), device)
        rates.append(2 * size**3 / best(lambda a=a: multiply(a)) / 1e12)
    chip = peaks.of_device(subject.setup.mesh.local_devices[0])
    return judge(f"matmul {name}", rates, chip and chip.flops_of(name) / 1e12, "TFLOP/s", WAY_OUT)


def copy(subject: Subject) -> Record:
    """Reading and writing memory, on each local device."""
    count = 2 ** (24 if on_cpu(subject) else 28)
    add = jax.jit(lambda x: x + 1)
    rates = []
    for device in subject.setup.mesh.local_devices:
        x = jax.device_put(jnp.zeros(count, jnp.float32), device)
        rates.append(2 * x.nbytes / best(lambda x=x: add(x)) / 1e9)
    chip = peaks.of_device(subject.setup.mesh.local_devices[0])
    return judge("copy", rates, chip and chip.memory / 1e9, "GB/s", WAY_OUT)


def collectives(subject: Subject) -> Record:
    """All-gather over all devices: bytes that each receives a second; and that it is right."""
    mesh, name = subject.setup.mesh, "collectives"
    if mesh.size == 1:
        return Record(name, OK, "one device, there are none")
    rows, width = mesh.size, 2 ** (18 if on_cpu(subject) else 24)
    split, whole = (NamedSharding(mesh, PartitionSpec(axes)) for axes in (mesh.axis_names, None))
    given = np.broadcast_to(np.arange(rows, dtype=np.float32)[:, None], (rows, width))
    x = arrays.place(given, split)
    gather = jax.jit(lambda x: x, out_shardings=whole)
    total = jax.jit(lambda x: x.sum(axis=0), out_shardings=whole)
    with multihost.watchdog("the first collectives"):
        found = np.asarray(gather(x).addressable_data(0)), np.asarray(total(x).addressable_data(0))
    if not (np.array_equal(found[0], given) and np.all(found[1] == rows * (rows - 1) / 2)):
        way_out = "NCCL_P2P_DISABLE=1 shows whether it is the links; update the driver"
        return Record(name, FAIL, "an all-gather or a sum over the devices is wrong", way_out)
    rate = (rows - 1) * width * 4 / best(lambda: gather(x)) / 1e9
    chip = peaks.of_device(mesh.local_devices[0])
    peak = chip and (chip.network if multihost.count() > 1 and chip.network else chip.link) / 1e9
    record = judge(name, [rate], peak, "GB/s received", LINKS)
    # a slow network is slow, not wrong
    return record._replace(grade=NOTE) if record.grade == FAIL else record


def judge(name: str, rates: list[float], peak: float | None, unit: str, way_out: str) -> Record:
    """The slowest device's rate beside the peak, and beside the fastest device's.

    peak: in the rates' unit; None where none is known.
    """
    slowest, fastest = min(rates), max(rates)
    text = f"{slowest:.3g} {unit}" + (f" (slowest of {len(rates)})" if len(rates) > 1 else "")
    if peak is None:
        return Record(name, OK, f"{text}; no peaks known")
    share = slowest / peak
    text = f"{text}, {share:.0%} of the peak of {peak:.4g}"
    if share < USUAL:
        return Record(name, FAIL if share < LEAST else NOTE, text, way_out)
    if slowest < ALIKE * fastest:
        which = f"device {rates.index(slowest)} has {slowest / fastest:.0%} of the fastest one's"
        return Record(name, NOTE, f"{text}; {which}", way_out)
    return Record(name, OK, text)
