"""Whether time grows with the size of a text alone, whatever the speed of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable

# processor seconds that need no second look
QUICK = 0.2
# of the size; time that grows with its square grows by 64
SMALLER = 8
# three times as much as a time that grows with the size
MOST = 24
ATTEMPTS = 3


def seconds(work: Callable[[int], object], size: int) -> float:
    """Processor seconds of work(size)."""
    began = time.process_time()
    work(size)
    return time.process_time() - began


def assert_linear(work: Callable[[int], object], size: int) -> None:
    """AssertionError where work(size) is not quick, and takes far longer than SMALLER parts of it.

    A ratio that is off by what else the process did is measured again.
    """
    ratios = []
    for attempt in range(ATTEMPTS):
        # another size, so that nothing is remembered
        long = seconds(work, size - attempt)
        if long < QUICK:
            return
        ratios.append(long / max(seconds(work, (size - attempt) // SMALLER), 1e-9))
        if ratios[-1] < MOST:
            return
    raise AssertionError(f"{SMALLER} times the size takes {ratios} times as long")
