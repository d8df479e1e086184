"""Worker processes for symbolic grading (being written)."""
from __future__ import annotations

from bridge_jax.grading.outcome import Claim, Outcome


class Pool:
    """Processes that judge Claims."""

    def grade(self, claims: list[Claim]) -> list[Outcome]:
        """One Outcome for each claim."""
        raise NotImplementedError
