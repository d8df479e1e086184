"""Descriptions of GPUs, from which XLA compiles for them on a machine that has none.

The compiler is part of the packages jax_cuda13_plugin and jax_cuda12_plugin; no driver is needed.
Figures are those of XLA's own specifications (openxla/xla, xla/backends/gpu/target_config/specs);
the L40S's, which has none there, are of NVIDIA's data sheet and of its compute capability. The
compiler's choice of tilings uses them. It does not autotune without a device, and plans no
workspace of cuDNN's (cudnn_workspace.py).
"""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

# packages with the compiler, by the names of their modules
COMPILERS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
PER_NODE = 8


class Description(NamedTuple):
    """One GPU as the compiler knows it; sizes in bytes, rates per second."""

    name: str  # what jax calls the device
    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    fpus_per_core: int
    threads_per_core: int
    shared_memory_per_core: int
    shared_memory_per_block: int  # at most, where a kernel asks for it
    memory: int
    memory_bandwidth: int
    l2_cache: int
    clock_ghz: float


AMPERE = dict(
    capability=(8, 0),
    cores=108,
    fpus_per_core=64,
    threads_per_core=2048,
    shared_memory_per_core=167936,
    shared_memory_per_block=166912,
    l2_cache=41943040,
    clock_ghz=1.41,
)
HOPPER = dict(
    capability=(9, 0),
    cores=132,
    fpus_per_core=128,
    threads_per_core=2048,
    shared_memory_per_core=233472,
    shared_memory_per_block=232448,
    l2_cache=52428800,
    clock_ghz=1.98,
)
GPUS = {
    "a100": Description(
        "NVIDIA A100-SXM4-80GB", memory=85100068864, memory_bandwidth=2039040000000, **AMPERE
    ),
    "a100_40": Description(
        "NVIDIA A100-SXM4-40GB", memory=42331013120, memory_bandwidth=1555200000000, **AMPERE
    ),
    "h100": Description(
        "NVIDIA H100 80GB HBM3", memory=84942979072, memory_bandwidth=3352320000000, **HOPPER
    ),
    "h200": Description(
        "NVIDIA H200 141GB HBM3e", memory=151397597184, memory_bandwidth=4800000000000, **HOPPER
    ),
    "b200": Description(
        "NVIDIA B200",
        memory=191514411008,
        memory_bandwidth=7672320000000,
        **HOPPER | dict(capability=(10, 0), cores=148, l2_cache=132644864, clock_ghz=1.965),
    ),
    "l40s": Description(
        "NVIDIA L40S",
        capability=(8, 9),
        cores=142,
        fpus_per_core=128,
        threads_per_core=1536,
        shared_memory_per_core=102400,
        shared_memory_per_block=101376,
        memory=48 * 10**9,
        memory_bandwidth=864000000000,
        l2_cache=100663296,
        clock_ghz=2.52,
    ),
}
# what all of them have in common
COMMON = """
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536"""


def target_config(gpu: Description) -> str:
    """The description as XLA reads it: a text protobuf, stream_executor.GpuTargetConfigProto."""
    major, minor = gpu.capability
    return f"""
gpu_device_info {{{COMMON}
  threads_per_core_limit: {gpu.threads_per_core}
  shared_memory_per_core: {gpu.shared_memory_per_core}
  shared_memory_per_block_optin: {gpu.shared_memory_per_block}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.fpus_per_core}
  memory_bandwidth: {gpu.memory_bandwidth}
  l2_cache_size: {gpu.l2_cache}
  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {gpu.memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 minor: 0 }}
device_description_str: "{gpu.name}"
"""


def devices(name: str, kind: str, shape: tuple[int, ...]) -> list:
    """Described devices: shape is (GPUs,) or (nodes, GPUs of a node). ValueError without a plugin.

    name: of the topology, for the error.
    """
    from jax.experimental import topologies

    if not any(importlib.util.find_spec(name) for name in COMPILERS):
        raise ValueError(
            f"--topology={name!r} takes the GPUs' compiler, which is not installed: pip install "
            '"jax[cuda13]" (no GPU is needed). Without it: --topology=cpu:8'
        )
    nodes, per_node = shape if len(shape) == 2 else (1, *shape)
    described = topologies.get_topology_desc(
        platform="cuda",
        target_config=target_config(GPUS[kind]),
        topology=f"1x{nodes}x{per_node}",
    )
    return list(described.devices)
