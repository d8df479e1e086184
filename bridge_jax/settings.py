"""From a ConfigDict to frozen dataclasses: the only place that checks names and types of what a user typed.

`section` builds one dataclass from one group of the config, `unread` finds keys that were set and that nobody reads,
`diff` compares two configs key by key, `BatchTable` derives every batch number from the five that are given and refuses
sets that cannot be cut into equal micro-batches. Left out: defaults (they live in the dataclasses and in configs/), and
anything that touches a device.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import numbers
import os
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

LocalPath = typing.NewType("LocalPath", str)  # of a field: a path of this machine, ~ allowed
NOT_SET = "(not set)"  # stands in a diff for a key that one side does not have


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """The tail of an error message: the allowed name nearest to `word` if one is near, and all allowed names."""
    names = sorted(str(name) for name in allowed)
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    return (
        f"did you mean {near[0]!r}? " if near else ""
    ) + f"Allowed: {', '.join(names) or 'nothing'}."


def section(config: ConfigDict, name: str, cls: type, others: Iterable[str] = ()) -> Any:
    """`cls` filled from config.<name>; keys that are not given keep their default.

    `others` are keys that somebody else reads: they may be present and are passed over (see `unread`).
    Raises ValueError on an unknown key, a value of another type than its field, and a missing field without default."""
    group = config[name] if name in config else {}
    if not isinstance(group, (ConfigDict, Mapping)):
        raise ValueError(f"config.{name} must be a group of keys, got {group!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = typing.get_type_hints(cls)
    passed_over = set(others) - set(fields)
    values = {}
    for key, value in group.items():
        if key in passed_over:
            continue
        if key not in fields:
            raise ValueError(f"unknown key config.{name}.{key}: {did_you_mean(key, fields)}")
        try:
            values[key] = _typed(value, hints[key])
        except TypeError:
            wanted = _wanted(hints[key])
            raise ValueError(
                f"config.{name}.{key}={value!r} is {_kind(value)}; wanted: {wanted}."
            ) from None
        except ValueError as error:
            raise ValueError(f"config.{name}.{key}={value!r}: {error}") from None
    missing = [
        key
        for key, field in fields.items()
        if key not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(
            f"config.{name} lacks {', '.join(missing)}, without a default: "
            f"set --config.{name}.{missing[0]}=..."
        )
    return cls(**values)


def expand_user(path: str) -> str:
    """The path with a leading ~ or ~NAME as a shell reads it; ValueError where there is no such home directory."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(
            f"there is no home directory {path.split('/')[0]!r} here; write the folder out, or "
            f"./{path} for one of that name in the current folder"
        )
    return expanded


def unread(config_section: Any, defaults_section: Any, cls: type) -> list[str]:
    """Keys whose value differs from the defaults although `cls` has no such field: set by the user, read by nobody."""
    fields = {field.name for field in dataclasses.fields(cls)}
    return sorted({path.split(".")[0] for path in diff(config_section, defaults_section)} - fields)


def _typed(value: Any, wanted: Any) -> Any:
    """`value` as the annotated type; TypeError where it is another one."""
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        # exact types first: an int given for `float | int` stays an int
        for choice in sorted(args, key=lambda choice: choice is not type(value)):
            try:
                return _typed(value, choice)
            except TypeError:
                continue
        raise TypeError
    if origin is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in args):
            return value
        raise TypeError
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        items = [args[0]] * len(value) if args[-1:] == (Ellipsis,) else list(args)
        if len(items) != len(value):
            raise TypeError
        return tuple(_typed(item, choice) for item, choice in zip(value, items))
    return _scalar(value, wanted)


def _scalar(value: Any, wanted: Any) -> Any:
    if wanted in (None, type(None)) and value is None:
        return None
    if wanted in (bool, str) and isinstance(value, wanted):
        return value
    if wanted is LocalPath and isinstance(value, str):
        return expand_user(value)
    # bool is a subclass of int in Python; `steps=True` is a slip, never a number
    if wanted is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if wanted is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    if wanted is dict and isinstance(value, (ConfigDict, Mapping)):
        return to_json(value)
    assert wanted in (None, type(None), bool, str, LocalPath, int, float, dict), (
        f"settings cannot check a field of type {wanted}"
    )
    raise TypeError


def _wanted(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    if hint is LocalPath:
        return "str"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> {"a.b.c": leaf}; an empty dict is a leaf."""
    flat = {}
    for key, value in config.items():
        inner = isinstance(value, (ConfigDict, Mapping)) and len(value) > 0
        flat |= flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def to_json(config: Any) -> dict[str, Any]:
    """The same nested dict as JSON would give it back: sorted keys, tuples as lists. ValueError for other values."""
    try:
        return json.loads(json.dumps(_plain(config), sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the config holds a value that JSON cannot hold ({error}); allowed: dict, list, tuple, str, "
            "finite numbers, bool, None."
        ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, (ConfigDict, Mapping)):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def fingerprint(config: Any) -> str:
    """12 hex digits of the SHA-256 of `to_json(config)`; equal for equal configs in every process and Python."""
    text = json.dumps(to_json(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def diff(config: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """{"a.b.c": (value in config, value in other)} where the two are not the same; NOT_SET where one side has none."""
    mine, theirs = flatten(to_json(config)), flatten(to_json(other))
    pairs = {
        key: (mine.get(key, NOT_SET), theirs.get(key, NOT_SET)) for key in sorted({*mine, *theirs})
    }
    return {key: pair for key, pair in pairs.items() if not _same(*pair)}


def _same(mine: Any, theirs: Any) -> bool:
    # 1 and 1.0 are the same setting (a flag may turn one into the other); 1 and True are not
    return mine == theirs and isinstance(mine, bool) == isinstance(theirs, bool)


def format_diff(
    changes: Mapping[str, tuple[Any, Any]], mine: str = "given", theirs: str = "default"
) -> str:
    """A table of a diff, one key a line: key, value in config, value in other, under the two headings."""
    rows = [
        ("key", mine, theirs),
        *((key, _shown(a), _shown(b)) for key, (a, b) in changes.items()),
    ]
    return _aligned(rows)


def _shown(value: Any) -> str:
    return NOT_SET if value == NOT_SET else json.dumps(value)


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in rows
    )


@dataclasses.dataclass(frozen=True)
class BatchTable:
    """Rows of one step, from the five numbers that a user gives; ValueError with the nearest valid values otherwise."""

    prompts_per_step: int  # prompts sampled from in one step
    samples_per_prompt: (
        int  # completions of each prompt, >= 2: a group's advantages compare its samples
    )
    demos_per_step: int  # expert rows in one step
    microbatch_rows: int  # rows that one device holds in one forward and backward pass
    devices: int  # devices that share the rows of a micro-batch (all but tensor-parallel copies)
    pack: int = (
        0  # most samples in one row of a forward pass; 0: a row is a sample, its prompt shared
    )
    samples: bool = True  # whether the method ever samples; if not, it has demonstrations alone

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
        """What prompts_per_step is a multiple of, the others staying as they are."""
        rows = self.devices if self.pack else self.microbatch
        return rows // math.gcd(rows, self.samples_per_prompt)

    @property
    def rollout_microbatch(self) -> int:
        """Rows of one micro-batch of samples over all devices; packed, there may be fewer than asked for."""
        return min(self.rollout_rows, self.microbatch)

    @property
    def rollout_microbatches(self) -> int:
        """Micro-batches that the sampled rows of one step are cut into; packed, the most that there can be."""
        return -(-self.rollout_rows // self.rollout_microbatch)

    @property
    def rollout_rows_per_device(self) -> int:
        """Sampled rows that one device trains on in one step."""
        return self.rollout_rows // self.devices

    @property
    def prompts_per_microbatch(self) -> int:
        """Prompts whose rows meet in one micro-batch; 1 where a micro-batch holds only a part of a group."""
        return max(1, self.microbatch // self.samples_per_prompt)

    @property
    def demo_microbatch(self) -> int:
        """Rows of one micro-batch of demonstrations over all devices."""
        return min(self.demos_per_step, self.microbatch)

    @property
    def demo_microbatches(self) -> int:
        """Micro-batches that the demonstrations of one step are cut into."""
        return -(-self.demos_per_step // self.demo_microbatch)

    @property
    def demo_padding(self) -> int:
        """Empty rows to append to the demonstrations so that micro-batches and devices share them evenly."""
        whole = self.devices if self.demos_per_step < self.microbatch else self.microbatch
        return -self.demos_per_step % whole

    @property
    def demo_rows_per_device(self) -> int:
        """Demonstrations in one step that one device trains on, padding rows included."""
        return (self.demos_per_step + self.demo_padding) // self.devices

    def check_demo_parts(self, key: str, parts: int) -> None:
        """ValueError where demonstrations cut into that many micro-batches do not divide over the devices; key: who says so."""
        each = self.demo_rows_per_device
        if parts > 1 and each % parts:
            raise ValueError(
                f"{key}={parts} does not divide the {each} demonstration(s) of a step on each of {self.devices} "
                f"device(s); allowed: {', '.join(str(n) for n in range(1, each + 1) if each % n == 0)}, or 0: as "
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
        added = -self.rollout_rows % self.rollout_microbatch  # 0 unless packed
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
    demos_per_step: int,
    microbatch_rows: int,
    devices: int,
    pack: int,
) -> tuple[str, tuple[str, ...]]:
    """What is impossible about the numbers, and which of them could be changed; ("", ()) if nothing is."""
    micro, rows = microbatch_rows * devices, prompts_per_step * samples_per_prompt
    if pack:  # packed rows are cut anywhere, but every device computes as many
        return (
            (
                f"batch.prompts_per_step={prompts_per_step} x batch.samples_per_prompt={samples_per_prompt} = {rows} rollout "
                f"rows do not divide over {devices} devices.",
                ("prompts_per_step", "samples_per_prompt"),
            )
            if rows % devices
            else ("", ())
        )
    product = f"batch.microbatch_rows={microbatch_rows} on {devices} device(s) makes micro-batches of {micro} rows"
    if samples_per_prompt % micro and micro % samples_per_prompt:
        return (
            f"{product}, which neither divide batch.samples_per_prompt={samples_per_prompt} nor are a multiple of "
            "it; the rows of a prompt share its forward pass, so that a micro-batch must hold whole groups or an "
            "even part of one.",
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
    """For each key the nearest smaller and larger value that would do, the others staying as they are."""
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
