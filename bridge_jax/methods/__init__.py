"""Training algorithms, one file each, registered by the file's name.

Each file has a frozen `Config`, whose fields are the keys config.method.<name>, and
`make(cfg, policy, recipes, microbatch_rows) -> Method`. Its update returns the new state and
metrics, among them `objectives.token_counts` of its passes, from which FLOPs are counted.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import pathlib
from types import ModuleType


@functools.cache
def names() -> tuple[str, ...]:
    """Names of all methods: the files of this folder with a function `make`."""
    files = pathlib.Path(__file__).parent.glob("*.py")
    return tuple(sorted(path.stem for path in files if "\ndef make(" in path.read_text("utf-8")))


def load(name: str) -> ModuleType:
    """The method's module; ValueError lists all names for an unknown one."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"method.name={name!r} is unknown; allowed: {', '.join(names())}.{hint}")
    return importlib.import_module(f"bridge_jax.methods.{name}")


def defaults(name: str) -> dict:
    """The method's settings, groups as dicts, at their defaults."""
    return dataclasses.asdict(load(name).Config())


def samples(name: str, cfg, recipes) -> bool:
    """Whether the method with this config ever samples; needs no model."""
    return bool(load(name).make(cfg, None, recipes).sampling_policies)
