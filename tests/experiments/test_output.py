"""Every command goes on where its output cannot be written; those whose output is their result say
that it is lost.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMANDS = sorted(
    path
    for path in (ROOT / "experiments").rglob("*.py")
    if "def define_flags()" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_begins_alike(path):
    """Through run_command, which sees to its output."""
    text = path.read_text(encoding="utf-8")
    assert "run_command(main" in text
    assert "app.run(" not in text


def run(redirected: str, *arguments) -> subprocess.CompletedProcess:
    """A command of this project, run by a shell with its output redirected."""
    return subprocess.run(
        ["bash", "-c", f'exec "$0" -m "$@" {redirected}', sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture
def pairs(tmp_path):
    """Answers to grade; half of them are right, and one must go to a worker."""
    path = tmp_path / "pairs.jsonl"
    boxed = [r"\boxed{4}", r"\boxed{5}", r"\boxed{(x+1)^2-x^2-2x+3}", "none"]
    path.write_text("".join(json.dumps({"gold": "4", "prediction": text}) + "\n" for text in boxed))
    return path


@pytest.mark.slow
def test_what_is_only_said_may_be_lost(pairs):
    """Its rates, on a full disk, or the workers' notes: nothing of the result, and the exit code,
    changes.
    """
    whole = run("", "experiments.grade", f"--file={pairs}")
    outcomes = [json.loads(line)["outcome"] for line in whole.stdout.splitlines()]
    assert outcomes == ["correct", "wrong", "correct", "no_answer"] and whole.returncode == 0
    for redirected in ("2>/dev/full", "2>&-"):
        silent = run(redirected, "experiments.grade", f"--file={pairs}")
        assert (silent.returncode, silent.stdout) == (0, whole.stdout)


@pytest.mark.parametrize(
    "redirected, code, expected",
    [
        (">/dev/full", 5, "error: standard output: No space left on device; make room"),
        pytest.param(
            ">&-", 2, "error: standard output: Bad file descriptor", marks=pytest.mark.slow
        ),
        pytest.param("> >(exit)", 2, "error: standard output: Broken pipe", marks=pytest.mark.slow),
    ],
)
def test_a_result_that_is_lost_is_an_error(pairs, redirected, code, expected):
    """A result that cannot be written is an error with the reason."""
    done = run(redirected, "experiments.grade", f"--file={pairs}")
    assert done.returncode == code and expected in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("redirected, code", [(">/dev/full", 5), ("2>/dev/full", 0), ("2>&-", 0)])
def test_a_table_of_runs(tmp_path, redirected, code):
    """Only a lost standard output fails a command that prints a table."""
    sweep = tmp_path / "some_sweep.py"
    sweep.write_text("def get_sweep():\n    return {'config': 'configs/ladder.py', 'seeds': [0]}\n")
    given = f"--sweep={sweep}", f"--workdir={tmp_path}", "--dry_run"
    done = run(redirected, "experiments.sweep", *given)
    assert done.returncode == code and ("to do" in done.stdout) == (code == 0), done.stderr


@pytest.mark.parametrize("redirected", ["2>/dev/full", "<&- >&- 2>&-"])
def test_an_error_that_cannot_be_said_keeps_its_code(redirected):
    """An error keeps its exit code if it cannot be printed."""
    assert run(redirected, "experiments.grade", "--fil=x").returncode == 2
    assert run(redirected, "experiments.grade", "--file=/nowhere").returncode == 2
