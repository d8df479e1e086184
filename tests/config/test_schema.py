"""What a user types becomes the dataclass that was meant, or an error with a way out."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any, Literal

import pytest
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from bridge_jax.config import schema
from tests import errors


@dataclasses.dataclass(frozen=True)
class Recipe:
    lr: float = 1e-3
    warmup: int = 10
    nesterov: bool = False
    name: str = "adamw"
    eos_ids: tuple[int, ...] = ()
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["constant", "cosine"] = "constant"
    cap: float | None = None
    extra: Any = None


@dataclasses.dataclass(frozen=True)
class Needs:
    path: str
    size: int = 1


def recipe(**given) -> Recipe:
    return schema.section(ConfigDict({"optim": given}), "optim", Recipe)


def test_section_keeps_defaults_and_takes_what_is_given():
    """Fields that are not given keep the dataclass's defaults."""
    assert recipe() == Recipe() == schema.section(ConfigDict(), "optim", Recipe)
    assert recipe(lr=0.5, warmup=3, nesterov=True, schedule="cosine") == Recipe(
        0.5, 3, True, schedule="cosine"
    )


@pytest.mark.parametrize(
    "key, given, want",
    [
        ("lr", 1, 1.0),
        ("eos_ids", [1, 2], (1, 2)),
        ("eos_ids", (), ()),
        ("betas", [0, 1], (0.0, 1.0)),
        ("cap", None, None),
        ("cap", 2, 2.0),
        ("extra", "anything", "anything"),
        ("name", "", ""),
    ],
)
def test_section_converts_what_is_the_same_thing(key, given, want):
    """Whole numbers become floats and lists tuples, where the field's type says so."""
    got = getattr(recipe(**{key: given}), key)
    assert got == want and type(got) is type(want)


@pytest.mark.parametrize(
    "key, given, wanted",
    [
        ("lr", "fast", "float"),
        ("lr", True, "float"),
        ("lr", None, "float"),
        ("warmup", 1.0, "int"),
        ("warmup", True, "int"),
        ("warmup", "3", "int"),
        ("nesterov", 1, "bool"),
        ("name", 3, "str"),
        ("eos_ids", 3, "tuple[int, ...]"),
        ("eos_ids", (1, 2.5), "tuple[int, ...]"),
        ("eos_ids", "12", "tuple[int, ...]"),
        ("betas", (0.9,), "tuple[float, float]"),
        ("cap", "2", "float | None"),
        ("schedule", "linear", "'cosine'"),
    ],
)
def test_section_refuses_another_type_and_shows_key_value_and_type(key, given, wanted):
    """The error has the full key, the value given and the type wanted."""
    with errors.raises(ValueError, f"config.optim.{key}={given!r}", wanted):
        recipe(**{key: given})


def test_section_refuses_an_unknown_key_and_guesses():
    """The error has the nearest key, where there is one, and all that are allowed."""
    with errors.raises(ValueError, "config.optim.warmpu", "'warmup'", "betas"):
        recipe(warmpu=3)
    with errors.raises(ValueError, "config.optim.zzz", "betas"):
        recipe(zzz=3)


def test_section_passes_over_keys_of_others_but_reads_its_own_among_them():
    """A group may hold the keys of others; those that are fields too are read."""
    config = ConfigDict({"method": {"lr": 2.0, "lam": 0.3, "name": "sft"}})
    assert schema.section(config, "method", Recipe, others=("lam", "lr")) == Recipe(
        lr=2.0, name="sft"
    )


def test_section_names_missing_fields_unset_placeholders_and_groups_that_are_none():
    """The error names the field without a value, or the key that should be a group."""
    with errors.raises(ValueError, "config.data", "path", "--config.data.path="):
        schema.section(ConfigDict({"data": {"size": 2}}), "data", Needs)
    with errors.raises(ValueError, "config.data.path=None", "str"):
        schema.section(ConfigDict({"data": {"path": placeholder(str)}}), "data", Needs)
    with errors.raises(ValueError, "config.data", "3"):
        schema.section(ConfigDict({"data": 3}), "data", Needs)


def test_did_you_mean():
    """The nearest word is offered, then all that are allowed."""
    assert (
        schema.did_you_mean("grpp", ["sft", "grpo"]) == "did you mean 'grpo'? Allowed: grpo, sft."
    )
    assert schema.did_you_mean("xyz", ["sft"]) == "Allowed: sft."
    assert schema.did_you_mean("xyz", []) == "Allowed: nothing."


def test_diff_and_its_table():
    """Only values that differ are listed, a missing key among them, in aligned columns."""
    config = ConfigDict({"a": {"b": 1, "t": (1, 2)}, "flag": True, "same": 1.0})
    changes = schema.diff(config, {"a": {"b": 2, "t": [1, 2], "c": None}, "flag": 1, "same": 1})
    assert changes == {"a.b": (1, 2), "a.c": (schema.NOT_SET, None), "flag": (True, 1)}
    lines = schema.format_diff(changes, "in the run", "given").splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["key", "in", "the", "run", "given"],
        ["a.b", "1", "2"],
    ]
    assert (
        len({line.index(cell) for line, cell in zip(lines, ("given", "2", "null", "1"))}) == 1
    )  # one column
    assert schema.diff(config, config) == {}


def test_to_json_survives_json_and_says_what_it_cannot_hold():
    """Keys are sorted and tuples become lists; NaN, objects and sets are refused."""
    plain = schema.to_json(ConfigDict({"b": {"y": (1, (2,)), "x": None}, "a": "s"}))
    assert plain == {"a": "s", "b": {"x": None, "y": [1, [2]]}} and list(plain) == ["a", "b"]
    assert json.loads(json.dumps(plain)) == plain
    for bad in (float("nan"), object(), {1, 2}):
        with errors.raises(ValueError, "JSON"):
            schema.to_json({"a": bad})


def test_fingerprint_is_of_the_content_alone():
    """Order, container types and the process's hash seed do not change a fingerprint."""
    mark = schema.fingerprint({"a": 1, "b": {"c": (1, 2)}})
    assert mark == schema.fingerprint(ConfigDict({"b": {"c": [1, 2]}, "a": 1})) and len(mark) == 12
    assert mark != schema.fingerprint({"a": 2, "b": {"c": (1, 2)}})
    code = "from bridge_jax.config.schema import fingerprint; print(fingerprint({'b': {'c': [1, 2]}, 'a': 1}))"
    env = os.environ | {"PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert other.stdout.strip() == mark, other.stderr
