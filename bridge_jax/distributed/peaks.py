"""Peak rates of chips, and how much of them a step uses.

Peaks come from the makers' pages, which CHIPS names, per chip: dense bfloat16 matmuls, memory, and
one link in one direction.
"""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """Peaks of one chip, per second and in bytes."""

    flops: float  # bfloat16 matmuls
    hbm: float  # bytes of memory
    memory: float  # bytes per second to and from it
    link: float  # bytes per second over one link, one direction
    links: int  # of a chip inside a torus: two for each dimension; a GPU's switch counts as one
    # a slice is a ring along dimensions that are a multiple of this; 0: not applicable
    torus: int
    source: str


_TPU = "cloud.google.com/tpu/docs/"
CHIPS = {  # link: the pages' bidirectional interconnect bandwidth per chip, / 2 directions / links
    "v4": Chip(275e12, 32e9, 1228e9, 50e9, 6, 4, _TPU + "v4 (2400 Gbps a direction)"),
    "v5e": Chip(197e12, 16e9, 819e9, 50e9, 4, 16, _TPU + "v5e (400 GBps both directions)"),
    "v5p": Chip(459e12, 95e9, 2765e9, 100e9, 6, 4, _TPU + "v5p (1200 GBps both directions)"),
    "v6e": Chip(918e12, 32e9, 1638e9, 100e9, 4, 16, _TPU + "v6e (800 GBps both directions)"),
    "a100": Chip(
        312e12,
        80e9,
        2039e9,
        300e9,
        1,
        0,
        "nvidia.com/en-us/data-center/a100 (SXM 80 GB, NVLink 600 GBps)",
    ),
    "h100": Chip(
        989e12,
        80e9,
        3350e9,
        450e9,
        1,
        0,
        "nvidia.com/en-us/data-center/h100 (SXM, NVLink 900 GBps)",
    ),
}
# what jax calls a device -> its chip; GPUs have the chip's name in theirs
DEVICE_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def of_device(device) -> Chip | None:
    """Peaks of a jax device; None where the chip is not in the table, such as a CPU."""
    if device.platform == "tpu":
        return CHIPS.get(DEVICE_KINDS.get(device.device_kind, ""))
    if device.platform != "gpu":
        return None
    kind = device.device_kind.lower()
    return next((chip for name, chip in CHIPS.items() if name in kind), None)


def utilization(flops: float, seconds: float, devices: list) -> float | None:
    """MFU: model FLOPs a second as a share of the devices' bfloat16 peak; None for unknown chips."""
    chip = of_device(devices[0])
    if chip is None or seconds <= 0:
        return None
    return flops / seconds / (chip.flops * len(devices))
