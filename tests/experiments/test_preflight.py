"""The command experiments.preflight and training's flag: lines, exit codes, what is left behind."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from bridge_jax.preflight import checks
from bridge_jax.preflight.record import FAIL, OK, Record
from experiments import train
from experiments.preflight import command
from tests import tiny_runs

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(environment, module: str, *arguments) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command."""
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_on_a_cpu(environment, tmp_path):
    """Nothing FAILs with the quickstart's model, and nothing is left in the run directory."""
    code, printed, errors = run(
        environment,
        "preflight",
        "--config=configs/quickstart.py:bridge",
        f"--workdir={tmp_path / 'run'}",
    )
    assert code == 0 and "Traceback" not in errors, (printed, errors)
    lines = printed.splitlines()
    names = {line[6:26].strip() for line in lines[:-1]}
    assert names >= set(checks.QUICK) - {"update", "matmul"} | {"update, twice", "matmul float32"}
    assert all(line.startswith(("ok ", "note ")) for line in lines[:-1]), printed
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_training_ends_where_a_check_fails(environment, tmp_path):
    """By the exit code of the checks, before the run directory is made."""
    code, printed, errors = run(
        environment,
        "train",
        "--config=configs/quickstart.py:grpo",
        f"--workdir={tmp_path / 'run'}",
        "--preflight",
        "--config.model.path=",
        "--config.model.arch.hidden_size=40000000",
        "--config.model.arch.num_hidden_layers=1000",
    )
    assert code == command.FAILED, (printed, errors)
    assert "FAIL  memory" in printed and not (tmp_path / "run").exists()


@pytest.mark.parametrize("grade, failed", [(OK, 0), (FAIL, 1)])
def test_the_report(monkeypatch, tmp_path, capfd, grade, failed):
    """A line for each check, the number of FAILs, and the folder is removed."""
    monkeypatch.setattr(checks, "QUICK", {"one": lambda subject: Record("one", grade, "x", "y")})
    workdir = tmp_path / "run"
    config = tiny_runs.config("grpo", batch__prompts_per_step=16)
    assert command.report(config, str(workdir), real=False) == failed
    assert capfd.readouterr().out.splitlines()[0] == f"{grade:<4}  one                 x; y"
    assert not workdir.exists()


def test_trainings_flag_takes_the_same_command_line():
    """Without the flags that are training's alone, in each way that absl reads them."""
    given = (
        "--config=a.py:bridge --workdir d --stop_at 3 --preflight --force_config --config.seed=1"
    )
    assert train.preflight_command(["train.py", *given.split()])[1:] == [
        "-m",
        "experiments.preflight",
        "--config=a.py:bridge",
        "--workdir",
        "d",
        "--config.seed=1",
    ]
    rest = train.preflight_command(["train.py", "-stop_at=3", "--nopreflight", "--preflight=true"])
    assert rest[3:] == []
