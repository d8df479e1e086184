"""A platform that cannot be started ends every command with one line: what was asked, what is here,
the way out.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from bridge_jax.distributed import platforms
from tests import tiny_runs

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
        | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def refused(done: subprocess.CompletedProcess, asked: str) -> None:
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"error: {asked}: ")
    assert re.search(r"can be started here: cpu[, \w]*\. Set JAX_PLATFORMS=cpu", done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, value",
    [
        # known to jax, without its plugin
        ("JAX_PLATFORMS", "cuda"),
        pytest.param("JAX_PLATFORMS", "rocm", marks=pytest.mark.slow),
        pytest.param("JAX_PLATFORMS", "tpu", marks=pytest.mark.slow),
        pytest.param("JAX_PLATFORMS", "nonsense", marks=pytest.mark.slow),
        pytest.param("JAX_PLATFORMS", "CPU", marks=pytest.mark.slow),
        pytest.param("JAX_PLATFORM_NAME", "gpu", marks=pytest.mark.slow),
    ],
)
def test_a_platform_that_is_missing(name, value):
    """One line names what was asked for, what is here and the way out."""
    here = platforms.startable()
    if value in here or value == "gpu" and len(here) > 1:
        pytest.skip("this machine has it")
    code = (
        "from bridge_jax.distributed import platforms\nfrom experiments.cli import fail\n"
        "try:\n    platforms.devices()\nexcept ValueError as error:\n    fail(str(error))"
    )
    refused(run("-c", code, **{name: value}), f"{name}={value!r}")


@pytest.mark.slow
def test_platforms_that_are_there():
    """Also as the second choice; and nothing is lost where nothing was asked for."""
    code = "from bridge_jax.distributed import platforms; print(platforms.devices()[0].platform)"
    for given in ({"JAX_PLATFORMS": "cpu"}, {"JAX_PLATFORMS": "cuda,cpu"}, {}):
        assert run("-c", code, **given).stdout.split()[-1:] == ["cpu"]
    assert "cpu" in platforms.startable()


@pytest.mark.slow
def test_the_quickstart_ends_with_that_line(tmp_path):
    """Behind lines of progress, from the runs that it starts; the others are not started."""
    done = run("-m", "experiments.quickstart", f"--out={tmp_path}", JAX_PLATFORMS="nonsense")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: ")
    assert "JAX_PLATFORMS='nonsense': " in last and "JAX_PLATFORMS=cpu" in last


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["train", "--config=configs/from_scratch.py:sft", "--workdir={0}/run"],
        ["evaluate", "--model={0}/model", "--tasks=arithmetic", "--out={0}/out"],
        pytest.param(["export", "--workdir={0}", "--out={0}/out"], marks=pytest.mark.slow),
        pytest.param(["pretrain", "--out={0}/base"], marks=pytest.mark.slow),
        pytest.param(
            ["plan", "--config=configs/from_scratch.py:sft", "--topology=gpu"],
            marks=pytest.mark.slow,
        ),
        pytest.param(["bench", "reference"], marks=pytest.mark.slow),
        pytest.param(["methods", "--out={0}/methods.md"], marks=pytest.mark.slow),
    ],
    ids=lambda command: command[0],
)
def test_every_command_that_looks_at_devices(tmp_path, command):
    """Each command ends with that line instead of a traceback."""
    record = {"config": tiny_runs.config("sft").to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(record))
    name, *given = (text.format(tmp_path) for text in command)
    done = run("-m", f"experiments.{name}", *given, JAX_PLATFORMS="nonsense")
    refused(done, "JAX_PLATFORMS='nonsense'")
