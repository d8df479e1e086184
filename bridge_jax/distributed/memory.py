"""How much memory is free on the devices of this process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def free_bytes(devices: Sequence) -> int:
    """Bytes free on each of these devices, the least of them.

    Of a device without statistics, such as a CPU: an equal share of the machine's free memory.
    """
    stats = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in found for found in stats):
        return min(found["bytes_limit"] - found.get("bytes_in_use", 0) for found in stats)
    return _free_on_host() // len(devices)


def _free_on_host() -> int:
    """Bytes that programs can still take on this machine, page cache included where it is known."""
    table = Path("/proc/meminfo")
    lines = table.read_text().splitlines() if table.is_file() else []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
