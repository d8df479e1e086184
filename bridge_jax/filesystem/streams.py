"""Standard output and standard error that never end a run: what cannot be written there is dropped.

A run outlives the terminal, the pipe or the file that it talks to: EPIPE, EIO, a full disk, a
descriptor that was closed before the program began, a character that the terminal's encoding lacks.
None of these is worth a step. Commands whose output is their result (grade, bench) ask `lost` at
their end. Imports nothing of the package: workers use it, too.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys

PATIENCE_S = 1.0  # for a reader that is slow, where a write does not wait by itself

_lost: dict[int, OSError] = {}


class Dropping(io.RawIOBase):
    """Writes to a descriptor.

    What cannot be written counts as written, and is remembered by `lost`.
    """

    def __init__(self, descriptor: int):
        super().__init__()
        self.descriptor = descriptor

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor, also for code that writes past Python."""
        return self.descriptor

    def isatty(self) -> bool:
        """Whether a terminal is there."""
        return os.isatty(self.descriptor)

    def write(self, data) -> int:
        """As many bytes as there are, or as could be written at once."""
        try:
            return os.write(self.descriptor, data)
        except BlockingIOError:
            return self._write_later(data)
        except OSError as error:
            return self._drop(data, error)

    def _write_later(self, data) -> int:
        try:
            select.select([], [self.descriptor], [], PATIENCE_S)
            return os.write(self.descriptor, data)
        except OSError as error:
            return self._drop(data, error)

    def _drop(self, data, error: OSError) -> int:
        _lost.setdefault(self.descriptor, error)
        return memoryview(data).nbytes


def install() -> None:
    """Puts them in place of sys.stdout and sys.stderr, and opens what was closed, so that no other
    file takes its number.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError as error:
            # the lowest number that is free, which is this one
            os.open(os.devnull, os.O_RDWR)
            _lost[descriptor] = error
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        terminal = os.isatty(descriptor)
        with contextlib.suppress(OSError, ValueError, AttributeError):
            old.flush()
        stream = io.TextIOWrapper(
            io.BufferedWriter(Dropping(descriptor)),
            encoding=getattr(old, "encoding", None) or "utf-8",
            errors="backslashreplace",
            line_buffering=terminal or descriptor == 2,
            write_through=getattr(old, "write_through", False),
        )
        setattr(sys, name, stream)
        # what writes at the interpreter's end, or from another thread, takes this one
        setattr(sys, f"__{name}__", stream)


def lost(descriptor: int = 1) -> OSError | None:
    """Why something that was written to standard output was dropped; None if nothing was."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        (sys.stdout if descriptor == 1 else sys.stderr).flush()
    return _lost.get(descriptor)


def say(text: str, descriptor: int = 1) -> None:
    """A line on standard output or standard error; dropped where it cannot be written."""
    stream = sys.stdout if descriptor == 1 else sys.stderr
    # RuntimeError: from a signal's handler, in the middle of another line
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        print(text, file=stream, flush=True)


def has_terminal(descriptor: int) -> bool:
    """Whether standard output, or standard error, is a terminal."""
    stream = sys.stdout if descriptor == 1 else sys.stderr
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return stream.isatty()
    return False
