"""Range checks of settings."""

from __future__ import annotations


def check_range(key: str, value: float, low: float, high: float = float("inf")) -> None:
    """ValueError unless low <= value <= high; nan is refused too."""
    if not low <= value <= high:
        raise ValueError(
            f"{key}={value}; allowed: from {low} "
            + (f"to {high}" if high != float("inf") else "upwards")
        )


def check_parts(key: str, n: int, P: int, count: int, packed: bool) -> None:
    """ValueError where P groups in `count` micro-batches cannot be cut into n parts."""
    strides = 1 if packed else min(count, P)
    if strides % n:
        allowed = ", ".join(f"{1 / m:.4g}" for m in range(1, strides + 1) if strides % m == 0)
        why = (
            "packed samples (batch.pack) share rows across groups"
            if packed
            else f"{P} groups in {count} micro-batch(es) of batch.microbatch_rows on each device"
        )
        raise ValueError(
            f"{key}={1 / n:.4g} is no whole number of micro-batches: {why}; allowed: {allowed}"
        )
