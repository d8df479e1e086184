"""Signals are received whatever the main thread does; a second Ctrl-C ends the process."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading

import pytest

from bridge_jax.training import interrupt
from bridge_jax.training.interrupt import Interrupt, Stopped
from tests.held import Held, on_linux


@pytest.fixture
def send(monkeypatch):
    """Function that sends signals to this process, each once the one before was received."""
    received, listening = queue.SimpleQueue(), interrupt.signal_listener

    def noted(answer):
        def answer_and_note(number: int) -> None:
            answer(number)
            received.put(number)

        return listening(answer_and_note)

    def send_all(*numbers: int) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)
            assert received.get(timeout=240) == number

    monkeypatch.setattr(interrupt, "signal_listener", noted)
    return send_all


@pytest.fixture
def printed(monkeypatch):
    """The lines printed to stderr, with END where the process would have ended."""
    lines = []
    monkeypatch.setattr(interrupt, "print_to_stderr", lines.append)
    monkeypatch.setattr(interrupt, "end_at_once", lambda text: lines.append("END"))
    return lines


@on_linux
def test_signals_are_received_while_the_main_thread_is_held():
    """Python's own handler comes behind the C code; the thread that listens receives them within
    it.
    """
    held, events = Held(), []

    def received(number: int) -> None:
        events.append(("received", number))
        held.let_go()

    before = signal.signal(signal.SIGUSR1, lambda number, _: events.append(("handled", number)))
    try:
        with interrupt.signal_listener(received):
            sender = held.when_held(lambda: os.kill(os.getpid(), signal.SIGUSR1))
            held.hold()
            sender.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert events == [("received", signal.SIGUSR1), ("handled", signal.SIGUSR1)]
    assert held.freed_by_the_test


def test_nothing_is_left_behind(printed):
    """Handlers, the pipe and the thread are given back; and so in a thread, which has no
    signals.
    """
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
            seen.append(asked.stop_requested())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False] and there() == before


@pytest.mark.parametrize(
    "numbers, expected",
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
def test_what_a_signal_is_answered(printed, send, numbers, expected):
    """The first signal is acknowledged; only a later Ctrl-C ends the process at once."""
    with Interrupt() as asked:
        asked.starting, asked.step = False, 7
        assert not asked.stop_requested()
        send(*numbers)
        assert asked.stop_requested()
    assert printed == expected


def test_a_terminal_that_is_closed_is_nothing_to_nohup(printed):
    """SIGHUP that was ignored when the program began stays ignored, and is given back so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as asked:
            asked.starting = False
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked.stop_requested()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert printed == []


def test_before_the_first_step(printed, send):
    """Stopped where it strikes, once: a second signal does not break into the clearing up."""
    with Interrupt() as asked:
        with pytest.raises(Stopped):
            send(signal.SIGTERM)
        send(signal.SIGTERM)
        with pytest.raises(Stopped):
            asked.check()
    assert printed == ["ending; Ctrl-C to end at once"]


@on_linux
def test_a_command_that_ctrl_c_interrupts(monkeypatch):
    """KeyboardInterrupt comes when the main thread is let go, the line about it at once; a second
    signal does not wait.
    """
    held, lines, first = Held(), [], threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def tell(text: str) -> None:
        lines.append(text)
        first.set()

    def end_at_once(text: str) -> None:
        lines.append(text)
        held.let_go()

    def send_two() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        first.wait(240)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(interrupt, "print_to_stderr", tell)
    monkeypatch.setattr(interrupt, "end_at_once", end_at_once)
    # as commands begin, which end at once where there is nothing to clear up
    signal.signal(signal.SIGINT, lambda *_: lines.append("not for it"))
    given = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        with interrupt.acknowledge_interrupts("ending", "all is kept"):
            sender = held.when_held(send_two)
            # KeyboardInterrupt comes at its end
            held.hold()
            threading.Event().wait(240)
    sender.join()
    assert signal.signal(signal.SIGINT, before) is given
    assert lines == ["ending; again to end at once", "ended at once; all is kept"]
    assert held.freed_by_the_test


PROGRAM = """
import os, sys, time
from bridge_jax.training.interrupt import Interrupt
with Interrupt() as asked:
    asked.starting, asked.step = False, 1
    print("ready", flush=True)
    while not asked.stop_requested():
        time.sleep(0.01)
    print("received", flush=True)
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
        assert process.stdout.readline() == "received\n"
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(240) == interrupt.ENDED_AT_ONCE
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        os.close(reads)
        os.close(writes)
