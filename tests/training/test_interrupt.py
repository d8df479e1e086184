"""Signals are heard at once whatever the main thread is at, and a second Ctrl-C ends the process."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from bridge_jax.training import interrupt
from bridge_jax.training.interrupt import Interrupt, Stopped


def hold_the_main_thread(iterations: int = 3_000_000) -> None:
    """In code that is not Python's, as a wait for a device is: handlers do not run meanwhile."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", iterations)


def send(*numbers: int) -> None:
    """To this process, each once the one before was heard."""
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(0.2)


@pytest.fixture
def said(monkeypatch):
    """What is told, and whether the process would have ended."""
    told = []
    monkeypatch.setattr(interrupt, "tell", told.append)
    monkeypatch.setattr(interrupt, "end_at_once", lambda text: told.append("END"))
    return told


def test_signals_are_heard_while_the_main_thread_is_held():
    """Well before Python's own handler, which comes behind the C code."""
    heard, handled = [], []
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.append(time.monotonic()))
    try:
        with interrupt.listening(lambda number: heard.append((number, time.monotonic()))):
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            hold_the_main_thread()
    finally:
        signal.signal(signal.SIGUSR1, before)
    ((number, at),) = heard
    assert number == signal.SIGUSR1 and len(handled) == 1
    assert handled[0] - at > 0.3


def test_nothing_is_left_behind(said):
    """Handlers, the pipe and the thread are given back; and so in a thread, which has no signals."""
    there = lambda: (
        len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
        threading.active_count(),
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
        signal.getsignal(signal.SIGHUP),
    )
    before = there()
    with Interrupt():
        assert there() != before
    assert there() == before and signal.set_wakeup_fd(-1) == -1
    seen = []

    def elsewhere():
        with Interrupt() as asked:
            seen.append(asked.agreed())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False] and there() == before


@pytest.mark.parametrize(
    "numbers, told",
    [
        ([signal.SIGINT], ["finishing step 7, saving; again to end at once"]),
        ([signal.SIGTERM], ["finishing step 7, saving; Ctrl-C to end at once"]),
        (
            [signal.SIGINT, signal.SIGINT],
            ["finishing step 7, saving; again to end at once", "END"],
        ),
        (
            [signal.SIGTERM, signal.SIGINT],
            ["finishing step 7, saving; Ctrl-C to end at once", "END"],
        ),
        # a scheduler repeats its own, and a sweep sends SIGTERM behind the terminal's SIGINT
        (
            [signal.SIGTERM, signal.SIGTERM, signal.SIGTERM],
            ["finishing step 7, saving; Ctrl-C to end at once"],
        ),
        (
            [signal.SIGINT, signal.SIGTERM],
            ["finishing step 7, saving; again to end at once"],
        ),
        # a terminal that is closed, which some shells tell twice
        (
            [signal.SIGHUP, signal.SIGHUP, signal.SIGTERM],
            ["finishing step 7, saving; Ctrl-C to end at once"],
        ),
    ],
)
def test_what_a_signal_is_answered(said, numbers, told):
    with Interrupt() as asked:
        asked.starting, asked.step = False, 7
        assert not asked.agreed()
        send(*numbers)
        assert asked.agreed()
    assert said == told


def test_a_terminal_that_is_closed_is_nothing_to_nohup(said):
    """SIGHUP that was ignored when the program began stays ignored, and is given back so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as asked:
            asked.starting = False
            send(signal.SIGHUP)
            assert not asked.agreed()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert said == []


def test_before_the_first_step(said):
    """Stopped where it strikes, once: a second signal does not break into the clearing up."""
    with Interrupt() as asked:
        with pytest.raises(Stopped):
            send(signal.SIGTERM)
        time.sleep(0.2)
        send(signal.SIGTERM)
        with pytest.raises(Stopped):
            asked.check()
    assert said == ["ending; Ctrl-C to end at once"]


def test_a_command_that_ctrl_c_interrupts(monkeypatch):
    """KeyboardInterrupt comes when the main thread is let go, the line about it at once; a second signal does not wait."""
    told, before = [], signal.getsignal(signal.SIGINT)
    note = lambda text: told.append((text, time.monotonic()))
    monkeypatch.setattr(interrupt, "tell", note)
    monkeypatch.setattr(interrupt, "end_at_once", note)
    # as commands begin, which end at once where there is nothing to clear up
    signal.signal(signal.SIGINT, lambda *_: told.append(("not for it", 0.0)))
    given = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        with interrupt.acknowledged("ending", "all is kept"):
            for delay in (0.2, 0.4):
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
            hold_the_main_thread()
            time.sleep(5)
    let_go = time.monotonic()
    assert signal.signal(signal.SIGINT, before) is given
    texts, times = zip(*told)
    assert texts == ("ending; again to end at once", "ended at once; all is kept")
    assert let_go - times[1] > 0.3


PROGRAM = """
import os, sys, time
from bridge_jax.training.interrupt import Interrupt
with Interrupt() as asked:
    asked.starting, asked.step = False, 1
    print("ready", flush=True)
    while True:
        time.sleep(1)
"""


@pytest.mark.parametrize("stderr", ["full", "closed"])
def test_a_second_signal_ends_the_process_though_nobody_reads_stderr(stderr):
    """With its exit code, and without waiting for the line about it."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writes, b"x" * 4096)
    os.set_blocking(writes, True)
    command = [sys.executable, "-c", PROGRAM]
    if stderr == "closed":
        command = ["sh", "-c", 'exec "$0" "$@" 2>&-', *command]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=writes, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == interrupt.ENDED_AT_ONCE
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        os.close(reads)
        os.close(writes)
