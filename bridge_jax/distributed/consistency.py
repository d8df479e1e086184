"""What must be the same on all hosts before they train together, and who differs in what: no host is asked anything here."""

from __future__ import annotations

import collections
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import jax

from bridge_jax.config import schema

ROOT = Path(__file__).resolve().parents[2]
SHOWN = 6  # differences named per host
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # variables of the environment
JAX = (
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
)  # of jax's own settings those that change numbers
PACKAGES = (
    r"jax|jaxlib|numpy|optax|flax|orbax-checkpoint|transformers|tokenizers|sympy|math-verify|"  # what decides the numbers
    r"libtpu(-nightly)?|jax-(cuda|rocm)\d+-(plugin|pjrt)"
)


def identity(config) -> dict[str, Any]:
    """What must be the same on all hosts before they begin: config but for the index, code, versions, flags, jax's
    settings, model files."""
    given = schema.to_json(config)
    given.get("hosts", {}).pop("index", None)
    files = sorted(
        path
        for folder in ("bridge_jax", "configs", "experiments")
        for path in (ROOT / folder).rglob("*.py")
    )
    code = {
        str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in files
    }
    packages = reversed(
        [one for one in importlib.metadata.distributions() if one.name]
    )  # the first of a name is imported
    found = {one.name.replace("_", "-").lower(): one.version for one in packages}
    versions = {"python": platform.python_version()} | {
        key: found[key] for key in found if re.fullmatch(PACKAGES, key)
    }
    dumps = lambda flag: flag.startswith(
        "--xla_dump"
    )  # may go to a folder of each host's own, and change nothing
    flags = {
        name: " ".join(flag for flag in os.environ.get(name, "").split() if not dumps(flag))
        for name in FLAGS
    }
    parts = {
        "config.": schema.flatten(given),
        "file ": code,
        "version of ": versions,
        "variable ": flags,
        "setting ": {name: str(getattr(jax.config, name, None)) for name in JAX},
        "model file ": model_files(given.get("model", {}).get("path", "")),
    }
    return {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}


def model_files(path: str) -> dict[str, str]:
    """A hash of each file of a local model folder; of weights: of size, header and end, as reading all would take minutes."""
    folder, hashes = Path(path).expanduser(), {}
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")] if path else []):
        with open(file, "rb") as opened:
            size = file.stat().st_size
            head = (
                size if file.suffix == ".json" else 8 + int.from_bytes(opened.read(8), "little")
            )  # its length comes first
            opened.seek(0)
            said = hashlib.sha256(b"%d" % size + opened.read(min(head, size)))
            opened.seek(max(0, size - (1 << 16)))
            said.update(opened.read())
        hashes[file.name] = said.hexdigest()[:12]
    return hashes


def differences(said: list[dict[str, Any]]) -> dict[int, str]:
    """Host -> in what it differs from most of them, in words; values are JSON."""
    differs = collections.defaultdict(list)
    for key in sorted({key for one in said for key in one}):
        values = [json.dumps(one.get(key, schema.NOT_SET), sort_keys=True) for one in said]
        usual = collections.Counter(values).most_common(1)[0][
            0
        ]  # host 0's, where as many have one as the other
        for i, value in enumerate(values):
            if value != usual:
                differs[i].append(f"{key} is {value}, elsewhere {usual}")
    rest = lambda found: f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return {i: f"{'; '.join(found[:SHOWN])}{rest(found)}" for i, found in differs.items()}
