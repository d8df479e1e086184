"""One new file is a new method, task or family: dropped into a copy of the repository, each runs,
and every test that is collected for it, with those of all names at once, passes with nothing else
edited.

The toys (tests/dropin) are such as would meet a list that somebody keeps by hand: the method's name
sorts between others, it has a setting that another method has with other words, a Schedule, and a
metric of its own. That the family is trained: tests/models/test_new_family.py.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOYS = {"methods": "batch_mean", "tasks": "backwards", "models": "sandwich"}
FOLDERS = ("bridge_jax", "configs", "docs", "experiments", "tests")
FILES = ("README.md", "pyproject.toml")

# Tests of all methods, tasks or families at once, without a toy's name in their ids. Those with
# such
# a name are found by collecting the copy's tests.
AT_ONCE = (
    "tests/config/test_base.py",
    "tests/config/test_sweeps.py",
    "tests/experiments/test_cli.py",
    "tests/experiments/test_methods.py",
    "tests/experiments/test_study.py",
    "tests/methods/test_conformance.py::test_names_and_load",
    "tests/tasks/test_tasks.py",
    "tests/test_metric_keys.py",
    "tests/training/test_settings.py",
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository with the three files dropped in, and nothing else changed."""
    tree = tmp_path_factory.mktemp("copy")
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    for room, name in TOYS.items():
        shutil.copy(ROOT / "tests" / "dropin" / f"{name}.py", tree / "bridge_jax" / room)
    return tree


def run(tree: pathlib.Path, *arguments: str, **environment) -> str:
    """What `python -m ARGUMENTS` prints in the copy; it must exit with 0."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=tree,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return done.stdout


def train(tree: pathlib.Path, workdir: pathlib.Path, config: str, **given) -> None:
    """Three steps of a tiny model; given: {"group__key": value}."""
    given |= dict(steps=3, eval__every=3, eval__limit=8, rollout__max_new=8)
    given |= dict(batch__prompts_per_step=2, batch__samples_per_prompt=4, batch__microbatch_rows=8)
    tiny = dict(hidden_size=32, num_hidden_layers=1, head_dim=8, intermediate_size=64)
    given |= {f"model__arch__{key}": value for key, value in tiny.items()}
    keys = [f"--config.{key.replace('__', '.')}={value}" for key, value in given.items()]
    command = ("experiments.train", f"--config=configs/{config}", f"--workdir={workdir}", *keys)
    run(tree, *command, XLA_FLAGS="--xla_backend_optimization_level=0")


@pytest.mark.slow
def test_a_method_and_a_task_dropped_in_are_trained(copy, tmp_path):
    """By their names behind a config's; their settings, those of a Schedule too, are flags."""
    of_method = {"kind": "linear", "end": 0.5, "steps": 2}
    prefix = "method__batch_mean__baseline_schedule__"
    given = {prefix + key: value for key, value in of_method.items()}
    train(copy, tmp_path, "any_task.py:batch_mean,backwards", task__digits=3, **given)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 3 and "eval/held_out_accuracy" in lines[-1]
    assert all("batch_mean/baseline" in line for line in lines[1:])
    config = json.loads((tmp_path / "config.json").read_text())["config"]
    assert (config["method"]["name"], config["task"]["name"]) == ("batch_mean", "backwards")
    found = config["method"]["batch_mean"]["baseline_schedule"]
    assert {key: found[key] for key in of_method} == of_method and config["task"]["digits"] == 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_suite_stays_green(copy):
    """Every test of a toy, and those of all names, pass or say which command adds what they
    lack.
    """
    command = ("pytest", "-p", "no:cacheprovider")
    ids = run(copy, *command, "--collect-only", "-q").splitlines()
    of_toys = [id for id in ids if any(re.search(rf"::.*\b{toy}\b", id) for toy in TOYS.values())]
    output = run(copy, *command, "-v", *of_toys, *AT_ONCE)
    for name in TOYS.values():
        assert len(re.findall(rf"\[\S*\b{name}\b\S*\] PASSED", output)) > 3, name
    assert "python -m experiments.methods adds it" in output
    assert "python -m tests.models.make_golden adds it" in output
