"""Ctrl-C ends every command with one line and exit code 130, at whatever moment it comes; others of
its kind clear up.
"""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest

from experiments import INTERRUPTED, cli
from experiments.study import stages
from tests.held import on_linux

ROOT = pathlib.Path(__file__).resolve().parents[2]
# as they are started: experiments.study, but experiments.bench.peers
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".command")
    for path in (ROOT / "experiments").rglob("*.py")
    if "def define_flags()" in path.read_text(encoding="utf-8")
)
STOPPED = "error: stopped by Ctrl-C\n"


def start(*command: str, path: pathlib.Path | str = "") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
        | {"PYTHONPATH": f"{path}:{ROOT}", "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_while_a_command_imports(tmp_path, name):
    """Also out of an import that would take a KeyboardInterrupt for something else, and go on."""
    (tmp_path / "absl").mkdir()
    (tmp_path / "absl" / "__init__.py").write_text(
        "import time\nprint('importing', flush=True)\n"
        "try:\n    time.sleep(600)\nexcept BaseException:\n    print('swallowed', flush=True)\n"
    )
    process = start("-m", name, path=tmp_path)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out, err) == (INTERRUPTED, "", STOPPED)


def test_what_was_printed_is_kept():
    """A command that prints lines into a pipe, such as grade's rows, and is ended behind one."""
    code = (
        "import sys, time; sys.argv = ['-m']; import experiments; print('a row'); "
        "print('ready', file=sys.stderr, flush=True); time.sleep(600)"
    )
    process = start("-c", code)
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=240) == ("a row\n", STOPPED)


@pytest.mark.parametrize("how", ["library", "ignored"])
def test_signals_of_others_stay_as_they_are(how):
    """Of a program that imports experiments as a library; and where Ctrl-C was ignored when the
    command began.
    """
    code = "import signal, sys; before = signal.getsignal(signal.SIGINT); "
    code += "sys.argv = ['-m']; " if how == "ignored" else ""
    code += "import experiments; print(signal.getsignal(signal.SIGINT) == before)"
    trap = "trap '' INT; " if how == "ignored" else ""
    done = subprocess.run(
        ["bash", "-c", f'{trap}exec "$0" -c "$1"', sys.executable, code],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "True\n", done.stderr


HELD = """
    import sys
    from experiments import cli
    from tests.held import hold_until_stdin

    def held(*_, **__):
        hold_until_stdin()
        print("gone on", flush=True)
"""
# what holds the main thread, in code that is not Python's, in the place of the devices' work
PLACES = {
    "export": """
        from bridge_jax.training import reopen
        from experiments import export as command
        reopen.rebuild = held
        given = ["--workdir=/nowhere", "--out=/nowhere/model"]
    """,
    "plan": """
        from experiments import plan as command
        command.report = held
        given = ["--config=configs/from_scratch.py:bridge", "--topology=cpu:1"]
    """,
    "bench": """
        from experiments.bench import command, model_cases
        model_cases.reference = held
        given = ["reference"]
    """,
}


@on_linux
@pytest.mark.parametrize(
    "name",
    [name if name == "plan" else pytest.param(name, marks=pytest.mark.slow) for name in PLACES],
)
@pytest.mark.parametrize("times", [1, 2])
def test_commands_of_the_devices_acknowledge_it_at_once(name, times):
    """Ctrl-C is acknowledged while the devices work; a second one ends at once."""
    code = textwrap.dedent(HELD) + textwrap.dedent(PLACES[name])
    code += "sys.argv[1:] = given\ncommand.define_flags()\ncli.run_command(command.main)\n"
    process = start("-c", code)
    while process.stdout.readline() != "held\n":
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    while "ending; again to end at once" not in (line := process.stderr.readline()):
        assert line, process.communicate()
    # it is still held
    assert process.poll() is None
    if times == 2:
        process.send_signal(signal.SIGINT)
        process.wait(240)
    # the end of stdin lets it go
    out, err = process.communicate(timeout=240)
    assert process.returncode == INTERRUPTED and out == ""
    if times == 1:
        assert err == STOPPED
    else:
        assert err.startswith("ended at once; ") and err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_that_interrupt(number):
    """What a command has opened is closed, and it ends with one line; nohup's SIGHUP is ignored."""
    code = textwrap.dedent("""
        import contextlib, os, time
        from experiments import cli
        from experiments.cli import flags

        def main(argv):
            cli.interrupt_by_signals()
            with contextlib.ExitStack() as stack:
                stack.callback(print, "cleared up", flush=True)
                # print would keep its text where the signal comes before it is done
                os.write(1, b"ready\\n")
                time.sleep(600)

        cli.run_command(main)
    """)
    process = start("-c", code)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out, err) == (INTERRUPTED, "cleared up\n", STOPPED)
    before = {one: signal.getsignal(one) for one in (2, 15, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        cli.interrupt_by_signals()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def test_the_study_waits_until_the_command_under_way_has_saved(tmp_path, monkeypatch):
    """It is asked to end, in case the signal came to the study alone, and is not killed."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("")
    (tmp_path / "experiments" / "slow.py").write_text(
        textwrap.dedent("""
            import os, pathlib, signal, time

            def wait_for(name):
                # the limit is for hangs
                end = time.monotonic() + 240
                while not pathlib.Path(name).exists() and time.monotonic() < end:
                    time.sleep(0.01)
                return pathlib.Path(name).exists()

            def save(*_):
                if wait_for("wait 2"):
                    pathlib.Path("saved").touch()
                os._exit(0)

            signal.signal(signal.SIGTERM, save)
            if wait_for("wait 1"):
                os.kill(os.getppid(), signal.SIGINT)
            time.sleep(600)
        """)
    )

    class Watched(subprocess.Popen):
        waits = 0

        def wait(self, timeout=None):
            Watched.waits += 1
            (tmp_path / f"wait {Watched.waits}").touch()
            return super().wait(timeout)

    monkeypatch.setattr(stages, "ROOT", tmp_path)
    monkeypatch.setattr(stages.subprocess, "Popen", Watched)
    with pytest.raises(KeyboardInterrupt):
        stages.run("slow")
    # the command makes this file only where it was asked to end, and waited for
    assert (tmp_path / "saved").exists()
