"""The train command as a user starts it: exit codes, messages, and real signals to a real
process.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import pytest

from bridge_jax import methods
from bridge_jax.rundir import checkpoint
from bridge_jax.training import divergence, trainer
from experiments import cli
from experiments import train as command
from tests import tiny_runs
from tests.filesystem import full_disk
from tests.held import on_linux

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 24
GIVEN = dict(steps=STEPS, checkpoint__every=4, checkpoint__keep=2, eval__every=0)


def config_file(folder: pathlib.Path) -> pathlib.Path:
    """The tiny config as a file of its own, which also sees to it that rewards vary.

    HELD=STEP holds the main thread while rollouts of this step are written, in code that is not
    Python's, until stdin ends.
    """
    path = folder / "tiny.py"
    path.write_text(f"""import os
from bridge_jax.rundir import logbook
from bridge_jax.tasks import arithmetic
from tests import held, tiny_runs

write = logbook.Logbook.write_rollouts


def write_rollouts(self, step, rows, kind="step"):
    if str(step) == os.environ.get("HELD"):
        held.hold_until_stdin()
        print("let go", flush=True)
    return write(self, step, rows, kind)


logbook.Logbook.write_rollouts = write_rollouts

arithmetic.compare, arithmetic.after_mark = tiny_runs.parity, tiny_runs.whole


def get_config(method="grpo"):
    return tiny_runs.config(method, **{GIVEN!r})
""")
    return path


def start(environment, *arguments) -> subprocess.Popen:
    """python -m experiments.train in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(environment, *arguments) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    process = start(environment, *arguments)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def wait_for_step(
    workdir: pathlib.Path, step: int, process: subprocess.Popen, saved: bool = False
) -> int:
    """The last step in metrics.jsonl once it is at least `step`, and, with `saved`, a checkpoint is
    complete.
    """
    path, end = workdir / "metrics.jsonl", time.monotonic() + 240
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        found = re.findall(
            r'^\{"step": (\d+)', path.read_text() if path.exists() else "", re.MULTILINE
        )
        if (
            found
            and int(found[-1]) >= step
            and (not saved or any((workdir / "checkpoints").glob("step_??????")))
        ):
            return int(found[-1])
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached")


@on_linux
def test_sigterm_while_programs_are_compiled(environment, tmp_path):
    """Ends with code 0 and one line, whatever XLA's threads are at.

    Where they are done first, the run ends after its first step and has saved it: there it is held,
    so that it cannot come to its own end.
    """
    process = start(
        environment | {"JAX_COMPILATION_CACHE_DIR": "", "HELD": "1"},
        f"--config={config_file(tmp_path)}",
        f"--workdir={tmp_path / 'run'}",
    )
    while not (line := process.stdout.readline()).startswith("compiling "):
        assert line, process.communicate()
    process.send_signal(signal.SIGTERM)
    # the end of stdin lets a held step go
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, (out, err)
    stopped = "nothing is lost" if "held\n" not in out else "stopped by a signal after step"
    assert stopped in out, (out, err)


@pytest.mark.slow
def test_killed_then_terminated_then_finished_equals_unbroken(environment, tmp_path):
    """kill -9 between two checkpoints, SIGTERM to the second process, and the third one ends as a
    run never touched.
    """
    hurt, whole, file = tmp_path / "hurt", tmp_path / "whole", config_file(tmp_path)
    arguments = f"--config={file}", f"--workdir={hurt}"

    process = start(environment, *arguments)
    wait_for_step(hurt, 6, process, saved=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    saved = checkpoint.Checkpoints(str(hurt), read_only=True).steps()[-1]
    assert 0 < saved < STEPS and saved % 4 == 0
    left = {line["step"]: line for line in tiny_runs.lines(hurt)}

    process = start(environment, *arguments)
    seen = wait_for_step(hurt, max(saved, max(left)) + 1, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    stopped = int(re.search(r"stopped by a signal after step (\d+); saved", out)[1])
    # the metrics of a step are written while the next is under way
    assert f"steps {saved + 1} to {STEPS}" in out and seen <= stopped <= seen + 3
    assert checkpoint.Checkpoints(str(hurt), read_only=True).steps()[-1] == stopped
    again = {line["step"]: line for line in tiny_runs.lines(hurt)}
    assert again[max(left)] == left[max(left)] and max(again) == stopped

    code, out, err = run(environment, *arguments)
    assert code == 0 and out.splitlines()[-1].startswith(f"step {STEPS}"), err
    code, out, err = run(environment, f"--config={file}", f"--workdir={whole}")
    assert code == 0 and not re.search("Traceback|Unable to initialize|error", err), err
    assert any(0 < line["reward/mean"] < 1 for line in tiny_runs.lines(whole))
    tiny_runs.assert_same_run(hurt, whole, "grpo")


def held_at(environment, step: int, *arguments) -> subprocess.Popen:
    """A run whose main thread is held in this step."""
    process = start(environment | {"HELD": str(step)}, *arguments)
    while (line := process.stdout.readline()) != "held\n":
        assert line, process.communicate()
    return process


def wait_for_output(process: subprocess.Popen, text: str) -> None:
    """Waits until a line of stderr says it."""
    while text not in (line := process.stderr.readline()):
        assert line, process.communicate()


@on_linux
@pytest.mark.slow
def test_ctrl_c_is_acknowledged_at_once_and_a_second_one_ends_at_once(environment, tmp_path):
    """While a step holds the main thread. The run then goes on bit for bit from its last
    checkpoint.
    """
    hurt, whole, file = tmp_path / "hurt", tmp_path / "whole", config_file(tmp_path)
    arguments = f"--config={file}", f"--workdir={hurt}", "--config.checkpoint.every=1"
    process = held_at(environment, 6, *arguments)
    process.send_signal(signal.SIGINT)
    wait_for_output(process, "finishing step 6, saving; again to end at once\n")
    process.send_signal(signal.SIGINT)
    process.wait(240)
    out, err = process.communicate()
    assert process.returncode == 130 and "let go" not in out, (out, err)
    assert err.endswith(
        "ended at once; the same command resumes from the last checkpoint, from the beginning if there is none\n"
    )
    assert checkpoint.Checkpoints(str(hurt), read_only=True).steps()[-1] in (4, 5)

    # one alone: the step is finished and saved
    process = held_at(environment, 7, *arguments)
    process.send_signal(signal.SIGINT)
    wait_for_output(process, "finishing step 7, saving; again to end at once\n")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0 and out.startswith("let go"), (out, err)
    assert "stopped by a signal after step 7; saved" in out
    assert checkpoint.Checkpoints(str(hurt), read_only=True).steps()[-1] == 7

    code, out, err = run(environment, *arguments)
    assert code == 0 and "steps 8 to" in out, err
    code, out, err = run(
        environment, f"--config={file}", f"--workdir={whole}", "--config.checkpoint.every=1"
    )
    assert code == 0, err
    tiny_runs.assert_same_run(hurt, whole, "grpo")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--config.optim.base.learning_rat=1"],
            "unknown key config.optim.base.learning_rat: did you mean 'learning_rate'?",
        ),
        pytest.param(
            ["--config.step", "3"],
            "unknown key config.step: did you mean 'steps'?",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--config.steps=abc"],
            "--config.steps=abc; wanted: a whole number, such as 10",
            marks=pytest.mark.slow,
        ),
        (["--workdr=x"], "Unknown command line flag 'workdr'. Did you mean: workdir ?"),
        pytest.param(["--stop_at=0"], "flag --stop_at=0", marks=pytest.mark.slow),
    ],
)
def test_invalid_command_lines(environment, tmp_path, arguments, message):
    """One line that starts with "error:", exit code 2, before jax is even imported."""
    code, out, err = run(
        environment,
        "--config=configs/from_scratch.py:sft",
        f"--workdir={tmp_path / 'run'}",
        *arguments,
    )
    assert code == 2 and err.startswith(f"error: {message}") and err.count("\n") == 1 and not out
    assert not (tmp_path / "run").exists()


def test_no_such_config(environment, tmp_path):
    """A missing config and a missing workdir are errors of one line."""
    code, _, err = run(environment, "--config=configs/quickstrat.py", f"--workdir={tmp_path}")
    assert (
        code == 2
        and err.startswith("error: ")
        and "configs/quickstrat.py" in err
        and err.count("\n") == 1
    )
    code, _, err = run(environment, "--config=configs/from_scratch.py")
    assert code == 2 and err.startswith("error: --workdir missing; for example: ")


def test_what_the_config_cannot_mean(environment, tmp_path):
    """A ValueError of the package is one line, too; here a method's name, and a group of the wrong
    shape.
    """
    code, _, err = run(
        environment, "--config=configs/from_scratch.py:bridg", f"--workdir={tmp_path / 'run'}"
    )
    assert code == 2 and err == (
        f"error: method.name='bridg' is unknown; allowed: {', '.join(methods.names())}. "
        "Did you mean 'bridge'?\n"
    )


@pytest.mark.parametrize(
    "raised, code",
    [(divergence.Diverged("3 updates in a row"), 3), (ValueError("no such thing"), 2)],
)
def test_exit_codes(monkeypatch, capsys, raised, code):
    """Divergence and invalid input have exit codes of their own and one line."""

    def end(*_, **__):
        raise raised

    given = types.SimpleNamespace(
        config=tiny_runs.config(), workdir="w", stop_at=None, force_config=False, preflight=False
    )
    monkeypatch.setattr(command, "flags", types.SimpleNamespace(FLAGS=given))
    monkeypatch.setattr(cli, "log_to_stderr", lambda: None)
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(trainer, "train", end)
    with pytest.raises(SystemExit) as exit:
        command.main(["train"])
    assert exit.value.code == code and capsys.readouterr().err == f"error: {raised}\n"
    with pytest.raises(SystemExit) as exit:
        command.main(["train", "stray"])
    assert exit.value.code == 2 and "unexpected arguments ['stray']" in capsys.readouterr().err


def test_compiled_programs_are_kept_by_default(monkeypatch):
    """Where the environment does not say otherwise; jax itself reads JAX_COMPILATION_CACHE_DIR."""
    given = {}
    monkeypatch.setattr(jax.config, "update", given.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    cli.use_compilation_cache()
    assert given["jax_compilation_cache_dir"] == os.path.expanduser("~/.cache/bridge_jax/xla")
    given.clear()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    cli.use_compilation_cache()
    assert not given


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_kept():
    """Eight arrays of 32 MiB, each freed before the next: without it each is mapped, and its pages
    are faulted in, anew.
    """
    program = """
import resource, sys
import numpy as np
from experiments import train
if sys.argv[1] == "kept":
    train.prepare_memory()
np.ones(2**22)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    np.ones(2**22)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        given: int(
            subprocess.run(
                [sys.executable, "-c", program, given],
                cwd=ROOT,
                check=True,
                capture_output=True,
                env=os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"},
            ).stdout
        )
        for given in ("kept", "as it is")
    }
    assert faults["as it is"] > 8 * 2**25 // 4096 * 0.9 and faults["kept"] < 100, faults


def silent(environment, redirected: str, *arguments, **given) -> int:
    """The exit code of experiments.train, run by a shell with its output redirected."""
    command = f'exec "$0" -m experiments.train "$@" {redirected}'
    return subprocess.run(
        ["bash", "-c", command, sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        timeout=240,
        **given,
    ).returncode


@pytest.fixture(scope="session")
def undisturbed(environment, tmp_path_factory):
    """A run whose output is read."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, _, err = run(
        environment, f"--config={config_file(folder)}", f"--workdir={folder / 'run'}"
    )
    assert code == 0, err
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("redirected", [">/dev/full 2>&1", "<&- >&- 2>&-"])
def test_a_run_that_cannot_talk_goes_on(environment, undisturbed, tmp_path, redirected):
    """A full disk under its log, or nothing at all where its output was: the same run, and exit
    code 0.
    """
    workdir = tmp_path / "run"
    given = f"--config={config_file(tmp_path)}", f"--workdir={workdir}"
    assert silent(environment, redirected, *given) == 0
    tiny_runs.assert_same_run(workdir, undisturbed, "grpo")
    # also where there is nothing to do but to say so, and where it must say what is wrong
    assert silent(environment, redirected, *given) == 0
    assert silent(environment, redirected, *given, "--config.seed=7") == 2


@pytest.mark.slow
def test_a_run_outlives_its_terminal(environment, undisturbed, tmp_path):
    """A terminal, and so a progress bar, that is gone in the middle of the run."""
    main, terminal = pty.openpty()
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.train"]
        + [f"--config={config_file(tmp_path)}", f"--workdir={workdir}"],
        cwd=ROOT,
        env=environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    drain = threading.Thread(target=read_all, args=(main, lambda: begun(workdir, 3)))
    drain.start()
    drain.join(240)
    os.close(main)
    assert process.wait(240) == 0
    tiny_runs.assert_same_run(workdir, undisturbed, "grpo")


def begun(workdir: pathlib.Path, step: int) -> bool:
    """Whether the step is in its metrics."""
    path = workdir / "metrics.jsonl"
    return path.exists() and f'{{"step": {step}' in path.read_text()


def read_all(descriptor: int, enough) -> None:
    """Reads, so that the other side need not wait, until it is enough."""
    os.set_blocking(descriptor, False)
    while not enough():
        with contextlib.suppress(BlockingIOError):
            os.read(descriptor, 65536)
        time.sleep(0.005)


@pytest.mark.slow
def test_a_full_disk_has_an_exit_code_of_its_own_and_costs_no_step(
    environment, undisturbed, tmp_path
):
    """It fills up in the middle of the run; with room the same command goes on, and ends as if
    nothing had been.
    """
    with full_disk.small(tmp_path / "disk", 8192) as disk:
        workdir = disk / "run"
        given = f"--config={config_file(tmp_path)}", f"--workdir={workdir}"
        process = start(environment, *given)
        wait_for_step(workdir, 6, process, saved=True)
        filler = full_disk.fill(disk)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 5, (out, err)
        (error_line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (
            str(workdir) in error_line
            and "make room" in error_line
            and "No space left on device" in error_line
        )
        # while it is full, the same again, and nothing is spoiled; what was cut off would make room
        for unfinished in (workdir / "checkpoints").glob("*tmp*"):
            shutil.rmtree(unfinished)
        full_disk.fill(disk)
        code, _, err = run(environment, *given)
        assert code == 5 and "make room" in err
        filler.unlink()
        code, _, err = run(environment, *given)
        assert code == 0, err
        tiny_runs.assert_same_run(workdir, undisturbed, "grpo")


@pytest.mark.slow
def test_kill_9_before_the_first_checkpoint_and_during_saves(environment, undisturbed, tmp_path):
    """Again and again, at any moment: what a kill cost is taken again, and what it left of a save
    is removed.
    """
    workdir = tmp_path / "run"
    given = f"--config={config_file(tmp_path)}", f"--workdir={workdir}"
    for step, every in ((2, 0), (5, 4), (9, 4)):
        process = start(environment, *given, f"--config.checkpoint.every={every}")
        wait_for_step(workdir, step, process)
        process.kill()
        process.communicate()
    (workdir / "checkpoints" / "step_000016.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    code, _, err = run(environment, *given)
    assert code == 0, err
    tiny_runs.assert_same_run(workdir, undisturbed, "grpo")
    assert [path.name for path in (workdir / "checkpoints").glob("*tmp*")] == []
    # killed before there was a checkpoint: the record of those steps is kept
    assert len(tiny_runs.lines(workdir / "set_aside_1")) >= 2
