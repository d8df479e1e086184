"""The commands, each a runnable such as `python -m experiments.train`.

Ctrl-C ends a command at once, with one line, as long as it has nothing to clear up. Python's own
KeyboardInterrupt would be raised in whatever code runs at that moment. Raised in an import it may
be taken for another error, be lost, or crash the interpreter.
"""

import contextlib
import os
import signal
import sys

# exit code, as of a program that Ctrl-C ends
INTERRUPTED = 130


def end_at_once(*_) -> None:
    """Handle a signal: no exception, no shutdown of Python; what was printed is kept."""
    for stream in (sys.stdout, sys.stderr):
        # RuntimeError: it was about to write
        with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
            stream.flush()
    with contextlib.suppress(OSError):
        os.write(2, b"error: stopped by Ctrl-C\n")
    os._exit(INTERRUPTED)


# sys.argv[0] is "-m" until Python has found the module that it runs; it is not where experiments is
# imported as a library
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_at_once)
