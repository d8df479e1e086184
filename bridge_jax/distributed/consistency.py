"""Consistency check: config, code, versions, flags, data and model files are equal on all hosts.

The error names each host that differs, and in what. A pod that starts with two versions is worse
than one that does not start.
"""

from __future__ import annotations

import collections
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from bridge_jax.config import schema
from bridge_jax.distributed import multihost

ROOT = Path(__file__).resolve().parents[2]
# differences named for a host
SHOWN = 6
# variables of the environment
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# jax's settings that change numbers
SETTINGS = (
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
)
# packages that decide the numbers
PACKAGES = (
    r"jax|jaxlib|numpy|optax|flax|orbax-checkpoint|transformers|tokenizers|sympy|math-verify|"
    r"libtpu(-nightly)?|jax-(cuda|rocm)\d+-(plugin|pjrt)"
)


def check(what: str, mine: dict[str, Any]) -> None:
    """ValueError on every host unless all give the same; values are JSON."""
    if multihost.count() == 1:
        return
    found = differences([json.loads(text) for text in multihost.gather(what, json.dumps(mine))])
    if found:
        lines = "\n".join(f"  {multihost.name(i)}: {text}" for i, text in sorted(found.items()))
        raise ValueError(
            f"the hosts differ, and would not train the same model:\n{lines}\n"
            "Start all of them with the same command, code and packages"
        )


def identity(config) -> dict[str, Any]:
    """Config but for the index, code, versions, flags, jax's settings, model files."""
    given = schema.to_json(config)
    given.get("hosts", {}).pop("index", None)
    code = {
        str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for folder in ("bridge_jax", "configs", "experiments")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    versions = {"python": platform.python_version()}
    for one in importlib.metadata.distributions():
        key = (one.name or "").replace("_", "-").lower()
        # of several of a name the first is imported
        if re.fullmatch(PACKAGES, key):
            versions.setdefault(key, one.version)
    flags = {}
    for name in FLAGS:
        # dumps may go to a folder of each host's own, and change nothing
        words = os.environ.get(name, "").split()
        flags[name] = " ".join(word for word in words if not word.startswith("--xla_dump"))
    parts = {
        "config.": schema.flatten(given),
        "file ": code,
        "version of ": versions,
        "variable ": flags,
        "setting ": {name: str(getattr(jax.config, name, None)) for name in SETTINGS},
        "model file ": model_files(given.get("model", {}).get("path", "")),
    }
    return {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}


def model_files(path: str) -> dict[str, str]:
    """A hash of each file of a local model folder; of weights of their size, header and end."""
    folder, hashes = Path(path).expanduser(), {}
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")] if path else []):
        size = file.stat().st_size
        with open(file, "rb") as opened:
            # reading all weights would take minutes; their header's length comes first
            length = 8 + int.from_bytes(opened.read(8), "little")
            head = size if file.suffix == ".json" else min(length, size)
            opened.seek(0)
            found = hashlib.sha256(b"%d" % size + opened.read(head))
            opened.seek(max(0, size - (1 << 16)))
            found.update(opened.read())
        hashes[file.name] = found.hexdigest()[:12]
    return hashes


def differences(given: list[dict[str, Any]]) -> dict[int, str]:
    """{host: a text that names the keys in which it differs from the majority}."""
    differs = collections.defaultdict(list)
    for key in sorted({key for one in given for key in one}):
        values = [json.dumps(one.get(key, schema.NOT_SET), sort_keys=True) for one in given]
        # that of host 0 in a tie
        usual = collections.Counter(values).most_common(1)[0][0]
        for i, value in enumerate(values):
            if value != usual:
                differs[i].append(f"{key} is {value}, elsewhere {usual}")
    for texts in differs.values():
        if len(texts) > SHOWN:
            texts[SHOWN - 1 :] = [f"{texts[SHOWN - 1]} and {len(texts) - SHOWN} more"]
    return {i: "; ".join(texts) for i, texts in differs.items()}


def check_shared(folder: str) -> None:
    """ValueError unless all hosts see in this directory what host 0 (main) writes there."""
    if multihost.count() == 1:
        return

    def mark() -> str:
        os.makedirs(folder, exist_ok=True)
        handle, path = tempfile.mkstemp(prefix=".shared_", dir=folder)
        os.close(handle)
        return os.path.basename(path)

    path = os.path.join(folder, multihost.broadcast_from_main("a file in the run directory", mark))
    # a network's file system may take a moment
    until = time.monotonic() + 10
    while not os.path.exists(path) and time.monotonic() < until:
        time.sleep(0.5)
    seen = multihost.gather("who sees the run directory", "yes" if os.path.exists(path) else "")
    if multihost.is_main():
        os.unlink(path)
    if blind := [multihost.name(i) for i, found in enumerate(seen) if not found]:
        raise ValueError(
            f"--workdir={folder!r} is not one directory: {', '.join(blind)} do not see what host 0 "
            "(main) writes there. Give all hosts the same --workdir on a file system they share"
        )
