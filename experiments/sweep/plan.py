"""Plan a sweep: read and check its file, and list its runs. command.py describes the file."""

from __future__ import annotations

import collections
import functools
import hashlib
import importlib.util
import itertools
import os
import pathlib
import re
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from bridge_jax.config import renamed, schema
from bridge_jax.filesystem import project
from bridge_jax.filesystem.hf_folder import weights_hash
from configs import base

PARTS = ("config", "set", "variants", "grid", "zip", "seeds")


class Run(NamedTuple):
    """One run of a sweep."""

    name: str
    variant: str
    seed: int
    # FILE:METHOD
    config: str
    settings: dict[str, Any]
    # of the keys that the resolved config changes
    fingerprint: str
    # weights_hash of the model that the run begins with
    weights: str = ""

    @property
    def identity(self) -> tuple[str, str, str]:
        """The key of a result: with another base model it is another run."""
        return self.name, self.fingerprint, self.weights

    @property
    def folder(self) -> str:
        """Name of its directory; other settings or weights have another one."""
        return f"{self.name}.{hashlib.sha256(repr(self.identity).encode()).hexdigest()[:6]}"


def load(path: str) -> dict:
    """The checked result of the file's get_sweep; ValueError names the part at fault."""
    if message := project.wrong_folder(path):
        raise ValueError(f"--sweep: {message}")
    if not os.path.exists(path):
        folder = pathlib.Path(path).parent
        there = schema.nearest_first(path, (str(p) for p in folder.glob("[!_]*.py")))
        raise ValueError(f"--sweep={path}: no such file; there are {', '.join(there) or 'none'}")
    try:
        sweep = dict(import_file(path).get_sweep())
    except Exception as error:
        raise ValueError(f"{path}: get_sweep() does not return a sweep: {error!r}") from error
    for part in sweep:
        if part not in PARTS:
            raise ValueError(f"{path}: unknown part {part!r}: {schema.did_you_mean(part, PARTS)}")
    check_tables(path, sweep)
    check_lists(path, sweep)
    return sweep


def import_file(path: str) -> ModuleType:
    """The module of a Python file anywhere."""
    spec = importlib.util.spec_from_file_location("imported_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_tables(path: str, sweep: dict) -> None:
    """ValueError unless settings are dicts by names, none of which sets the seed."""
    tables = {part: sweep.get(part, {}) for part in ("set", "variants", "grid", "zip")}
    if isinstance(tables["variants"], dict):
        for name, given in list(tables["variants"].items()):
            tables[f"variants[{name!r}]"] = given
    for name, given in tables.items():
        if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
            raise ValueError(f"{path}: {name} must be a dict with names for keys, got {given!r}")
        if "seed" in given and name != "variants":
            raise ValueError(
                f"{path}: {name} sets 'seed', and the runs would not have the seeds that they are "
                "named by; give them in 'seeds'"
            )


def check_lists(path: str, sweep: dict) -> None:
    """ValueError unless lists are lists, there are runs, and seeds and 'zip' are consistent."""
    listed = {"seeds": sweep.get("seeds", ())} | {
        f"{part}[{key!r}]": values
        for part in ("grid", "zip")
        for key, values in sweep.get(part, {}).items()
    }
    for name, values in listed.items():
        if not isinstance(values, (list, tuple, range)):
            raise ValueError(f"{path}: {name} must be a list, got {values!r}")
    if not sweep.get("config") or not sweep.get("seeds"):
        raise ValueError(f"{path}: 'config' and 'seeds' must be given and not empty")
    if empty := [name for name, values in listed.items() if not len(values)]:
        raise ValueError(f"{path}: {', '.join(empty)} is empty, which leaves no run")
    if len(set(sweep["seeds"])) < len(sweep["seeds"]):
        raise ValueError(f"{path}: seeds {list(sweep['seeds'])} are not distinct")
    lengths = {key: len(values) for key, values in sweep.get("zip", {}).items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path}: the lists of 'zip' differ in length: {lengths}")


def resolved(config: str, given: dict[str, Any]) -> ConfigDict:
    """The config with the given keys set.

    ValueError for a key that it does not have, with the nearest one, or of another type.
    """
    # slow to import
    from bridge_jax.training.settings import read

    path, _, method = config.partition(":")
    path = schema.expand_user(path)
    if not os.path.exists(path):
        raise ValueError(f"no config file {path!r}")
    try:
        module = import_file(path)
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error!r}") from error
    made = module.get_config(*[method] * bool(method))
    for key, value in given.items():
        *groups, last = key.split(".")
        place = made
        for group in groups:
            if not isinstance(place, ConfigDict) or group not in place:
                raise ValueError(
                    f"unknown key {key!r} of {config}: {schema.did_you_mean(group, place)}"
                )
            place = place[group]
        if last not in place:
            hint = renamed.hint(method, last) or schema.did_you_mean(last, place)
            raise ValueError(f"unknown key {key!r} of {config}: {hint}")
        with place.ignore_type():
            place[last] = value
    read(made, devices=1)
    return made


def fingerprint(config) -> str:
    """Fingerprint of the keys that are not at the default of configs/base.py.

    A key that is added later, at its default, does not change it. A default that is changed there
    does not change it either: then remove the results of the runs that had the old one.
    """
    changed = schema.diff(config, all_defaults())
    return schema.fingerprint(
        {renamed.fingerprint_key(key): mine for key, (mine, _) in changed.items()}
    )


@functools.cache
def all_defaults() -> dict:
    """configs/base.py as JSON."""
    return schema.to_json(base.get_config())


def runs_of(sweep: dict) -> list[Run]:
    """All runs, seeds innermost: a sweep that is cut off has all seeds of its first variants."""
    zipped = sweep.get("zip", {})
    rows = [dict(zip(zipped, values)) for values in zip(*zipped.values())] if zipped else [{}]
    grid = sweep.get("grid", {})
    combinations = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    # a folder is read once for all of its runs
    found, weights = [], functools.cache(weights_hash)
    for (variant, own), row, combination, seed in itertools.product(
        sweep.get("variants", {"": {}}).items(), rows, combinations, sweep["seeds"]
    ):
        changed = row | combination
        given = {key: plain(value) for key, value in (sweep.get("set", {}) | own | changed).items()}
        method = given.pop("method", "")
        config = sweep["config"] + (f":{method}" if method else "")
        made = resolved(config, given | {"seed": seed})
        parts = [
            variant or method or "run",
            *(f"{key.split('.')[-1]}={value}" for key, value in changed.items()),
            f"seed={seed}",
        ]
        name = re.sub(r"[^\w.=+-]+", "_", ",".join(parts).replace(",", "__"))
        found.append(
            Run(
                name,
                variant or method or "run",
                seed,
                config,
                given,
                fingerprint(made),
                weights(made.model.path),
            )
        )
    doubled = [
        name for name, count in collections.Counter(run.name for run in found).items() if count > 1
    ]
    if doubled:
        raise ValueError(
            f"several runs are named {', '.join(doubled[:3])}: a grid names a run by the last part "
            "of each key"
        )
    return found


def plain(value: Any) -> Any:
    """The value with Python's numbers, which a command line can give, in place of numpy's."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    return value.item() if hasattr(value, "item") else value
