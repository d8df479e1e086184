"""Signals that ask a run to end: acknowledged at once, obeyed after the step under way.

A second Ctrl-C ends at once.

Python runs its handlers in the main thread, between two of its own instructions: while that thread
waits for a device, a signal is not even noticed. So `listening` has the interpreter write each
signal into a pipe, from which a thread of its own reads. Left out: agreeing among several processes
(multihost.py), saving (loop.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from bridge_jax.distributed import multihost, watchdog

ENDED_AT_ONCE = 130  # exit code, as of a program that Ctrl-C ends
SECONDS = 1.0  # that a line may take which nobody reads: a second signal shall still be heard


class Stopped(BaseException):
    """A signal asked the run to end where nothing is lost by ending at once.

    No error, so no `except Exception` eats it.
    """


@contextlib.contextmanager
def listening(heard: Callable[[int], None]) -> Iterator[None]:
    """heard(number) of every signal that has a Python handler, at once, in a thread of its own.

    In the main thread alone, which signals belong to; elsewhere nothing is heard."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reads, writes = os.pipe()
    os.set_blocking(writes, False)

    def listen() -> None:
        while numbers := os.read(reads, 64):
            for number in numbers:
                heard(number)

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writes)  # ends the thread
        thread.join(2 * SECONDS)
        os.close(reads)


def tell(text: str) -> None:
    """A line on stderr, from any thread, whatever has become of stderr."""
    start = "\n" if sys.__stderr__ and sys.__stderr__.isatty() else ""  # there is "^C", or a bar
    watchdog.attempt(lambda: os.write(2, f"{start}{text}\n".encode()), SECONDS)


def end_at_once(text: str) -> None:
    """Ends the process from whatever thread, without Python's shutdown.

    Other processes of the run are told.
    """
    tell(text)
    multihost.announce_end("by a second signal")
    os._exit(ENDED_AT_ONCE)


@contextlib.contextmanager
def acknowledged(doing: str, kept: str) -> Iterator[None]:
    """Ctrl-C is answered at once, though KeyboardInterrupt waits until the devices are done.

    A second one ends at once.
    """
    count = 0

    def heard(number: int) -> None:
        nonlocal count
        count += number == signal.SIGINT
        if number == signal.SIGINT and count == 1:
            tell(f"{doing}; again to end at once")
        elif number == signal.SIGINT:
            end_at_once(f"ended at once; {kept}")

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.default_int_handler) if main else None
    try:
        with listening(heard):
            yield
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


class Interrupt:
    """SIGTERM, SIGINT and SIGHUP ask the loop to end after the step under way.

    Handlers are restored on exit.

    SIGHUP is that of a terminal that is closed; where it is ignored, as nohup has it, it stays so.

    While `starting`, before the first step, there is nothing to finish: they raise Stopped where
    they strike. A SIGINT behind another signal ends the process at once, as SIGKILL would: the last
    checkpoint stands. A second SIGTERM does not: schedulers repeat theirs.
    """

    def __enter__(self) -> Interrupt:
        self.asked, self.starting = threading.Event(), True
        self.step = 0  # that will be finished and saved
        self._signals = 0
        # only there can signals be handled
        main = threading.current_thread() is threading.main_thread()

        def ask(*_) -> None:
            again = self.asked.is_set()
            self.asked.set()
            if self.starting and not again:
                raise Stopped

        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self._old = {number: signal.signal(number, ask) for number in numbers if main}
        self._listening = contextlib.ExitStack()
        self._listening.enter_context(listening(self._heard))
        return self

    def _heard(self, number: int) -> None:
        """In the thread that listens."""
        if number not in self._old:
            return
        self._signals += 1
        if self._signals == 1:
            doing = "ending" if self.starting else f"finishing step {self.step}, saving"
            again = "again" if number == signal.SIGINT else "Ctrl-C"
            tell(f"{doing}; {again} to end at once")
        elif number == signal.SIGINT:
            end_at_once(
                "ended at once; the same command goes on from the last checkpoint, from the "
                "beginning if there is none"
            )

    def agreed(self) -> bool:
        """Whether a signal came, to this host or another; all hosts ask at the same place."""
        if multihost.any_process("whether a signal came", self.asked.is_set()):
            self.asked.set()
        return self.asked.is_set()

    def check(self) -> None:
        """Stopped if a signal came."""
        if self.agreed():
            raise Stopped

    def __exit__(self, *error) -> None:
        self._listening.close()
        for number, handler in self._old.items():
            signal.signal(number, handler)
