"""The checks that want a device: `python -m pytest -m gpu tests/test_on_devices.py`, or `-m tpu`.

They are those of experiments.preflight, in processes of their own: this one computes on simulated
CPUs, with flags for quick compilation. Skipped where there is no such device. A run of the command
is given five minutes, and there are two.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from bridge_jax.distributed import platforms
from bridge_jax.preflight import checks

ROOT = pathlib.Path(__file__).resolve().parent.parent
# the parts of jax for these devices, without which the search is spared
PARTS = {
    "gpu": ("jax_cuda13_plugin", "jax_cuda12_plugin", "jax_rocm7_plugin", "jax_rocm60_plugin"),
    "tpu": ("libtpu",),
}
# jax's names of a platform that has such devices
NAMES = {"gpu": {"cuda", "rocm", "gpu"}, "tpu": {"tpu"}}
# heads as of a 3B model; only their shapes are made
HEADS = (
    "--config.model.path=",
    "--config.model.arch.num_attention_heads=16",
    "--config.model.arch.num_key_value_heads=2",
    "--config.model.arch.head_dim=128",
)
RUNS = {
    "bfloat16": (
        "--config.model.dtype=bfloat16",
        "--config.rollout.cache_dtype=bfloat16",
        *HEADS,
    ),
    "float32": ("--real",),
}
devices = pytest.mark.parametrize(
    "device",
    [pytest.param("gpu", marks=pytest.mark.gpu), pytest.param("tpu", marks=pytest.mark.tpu)],
)


@functools.cache
def platforms_here() -> frozenset[str]:
    """What jax can start here, found in another process."""
    return frozenset(platforms.startable())


def skip_without(device: str) -> None:
    """Skips the test where there is no such device, with the reason."""
    if not any(importlib.util.find_spec(part) for part in PARTS[device]):
        pytest.skip(f"jax has no part for a {device} here: pip install -e '.[cuda13]' or '.[tpu]'")
    if not NAMES[device] & platforms_here():
        pytest.skip(f"there is no {device} here; jax can start: {', '.join(platforms_here())}")


@functools.cache
def records(device: str, run: str) -> tuple[int, tuple[str, ...]]:
    """(exit code, lines) of the command on the real devices."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("XLA_FLAGS", "NPROC", "JAX_PLATFORMS")
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.preflight"),
            *("--config=configs/quickstart.py:bridge", "--workdir=runs/on_devices", *RUNS[run]),
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    # for the record: pytest -s shows it
    print(done.stdout)
    return done.returncode, tuple(done.stdout.splitlines())


@devices
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", [*checks.QUICK, "memory, real", "sampling", "the run"])
def test_check(device, run, name):
    """No line of this check says FAIL, and there is one."""
    skip_without(device)
    if name not in checks.QUICK and "--real" not in RUNS[run]:
        pytest.skip("a line of --real alone")
    _, lines = records(device, run)
    mine = [line for line in lines if line[6:].startswith(name)]
    assert mine and not [line for line in mine if line.startswith("FAIL")], "\n".join(lines)


@devices
def test_exit_code(device):
    """0 where no line says FAIL."""
    skip_without(device)
    for run in RUNS:
        code, lines = records(device, run)
        assert code == 3 * any(line.startswith("FAIL") for line in lines), "\n".join(lines)
