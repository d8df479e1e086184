"""One runnable per verb: `python -m experiments.train`, and its neighbours.

Ctrl-C ends a command at once, with one line, as long as it has nothing to clear up. Python's own KeyboardInterrupt comes
out of whatever runs just then: out of an import it may be taken for another error, be lost, or crash the interpreter.
"""

import contextlib
import os
import signal
import sys

INTERRUPTED = 130  # exit code, as of a program that Ctrl-C ends


def end_at_once(*_) -> None:
    """What a signal's handler does: no exception, no shutdown of Python; what was printed is kept."""
    for stream in (sys.stdout, sys.stderr):
        # RuntimeError: it was about to write
        with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
            stream.flush()
    with contextlib.suppress(OSError):
        os.write(2, b"error: stopped by Ctrl-C\n")
    os._exit(INTERRUPTED)


# "-m" stands there until Python has found the module that it runs: not where experiments is imported as a library
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_at_once)
