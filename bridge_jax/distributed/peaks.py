"""Peak rates of chips, and how much of them a step uses.

Peaks come from the makers' pages, which CHIPS names, per chip: dense matmuls, memory, one link in
one direction, and the network between machines of eight GPUs.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Chip(NamedTuple):
    """Peaks of one chip, per second and in bytes."""

    flops: float  # bfloat16 matmuls
    # matmuls of fp32 with all bits (jax's precision "highest")
    fp32_flops: float
    hbm: float  # bytes of memory
    memory: float  # bytes per second to and from it
    link: float  # bytes per second over one link, one direction
    links: int  # of a chip inside a torus: two for each dimension; a GPU's switch counts as one
    # a slice is a ring along dimensions that are a multiple of this; 0: not applicable
    torus: int
    source: str
    # bytes per second, one direction, between machines of eight GPUs; 0: not applicable
    network: float = 0.0

    def flops_of(self, dtype: str) -> float:
        """Peak of matmuls of this compute dtype, "bfloat16" or "float32"."""
        return self.fp32_flops if dtype == "float32" else self.flops


def tpu(flops: float, hbm: float, memory: float, link: float, links: int, torus: int, page: str):
    """A TPU's peaks; XLA makes an fp32 product of all bits from six bfloat16 products."""
    source = f"cloud.google.com/tpu/docs/{page}"
    return Chip(flops, flops / 6, hbm, memory, link, links, torus, source)


def gpu(
    flops: float,
    fp32_flops: float,
    hbm: float,
    memory: float,
    link: float,
    source: str,
    network: float = 0.0,
):
    """A GPU's peaks; fp32 is that of the CUDA cores, since TF32 drops bits."""
    return Chip(
        flops,
        fp32_flops,
        hbm,
        memory,
        link,
        1,
        0,
        f"nvidia.com/en-us/data-center/{source}",
        network,
    )


CHIPS = {  # link: the pages' bidirectional interconnect bandwidth per chip, / 2 directions / links
    "v4": tpu(275e12, 32e9, 1228e9, 50e9, 6, 4, "v4 (2400 Gbps a direction)"),
    "v5e": tpu(197e12, 16e9, 819e9, 50e9, 4, 16, "v5e (400 GBps both directions)"),
    "v5p": tpu(459e12, 95e9, 2765e9, 100e9, 6, 4, "v5p (1200 GBps both directions)"),
    "v6e": tpu(918e12, 32e9, 1638e9, 100e9, 4, 16, "v6e (800 GBps both directions)"),
    # network: of a DGX with eight network cards, 200 Gb/s each with A100s, otherwise 400 Gb/s
    "a100": gpu(312e12, 19.5e12, 80e9, 2039e9, 300e9, "a100 (SXM 80 GB, NVLink 600 GBps)", 200e9),
    "a100_40": gpu(
        312e12, 19.5e12, 40e9, 1555e9, 300e9, "a100 (SXM 40 GB, NVLink 600 GBps)", 200e9
    ),
    "h100": gpu(989e12, 67e12, 80e9, 3350e9, 450e9, "h100 (SXM, NVLink 900 GBps)", 400e9),
    "h200": gpu(989e12, 67e12, 141e9, 4800e9, 450e9, "h200 (SXM, NVLink 900 GBps)", 400e9),
    "b200": gpu(2250e12, 75e12, 180e9, 7700e9, 900e9, "hgx (B200, NVLink 1.8 TBps)", 400e9),
    # without NVLink: PCIe 4.0 x16
    "l40s": gpu(362e12, 91.6e12, 48e9, 864e9, 32e9, "l40s (PCIe 64 GBps both directions)", 32e9),
}
# what jax calls a TPU -> its chip
DEVICE_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}
# a GPU whose name, by jax, contains the first as a word -> its chip; the first that fits
GPU_NAMES = {
    "A100-SXM4-40GB": "a100_40",
    "A100-PCIE-40GB": "a100_40",
    **{name.upper(): name for name in ("a100", "h100", "h200", "b200", "l40s")},
}


def of_device(device) -> Chip | None:
    """Peaks of a jax device; None where the chip is not in the table, such as a CPU."""
    if device.platform == "tpu":
        return CHIPS.get(DEVICE_KINDS.get(device.device_kind, ""))
    return of_gpu(device.device_kind) if device.platform == "gpu" else None


def of_gpu(kind: str) -> Chip | None:
    """Peaks of the GPU with this name; a GH200 is no H200."""
    names = (name for word, name in GPU_NAMES.items() if re.search(rf"\b{word}\b", kind.upper()))
    return CHIPS.get(next(names, ""))


def utilization(flops: float, seconds: float, devices: list) -> float | None:
    """MFU: model FLOPs a second as a share of the bfloat16 peak; None for unknown chips."""
    chip = of_device(devices[0])
    if chip is None or seconds <= 0:
        return None
    return flops / seconds / (chip.flops * len(devices))
