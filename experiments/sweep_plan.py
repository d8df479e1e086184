"""What a sweep file says, checked, and the runs that it means (experiments.sweep runs them; what a file holds stands there)."""

from __future__ import annotations

import collections
import functools
import hashlib
import importlib.util
import itertools
import os
import pathlib
import re
from typing import Any, NamedTuple

PARTS = ("config", "set", "variants", "grid", "zip", "seeds")


class Run(NamedTuple):
    """One run of a sweep."""

    name: str
    variant: str
    seed: int
    config: str  # file, with :METHOD behind it
    settings: dict[str, Any]
    fingerprint: str  # of what the resolved config changes in the defaults
    weights: str = ""  # weights_of it

    @property
    def identity(self) -> tuple[str, str, str]:
        """What makes a finished run this run: another base model makes another one."""
        return self.name, self.fingerprint, self.weights

    @property
    def folder(self) -> str:
        """Its directory in the sweep's: of other settings or other weights, another one."""
        return f"{self.name}.{hashlib.sha256(repr(self.identity).encode()).hexdigest()[:6]}"


def load(path: str) -> dict:
    """What get_sweep of the file returns, checked; ValueError with the part at fault."""
    from bridge_jax.config import schema

    if not os.path.exists(path):
        there = sorted(str(p) for p in pathlib.Path(path).parent.glob("*.py"))
        raise ValueError(f"--sweep={path}: no such file; there are {', '.join(there) or 'none'}")
    spec = importlib.util.spec_from_file_location("sweep_file", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        sweep = dict(module.get_sweep())
    except Exception as error:
        raise ValueError(f"{path}: get_sweep() does not return a sweep: {error!r}") from error
    for part in sweep:
        if part not in PARTS:
            raise ValueError(f"{path}: unknown part {part!r}: {schema.did_you_mean(part, PARTS)}")
    tables = {part: sweep.get(part, {}) for part in ("set", "variants", "grid", "zip")}
    tables |= (
        {f"variants[{name!r}]": given for name, given in dict(tables["variants"]).items()}
        if isinstance(tables["variants"], dict)
        else {}
    )
    for name, given in tables.items():
        if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
            raise ValueError(f"{path}: {name} must be a dict with names for keys, got {given!r}")
        if "seed" in given and name != "variants":
            raise ValueError(
                f"{path}: {name} sets 'seed', and the runs would not have the seeds that they are named by; give "
                "them in 'seeds'"
            )
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
    if len({len(values) for values in sweep.get("zip", {}).values()}) > 1:
        raise ValueError(
            f"{path}: the lists of 'zip' differ in length: "
            f"{ ({key: len(values) for key, values in sweep['zip'].items()}) }"
        )
    return sweep


def resolved(config: str, given: dict[str, Any]):
    """The config with the given keys set; ValueError with the nearest key for one that it does not have, or of another type."""
    from ml_collections import ConfigDict

    from bridge_jax.config import schema
    from bridge_jax.training.settings import read

    path, _, method = config.partition(":")
    path = schema.expand_user(path)
    if not os.path.exists(path):
        raise ValueError(f"no config file {path!r}")
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
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
            raise ValueError(f"unknown key {key!r} of {config}: {schema.did_you_mean(last, place)}")
        with place.ignore_type():
            place[last] = value
    read(made, devices=1)
    return made


def fingerprint(config) -> str:
    """Of the keys that are not at the default of configs/base.py: one that comes later, at its default, makes no other run of it.

    So whoever changes a default there makes the finished runs of sweeps those of other settings; remove them.
    """
    from bridge_jax.config import schema

    return schema.fingerprint(
        {key: mine for key, (mine, _) in schema.diff(config, all_defaults()).items()}
    )


@functools.cache
def all_defaults() -> dict:
    """configs/base.py as JSON."""
    from bridge_jax.config import schema
    from configs import base

    return schema.to_json(base.get_config())


def runs_of(sweep: dict) -> list[Run]:
    """All runs in order: seeds innermost, so that a sweep that is cut off has its seeds complete for the first variants."""
    zipped = sweep.get("zip", {})
    rows = [dict(zip(zipped, values)) for values in zip(*zipped.values())] if zipped else [{}]
    grid = sweep.get("grid", {})
    combinations = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    found, weights = [], functools.cache(weights_of)  # a folder is read once for all of its runs
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
            f"several runs are named {', '.join(doubled[:3])}: a grid names a run by the last part of each key"
        )
    return found


def plain(value: Any) -> Any:
    """The value as a command line can give it: np.linspace's numbers are Python's."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    return value.item() if hasattr(value, "item") else value


def weights_of(path: str) -> str:
    """A hash of the weights of a local model folder, from which a run begins; "" for a hub name, or "", random weights."""
    folder = pathlib.Path(path or "/nowhere").expanduser()
    files = sorted(folder.glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:12] if files else ""
