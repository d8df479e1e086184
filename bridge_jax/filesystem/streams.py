"""Standard output and standard error that never end a run: output that fails is dropped.

A run may outlive its terminal, pipe or log file: EPIPE, EIO, a full disk, a descriptor that was
closed before the program began, a character that the terminal's encoding lacks. None of these may
stop the training. Commands whose output is their result (grade, bench) check `output_error` at
their end. This module imports nothing of the package, since grading workers use it too.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys

PATIENCE_S = 1.0  # how long a non-blocking write waits for a slow reader

_errors: dict[int, OSError] = {}


class LossyWriter(io.RawIOBase):
    """Writes to a descriptor.

    Failed writes count as written, and `output_error` reports the first.
    """

    def __init__(self, descriptor: int):
        super().__init__()
        self.descriptor = descriptor

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor, for code that does not write through Python."""
        return self.descriptor

    def isatty(self) -> bool:
        """Whether the descriptor is a terminal."""
        return os.isatty(self.descriptor)

    def write(self, data) -> int:
        """Number of bytes written, dropped ones included."""
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
        _errors.setdefault(self.descriptor, error)
        return memoryview(data).nbytes


def install() -> None:
    """Replaces sys.stdout and sys.stderr.

    Closed descriptors are opened on /dev/null, so that no other file gets their numbers.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError as error:
            # takes the lowest free number, which is this descriptor's
            os.open(os.devnull, os.O_RDWR)
            _errors[descriptor] = error
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        terminal = os.isatty(descriptor)
        with contextlib.suppress(OSError, ValueError, AttributeError):
            old.flush()
        stream = io.TextIOWrapper(
            io.BufferedWriter(LossyWriter(descriptor)),
            encoding=getattr(old, "encoding", None) or "utf-8",
            errors="backslashreplace",
            line_buffering=terminal or descriptor == 2,
            write_through=getattr(old, "write_through", False),
        )
        setattr(sys, name, stream)
        # used by writes at the interpreter's exit and by other threads
        setattr(sys, f"__{name}__", stream)


def output_error(descriptor: int = 1) -> OSError | None:
    """The first error that made standard output drop something; None if all was written."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        (sys.stdout if descriptor == 1 else sys.stderr).flush()
    return _errors.get(descriptor)


def write_line(text: str, descriptor: int = 1) -> None:
    """Writes a line to standard output or standard error; drops it where that fails."""
    stream = sys.stdout if descriptor == 1 else sys.stderr
    # RuntimeError: called from a signal handler while another write is under way
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        print(text, file=stream, flush=True)


def has_terminal(descriptor: int) -> bool:
    """Whether standard output, or standard error, is a terminal."""
    stream = sys.stdout if descriptor == 1 else sys.stderr
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return stream.isatty()
    return False
