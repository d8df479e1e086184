"""How much memory a process takes on a GPU, and of its host for arrays in host memory.

XLA takes 75% of a GPU when it starts, and at most 64 GB of pinned host memory, in which an
offloaded theta_hat lies (98 GB for a model of 8B parameters with its moments). Both are set here,
before devices are started, where the user has not set them. On TPUs and CPUs they are not read.
"""

from __future__ import annotations

import os

# the variable, and the share of a GPU's memory that a run takes; the rest is of the driver, of
# cuDNN's and NCCL's own, and of programs' code
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
SHARE_OF_GPU = 0.92
HOST_LIMIT = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"
SHARE_OF_HOST = 0.8


def set_pools(environment=os.environ) -> None:
    """Set both variables where they are not set, and the user did not turn the pool off."""
    if environment.get("XLA_PYTHON_CLIENT_PREALLOCATE", "true") != "false":
        environment.setdefault(FRACTION, str(SHARE_OF_GPU))
    environment.setdefault(HOST_LIMIT, str(int(SHARE_OF_HOST * host_memory() / 1e9)))


def host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def describe(device) -> str:
    """What of a GPU's memory this process may take, as a line; "" for other devices."""
    stats = device.memory_stats() if device.platform == "gpu" else None
    if not stats or "bytes_limit" not in stats:
        return ""
    return (
        f"GPU memory: {stats['bytes_limit'] / 1e9:.1f} GB of each {device.device_kind} "
        f"({FRACTION}={os.environ.get(FRACTION, 'not set')}), and up to "
        f"{os.environ.get(HOST_LIMIT, '64')} GB of the host's for arrays there ({HOST_LIMIT})"
    )
