"""A main thread that is held in code that is not Python's, as a wait for a device does."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable

import pytest

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="macOS has no pthread_barrier")


class Held:
    """Holds the main thread in a barrier of C until `let_go`.

    Python's signal handlers do not run meanwhile: a barrier of C goes on waiting behind a signal.
    """

    def __init__(self):
        self._c, self._barrier = ctypes.CDLL(None), ctypes.create_string_buffer(256)
        assert self._c.pthread_barrier_init(self._barrier, None, 2) == 0
        # the C library counts in the barrier's first word who has come
        self._come = ctypes.c_uint.from_buffer(self._barrier)
        self.freed_by_the_test = False

    def hold(self) -> None:
        """To be called in the main thread; after four minutes it is let go whatever has come."""
        rescue = threading.Timer(240, self._wait)
        rescue.daemon = True
        rescue.start()
        try:
            self._wait()
        finally:
            # also where KeyboardInterrupt comes as soon as it is let go
            rescue.cancel()
            rescue.join()

    def let_go(self) -> None:
        """From another thread."""
        self.freed_by_the_test = True
        self._wait()

    def when_held(self, act: Callable[[], None]) -> threading.Thread:
        """Thread that calls `act` once the main thread is held."""

        def wait_and_act() -> None:
            while not self._come.value:
                time.sleep(0.01)
            act()

        thread = threading.Thread(target=wait_and_act, daemon=True)
        thread.start()
        return thread

    def _wait(self) -> None:
        self._c.pthread_barrier_wait(self._barrier)


def hold_until_stdin() -> None:
    """Prints "held" once the main thread is held, and lets it go at a line or the end of stdin."""
    held = Held()

    def tell_and_wait() -> None:
        print("held", flush=True)
        sys.stdin.readline()
        held.let_go()

    held.when_held(tell_and_wait)
    held.hold()
