"""Signals that stop a run after the current step; acknowledged at once, a second Ctrl-C ends it.

Python runs signal handlers in the main thread, between two of its instructions: while that thread
waits for a device, no handler runs. So the interpreter writes each signal into a pipe, and
`signal_listener` reads it in a thread of its own. Left out: agreement among several processes
(multihost.py), saving (end_of_step.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from bridge_jax.distributed import multihost, watchdog

ENDED_AT_ONCE = 130  # exit code of a program that Ctrl-C ends
# seconds that printing may block without a reader, so that a second signal is still handled
PRINT_TIMEOUT_S = 1.0


class Stopped(BaseException):
    """Raised by a signal where ending at once loses nothing.

    A BaseException, so that no `except Exception` catches it.
    """


@contextlib.contextmanager
def signal_listener(callback: Callable[[int], None]) -> Iterator[None]:
    """Calls callback(number) at once, in its own thread, for signals with a Python handler.

    Works in the main thread alone, which receives the signals; elsewhere it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reads, writes = os.pipe()
    os.set_blocking(writes, False)

    def listen() -> None:
        while numbers := os.read(reads, 64):
            for number in numbers:
                callback(number)

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        # ends the thread
        os.close(writes)
        thread.join(2 * PRINT_TIMEOUT_S)
        os.close(reads)


def print_to_stderr(text: str) -> None:
    """Prints a line to stderr, from any thread, whatever the state of stderr."""
    # a terminal already shows "^C" or a progress bar on this line
    start = "\n" if sys.__stderr__ and sys.__stderr__.isatty() else ""
    watchdog.attempt(lambda: os.write(2, f"{start}{text}\n".encode()), PRINT_TIMEOUT_S)


def end_at_once(text: str) -> None:
    """Ends the process from any thread, without Python's shutdown, and informs the other hosts."""
    print_to_stderr(text)
    multihost.announce_end("by a second signal")
    os._exit(ENDED_AT_ONCE)


@contextlib.contextmanager
def acknowledge_interrupts(doing: str, hint: str) -> Iterator[None]:
    """Acknowledges Ctrl-C at once, although KeyboardInterrupt waits for the devices.

    A second Ctrl-C ends the process. doing, hint: parts of the two messages.
    """
    count = 0

    def callback(number: int) -> None:
        nonlocal count
        count += number == signal.SIGINT
        if number == signal.SIGINT and count == 1:
            print_to_stderr(f"{doing}; again to end at once")
        elif number == signal.SIGINT:
            end_at_once(f"ended at once; {hint}")

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.default_int_handler) if main else None
    try:
        with signal_listener(callback):
            yield
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


class Interrupt:
    """SIGTERM, SIGINT and SIGHUP stop the loop after the current step; a context manager.

    SIGHUP comes from a closed terminal; where it is ignored, as under nohup, it stays ignored.
    While `starting`, before the first step, the signals raise Stopped directly. A SIGINT after
    another signal ends the process at once, like SIGKILL: the last checkpoint is kept. A second
    SIGTERM does not, since schedulers repeat theirs.
    """

    def __enter__(self) -> Interrupt:
        self.requested, self.starting = threading.Event(), True
        # the step that will be finished and saved
        self.step = 0
        self._signals = 0
        # only the main thread can handle signals
        main = threading.current_thread() is threading.main_thread()

        def ask(*_) -> None:
            again = self.requested.is_set()
            self.requested.set()
            if self.starting and not again:
                raise Stopped

        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self._old = {number: signal.signal(number, ask) for number in numbers if main}
        self._listening = contextlib.ExitStack()
        self._listening.enter_context(signal_listener(self._on_signal))
        return self

    def _on_signal(self, number: int) -> None:
        """Callback of the signal listener."""
        if number not in self._old:
            return
        self._signals += 1
        if self._signals == 1:
            doing = "ending" if self.starting else f"finishing step {self.step}, saving"
            again = "again" if number == signal.SIGINT else "Ctrl-C"
            print_to_stderr(f"{doing}; {again} to end at once")
        elif number == signal.SIGINT:
            end_at_once(
                "ended at once; the same command resumes from the last checkpoint, from the "
                "beginning if there is none"
            )

    def stop_requested(self) -> bool:
        """Whether this host or another one received a signal; to be called by all hosts alike."""
        if multihost.any_process("whether a signal came", self.requested.is_set()):
            self.requested.set()
        return self.requested.is_set()

    def check(self) -> None:
        """Raises Stopped if any host received a signal."""
        if self.stop_requested():
            raise Stopped

    def __exit__(self, *error) -> None:
        self._listening.close()
        for number, handler in self._old.items():
            signal.signal(number, handler)
