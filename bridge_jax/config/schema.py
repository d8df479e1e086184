"""Conversion of a ConfigDict into frozen dataclasses, with checks of every key's name and type.

`section` builds one dataclass from one group of the config. `diff` compares two configs key by key.
Left out: defaults (in the dataclasses and in configs/), and anything that needs a device.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import numbers
import os
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from bridge_jax.config import renamed

LocalPath = typing.NewType("LocalPath", str)  # of a field: a path of this machine, ~ allowed
NOT_SET = "(not set)"  # stands in a diff for a key that one side does not have


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """End of an error message: the allowed name most like `word`, if any, and all allowed names."""
    names = sorted(str(name) for name in allowed)
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    return (
        f"did you mean {near[0]!r}? " if near else ""
    ) + f"Allowed: {', '.join(names) or 'nothing'}."


def nearest_first(word: str, names: Iterable[str]) -> list[str]:
    """The names, those most like `word` first."""
    likeness = lambda name: difflib.SequenceMatcher(None, str(word), name).ratio()
    return sorted(names, key=lambda name: (-likeness(name), name))


def section(
    config: ConfigDict, name: str, cls: type, others: Iterable[str] = (), default: Any = None
) -> Any:
    """An instance of `cls` built from config.<name>.

    default: an instance with the values of keys that are not given; without it the defaults of
    `cls` hold. A field that is a dataclass is built from the group config.<name>.<field>. others:
    keys that other readers use; they are ignored here. ValueError for an unknown
    key, a value of the wrong type, and a missing key without default.
    """
    group = config[name] if name in config else {}
    if not isinstance(group, (ConfigDict, Mapping)):
        raise ValueError(f"config.{name} must be a group of keys, got {group!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = typing.get_type_hints(cls)
    ignored = set(others) - set(fields)
    values = {}
    for key, value in group.items():
        if key in ignored:
            continue
        if key not in fields:
            hint = renamed.hint("", key) if name in renamed.GROUPS else ""
            raise ValueError(
                f"unknown key config.{name}.{key}: {hint or did_you_mean(key, fields)}"
            )
        if dataclasses.is_dataclass(hints[key]):
            inner, usual = f"{name}.{key}", getattr(default, key, fields[key].default)
            values[key] = section({inner: value}, inner, hints[key], default=usual)
            continue
        try:
            values[key] = _typed(value, hints[key])
        except TypeError:
            wanted = _wanted(hints[key])
            raise ValueError(
                f"config.{name}.{key}={value!r} is {_kind(value)}; wanted: {wanted}."
            ) from None
        except ValueError as error:
            raise ValueError(f"config.{name}.{key}={value!r}: {error}") from None
    if default is not None:
        return dataclasses.replace(default, **values)
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
    """The path with a leading ~ or ~NAME expanded; ValueError where that home does not exist."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(
            f"there is no home directory {path.split('/')[0]!r} here; write the folder out, or "
            f"./{path} for one of that name in the current folder"
        )
    return expanded


def _typed(value: Any, wanted: Any) -> Any:
    """`value` as the annotated type; TypeError for a value of another type."""
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
    """The config after a round trip through JSON: keys sorted, tuples as lists.

    ValueError for values that JSON cannot hold.
    """
    try:
        return json.loads(json.dumps(_plain(config), sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the config holds a value that JSON cannot hold ({error}); allowed: dict, list, "
            "tuple, str, finite numbers, bool, None."
        ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, (ConfigDict, Mapping)):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def fingerprint(config: Any) -> str:
    """12 hex digits of the SHA-256 of `to_json(config)`, the same in every process."""
    text = json.dumps(to_json(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def diff(config: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """{"a.b.c": (value in config, value in other)} for all keys that differ.

    NOT_SET stands for the value of a key that one side lacks.
    """
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
    """A diff as an aligned table with the columns key, `mine` and `theirs`."""
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
