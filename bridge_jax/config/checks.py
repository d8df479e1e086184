"""Range checks of settings."""

from __future__ import annotations


def check_range(key: str, value: float, low: float, high: float = float("inf")) -> None:
    """ValueError unless low <= value <= high; nan is refused too."""
    if not low <= value <= high:
        raise ValueError(
            f"{key}={value}; allowed: from {low} "
            + (f"to {high}" if high != float("inf") else "upwards")
        )
