"""Nothing that is wrong with standard output or standard error ends a process, changes its exit
code, or spoils a file.
"""

from __future__ import annotations

import fcntl
import os
import pathlib
import pty
import subprocess
import sys
import textwrap
import time

import pytest

from bridge_jax.distributed import multihost
from bridge_jax.filesystem import streams
from bridge_jax.rundir import progress

ROOT = pathlib.Path(__file__).resolve().parents[2]
TALKS = """
    import logging, os, pathlib, sys, warnings
    from bridge_jax.filesystem import streams
    streams.install()
    logging.basicConfig(level=logging.INFO)
    with open(sys.argv[1], "w") as file:
        assert file.fileno() > 2
        for n in range(2000):
            print("out", n, "é\\ud800", flush=n % 2)
            print("err", n, file=sys.stderr)
        logging.warning("a warning")
        warnings.warn("another")
        print("past the installed ones", file=sys.__stdout__)
        file.write("done")
    print("without a newline at the end", end="")
"""


def talk(tmp_path, redirected: str = "", **given) -> int:
    """The exit code of a process that talks, run by a shell with its output redirected; it must
    come to its end.
    """
    done = tmp_path / "done"
    env = os.environ | {"PYTHONPATH": str(ROOT)} | given.pop("env", {})
    command = f'exec "$0" -c "$1" "$2" {redirected}'
    found = subprocess.run(
        ["bash", "-c", command, sys.executable, textwrap.dedent(TALKS), str(done)],
        cwd=ROOT,
        env=env,
        timeout=240,
        **given,
    )
    assert done.read_text() == "done"
    return found.returncode


@pytest.mark.parametrize(
    "redirected",
    [
        ">/dev/full",
        "2>/dev/full",
        ">/dev/full 2>&1",
        ">&-",
        "2>&-",
        ">&- 2>&-",
        "<&- >&- 2>&-",
        "</dev/null >&0 2>&0",  # open, but to be read alone
    ],
)
def test_output_that_cannot_be_written_is_dropped(tmp_path, redirected):
    """Closed, full and read-only streams do not change the exit code."""
    assert talk(tmp_path, redirected) == 0


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_is_gone(tmp_path, stream):
    """As after `| head`: EPIPE."""
    read, write = os.pipe()
    os.close(read)
    try:
        assert talk(tmp_path, **{stream: write}) == 0
    finally:
        os.close(write)


def test_a_terminal_that_is_gone(tmp_path):
    """As after a connection was cut, for a process that was told to outlive it: EIO."""
    main, terminal = pty.openpty()
    os.close(main)
    try:
        assert talk(tmp_path, stdout=terminal, stderr=terminal) == 0
    finally:
        os.close(terminal)


def test_an_encoding_that_lacks_a_character(tmp_path):
    """A character that the encoding lacks is written as an escape."""
    with open(tmp_path / "out", "wb") as out:
        assert talk(tmp_path, stdout=out, env={"PYTHONIOENCODING": "ascii"}) == 0
    assert rb"out 0 \xe9\ud800" in (tmp_path / "out").read_bytes()


def test_a_reader_that_is_slow_gets_all_of_it(tmp_path):
    """A pipe that does not wait by itself, as one that a shell shares with another program may
    be.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        # full again and again
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TALKS), str(tmp_path / "done")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=write,
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    written = b""
    while piece := os.read(read, 1000):
        written += piece
        time.sleep(0.002)
    os.close(read)
    assert child.wait(240) == 0
    assert [line.split()[1] for line in written.splitlines()[:2000]] == [
        b"%d" % n for n in range(2000)
    ]


def test_output_that_can_be_written_is_the_same_as_ever(tmp_path):
    """Streams that work receive every line of print, logging and raw writes."""
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        assert talk(tmp_path, stdout=stdout, stderr=stderr) == 0
    written = out.read_text().splitlines()
    assert written[0] == r"out 0 é\ud800" and written[1999] == r"out 1999 é\ud800"
    assert written[2000:] == ["past the installed ones", "without a newline at the end"]
    assert "WARNING:root:a warning" in err.read_text() and "err 1999" in err.read_text()


@pytest.mark.parametrize(
    "redirected, lost",
    [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor"), (">out", None)],
)
def test_a_command_whose_output_is_its_result_can_ask(tmp_path, redirected, lost):
    """output_error tells whether output was lost, and why."""
    code = """
        import pathlib, sys
        from bridge_jax.filesystem import streams
        streams.install()
        print("a result")
        error = streams.output_error()
        pathlib.Path("answer").write_text(str(error and error.strerror))
    """
    command = ["bash", "-c", f'exec "$0" -c "$1" {redirected}', sys.executable]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command, textwrap.dedent(code)], cwd=tmp_path, env=env, check=True)
    assert (tmp_path / "answer").read_text() == str(lost)


class Broken:
    """In place of a stream, where nothing was installed."""

    def write(self, _):
        raise OSError(5, "Input/output error")

    flush = isatty = lambda self, *_: self.write("")


@pytest.mark.parametrize("stream", [Broken(), None])
def test_the_library_itself_needs_no_stream(monkeypatch, stream):
    """train.train called from a program of the user's own."""
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    multihost.print_on_main("it goes on")
    with progress.progress(2, 0, "train") as show:
        show(1, "and on")
        show(2, "to the end")
    streams.write_line("and on", descriptor=2)
