"""Batch sizes: the numbers that a user gives, their checks, and every size derived from them."""

from __future__ import annotations

import dataclasses
import math

from bridge_jax.config.schema import _aligned


@dataclasses.dataclass(frozen=True)
class BatchTable:
    """The rows of one step.

    Invalid numbers raise a ValueError that gives the nearest valid ones.
    """

    prompts_per_step: int  # prompts sampled from in one step
    # completions of each prompt, >= 2: a group's advantages compare its samples
    samples_per_prompt: int
    demos_per_step: int  # demonstrations in one step
    microbatch_rows: int  # rows that one device holds in one forward and backward pass
    devices: int  # devices that share the rows of a micro-batch (all but tensor-parallel copies)
    # maximum of samples packed into one row; 0: one sample per row, the prompts shared
    pack: int = 0
    samples: bool = True  # whether the method ever samples; False: demonstrations alone

    def __post_init__(self):
        given = {
            name: value for name, value in dataclasses.asdict(self).items() if name != "samples"
        }
        for name, value in given.items():
            least = {"samples_per_prompt": 2, "pack": 0}.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                why = " (the advantages of a group compare its samples)" if least == 2 else ""
                raise ValueError(
                    f"batch.{name}={value!r}: must be a whole number of at least {least}{why}."
                )
        # demonstrations are padded, so that any number of them will do
        given.pop("demos_per_step")
        problem, keys = _problem(**given) if self.samples else ("", ())
        if problem:
            raise ValueError(f"{problem} {_ways_out(given, keys)}")

    @property
    def microbatch(self) -> int:
        """Rows of one micro-batch over all devices."""
        return self.microbatch_rows * self.devices

    @property
    def rollout_rows(self) -> int:
        """Sampled completions in one step: B = P * M."""
        return self.prompts_per_step * self.samples_per_prompt

    @property
    def prompts_unit(self) -> int:
        """The number that prompts_per_step must be a multiple of, other settings unchanged."""
        rows = self.devices if self.pack else self.microbatch
        return rows // math.gcd(rows, self.samples_per_prompt)

    @property
    def rollout_microbatch(self) -> int:
        """Rows of one micro-batch of samples over all devices.

        With packing there may be fewer than microbatch.
        """
        return min(self.rollout_rows, self.microbatch)

    @property
    def rollout_microbatches(self) -> int:
        """Micro-batches of samples in one step; with packing, their maximum."""
        return -(-self.rollout_rows // self.rollout_microbatch)

    @property
    def rollout_rows_per_device(self) -> int:
        """Sampled rows that one device trains on in one step."""
        return self.rollout_rows // self.devices

    @property
    def prompts_per_microbatch(self) -> int:
        """Prompts in one micro-batch; 1 where a micro-batch holds only a part of a group."""
        return max(1, self.microbatch // self.samples_per_prompt)

    @property
    def demo_microbatch(self) -> int:
        """Rows of one micro-batch of demonstrations over all devices."""
        return min(self.demos_per_step, self.microbatch)

    @property
    def demo_microbatches(self) -> int:
        """Micro-batches of demonstrations in one step."""
        return -(-self.demos_per_step // self.demo_microbatch)

    @property
    def demo_padding(self) -> int:
        """Empty rows appended to the demonstrations, for equal micro-batches and devices."""
        whole = self.devices if self.demos_per_step < self.microbatch else self.microbatch
        return -self.demos_per_step % whole

    @property
    def demo_rows_per_device(self) -> int:
        """Demonstrations in one step that one device trains on, padding rows included."""
        return (self.demos_per_step + self.demo_padding) // self.devices

    def check_demo_parts(self, key: str, parts: int) -> None:
        """ValueError where the demonstrations of a device do not divide into `parts` micro-batches.

        key: the setting that gives `parts`.
        """
        each = self.demo_rows_per_device
        if parts > 1 and each % parts:
            raise ValueError(
                f"{key}={parts} does not divide the {each} demonstration(s) of a step on each of "
                f"{self.devices} device(s); allowed: "
                f"{', '.join(str(n) for n in range(1, each + 1) if each % n == 0)}, or 0: as "
                "batch.microbatch_rows has it"
            )

    def format(self) -> str:
        """The batch of one step as an aligned table, for the start of a run."""
        parts = self.samples_per_prompt // self.microbatch
        share = (
            f"1/{parts} of a group"
            if parts > 1
            else f"{self.prompts_per_microbatch} whole group(s)"
        )
        share = (
            f"a row holds up to {self.pack} samples"
            if self.pack
            else f"a rollout micro-batch holds {share}"
        )
        # 0 unless packed
        added = -self.rollout_rows % self.rollout_microbatch
        rows = [
            ("rows of a step", "rollouts", "demos", ""),
            (
                "in all",
                str(self.rollout_rows),
                str(self.demos_per_step),
                f"{self.prompts_per_step} prompts x {self.samples_per_prompt} samples",
            ),
            (
                "micro-batches",
                str(self.rollout_microbatches),
                str(self.demo_microbatches),
                "at most, those that packing fills; gradients are added up"
                if self.pack
                else "gradients are added up",
            ),
            ("rows of each", str(self.rollout_microbatch), str(self.demo_microbatch), share),
            (
                "empty rows added",
                str(added),
                str(self.demo_padding),
                "so that all micro-batches and devices hold the same",
            ),
            (
                "per device",
                str(self.rollout_rows_per_device),
                str(self.demo_rows_per_device),
                f"{self.devices} device(s), {self.microbatch_rows} row(s) each at a time",
            ),
        ]
        return _aligned(rows if self.samples else [(name, demos) for name, _, demos, _ in rows])


def _problem(
    prompts_per_step: int,
    samples_per_prompt: int,
    microbatch_rows: int,
    devices: int,
    pack: int,
) -> tuple[str, tuple[str, ...]]:
    """Why the numbers are invalid, and the keys that could be changed.

    ("", ()) where they are valid.
    """
    micro, rows = microbatch_rows * devices, prompts_per_step * samples_per_prompt
    # packed rows may be divided anywhere, but every device needs the same number
    if pack:
        return (
            (
                f"batch.prompts_per_step={prompts_per_step} x "
                f"batch.samples_per_prompt={samples_per_prompt} = {rows} rollout rows do not "
                f"divide over {devices} devices.",
                ("prompts_per_step", "samples_per_prompt"),
            )
            if rows % devices
            else ("", ())
        )
    product = (
        f"batch.microbatch_rows={microbatch_rows} on {devices} device(s) makes micro-batches of "
        f"{micro} rows"
    )
    if samples_per_prompt % micro and micro % samples_per_prompt:
        return (
            f"{product}, which neither divide batch.samples_per_prompt={samples_per_prompt} nor "
            "are a multiple of it; the rows of a prompt share its forward pass, so that a "
            "micro-batch must hold whole groups or an even part of one.",
            ("microbatch_rows", "samples_per_prompt"),
        )
    if rows % micro:
        return (
            f"{product}, but batch.prompts_per_step={prompts_per_step} x batch.samples_per_prompt="
            f"{samples_per_prompt} = {rows} rollout rows are not a whole number of them.",
            ("prompts_per_step", "microbatch_rows"),
        )
    return "", ()


def _ways_out(given: dict[str, int], keys: tuple[str, ...]) -> str:
    """For each key the nearest smaller and larger valid value, the other numbers unchanged."""
    farthest = (
        given["prompts_per_step"] * given["samples_per_prompt"]
        + given["microbatch_rows"] * given["devices"]
    )
    found = []
    for key in keys:

        def fits(number: int, key: str = key) -> bool:
            return not _problem(**given | {key: number})[0]

        least = 2 if key == "samples_per_prompt" else 1
        below = next(filter(fits, range(given[key] - 1, least - 1, -1)), None)
        above = next(filter(fits, range(given[key] + 1, given[key] + farthest + 1)), None)
        choices = [str(number) for number in (below, above) if number]
        found += [f"batch.{key}={' or '.join(choices)}"] if choices else []
    return (
        f"Nearest that work: {'; '.join(found)}."
        if found
        else "No change of one number alone helps: change two."
    )
