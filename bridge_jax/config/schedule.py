"""Settings of a scheduled weight, shared by lam and mu."""

from __future__ import annotations

import dataclasses

import numpy as np

from bridge_jax.config import checks

KINDS = ("constant", "linear", "cosine", "step", "gain")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Settings of a weight that changes with the step, such as method.bridge.lam.

    constant: not at all. linear, cosine: to `end` over `steps`. step: to `values` from the steps
    `boundaries` on. gain (bridge's lam alone): `end` while the measured gain is 0 or below, the
    weight itself from a gain of `gain` upwards, in proportion between.
    """

    kind: str = "constant"
    end: float = 1.0
    steps: int = 0
    boundaries: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    gain: float = 0.1

    # kind -> the fields it reads
    READS = {
        "constant": (),
        "linear": ("end", "steps"),
        "cosine": ("end", "steps"),
        "step": ("boundaries", "values"),
        "gain": ("end", "gain"),
    }

    def unread(self) -> list[str]:
        """Fields that this kind does not read."""
        fields = [field.name for field in dataclasses.fields(self) if field.name != "kind"]
        return [name for name in fields if name not in self.READS[self.kind]]

    def milestones(self, key: str) -> dict[str, int]:
        """{setting: the step (from 1) at which the weight `key` has its end, or first changes}."""
        if self.kind in ("linear", "cosine"):
            return {f"{key}.steps": self.steps}
        if self.kind == "step":
            return {f"{key}.boundaries": min(self.boundaries) + 1}
        return {}


def check_schedule(key: str, start: float, schedule: Schedule, kinds=KINDS[:-1]) -> None:
    """ValueError for an invalid schedule, and for one that could never leave its start.

    key: of the schedule, method.bridge.lam_schedule; start: the weight at the first step. The
    weight itself, its end and its values are shares from 0 to 1.
    """
    kind = schedule.kind
    if kind not in kinds:
        raise ValueError(f"{key}.kind={kind!r}; allowed: {', '.join(kinds)}")
    for name, value in (
        (key.removesuffix("_schedule"), start),
        (f"{key}.end", schedule.end),
        *((f"{key}.values", value) for value in schedule.values),
    ):
        checks.check_range(name, value, 0.0, 1.0)
    if kind == "constant":
        return
    ends = (schedule.end,)
    if kind == "step":
        check_boundaries(key, schedule.boundaries, schedule.values)
        ends = schedule.values
    elif kind == "gain":
        if not schedule.gain > 0:
            raise ValueError(
                f"{key}.gain={schedule.gain}; allowed: above 0, the gain from which on the weight "
                "holds"
            )
    elif schedule.steps < 1:
        raise ValueError(f"{key}.steps={schedule.steps} with kind={kind!r}; allowed: 1 or more")
    # compared in fp32, as the compiled step sees them
    if {np.float32(end) for end in ends} == {np.float32(start)}:
        raise ValueError(
            f"{key}: kind={kind!r} from {start} to {', '.join(map(str, ends))} never leaves its "
            "start; give another end, or kind='constant'"
        )


def check_boundaries(key: str, boundaries: tuple[int, ...], values: tuple[float, ...]) -> None:
    """ValueError unless the steps rise from 1 or later on, with one value for each."""
    rising = list(boundaries) == sorted(set(boundaries))
    if not boundaries or boundaries[0] < 1 or not rising or len(values) != len(boundaries):
        raise ValueError(
            f"{key}: kind='step' with boundaries={boundaries} and values={values}; needs rising "
            "boundaries, the first at step 1 or later, and one value for each"
        )
