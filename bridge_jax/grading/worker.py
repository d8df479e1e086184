"""The worker process of grading.pool: reads comparisons from stdin, writes outcomes to stdout.

Each is one line, a comparison as JSON. A worker cannot import jax, since it would wait without end
for an accelerator that its parent holds. It exits with its parent, and limits its own memory and
processor time as far as the system allows. The parent enforces the time limit of a comparison: code
that does not return to Python, such as arithmetic with huge integers, ends by SIGKILL alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import sys
import threading
import time

from bridge_jax.filesystem import streams

FORBIDDEN = ("jax", "jaxlib", "flax")
READY = "ready"


def limit_memory(memory_bytes: int) -> None:
    """Limits the address space and disables core files.

    A lower limit of the shell is kept; macOS may reject any limit.
    """
    for kind, wanted in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (allowed, allowed))


def ensure_stderr() -> None:
    """Opens /dev/null as stderr where the parent runs without one.

    Otherwise the next file to be opened would get descriptor 2 and receive all messages.
    """
    try:
        os.fstat(2)
    except OSError:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 2)
        sys.stderr = open(2, "w", closefd=False)


def exit_with_parent(parent: int) -> None:
    """Exits soon after the parent does.

    The kernel's PDEATHSIG is no alternative: it fires when the parent's THREAD ends.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    # code that never yields to this thread is ended by `limit_cpu_time`
    os._exit(1)


def limit_cpu_time(seconds: float) -> None:
    """Limits the processor time from now on; the kernel enforces it if the parent does not."""
    used, hard = (
        resource.getrusage(resource.RUSAGE_SELF),
        resource.getrlimit(resource.RLIMIT_CPU)[1],
    )
    allowed = int(used.ru_utime + used.ru_stime + seconds) + 2
    # a hard limit of the shell (ulimit -t) can be lowered, but not raised
    soft = allowed if hard == resource.RLIM_INFINITY else min(allowed, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def main(memory_bytes: int, deadline: float) -> None:
    """Judges comparisons until stdin ends."""
    # a failing write to stderr must not cost a comparison its outcome
    streams.install()
    # None as a module makes its import fail
    sys.modules.update(dict.fromkeys(FORBIDDEN))
    ensure_stderr()
    answers = os.fdopen(os.dup(1), "w")
    # the output of a library must not be read as an outcome
    os.dup2(2, 1)
    # math-verify warns at every comparison that it has no timeout of its own
    logging.disable(logging.WARNING)
    limit_memory(memory_bytes)
    threading.Thread(target=exit_with_parent, args=(os.getppid(),), daemon=True).start()
    from bridge_jax.grading import equivalence
    from bridge_jax.grading.outcome import DeferredComparison, Outcome, Rule

    # imports and caches before the first deadline runs
    equivalence.symbolic(DeferredComparison("x+1", "1+x"))
    # a parent that is gone has closed stdin too, so that the loop ends
    with contextlib.suppress(BrokenPipeError):
        print(READY, file=answers, flush=True)
    for line in sys.stdin:
        gold, answer, rule = json.loads(line)
        limit_cpu_time(deadline)
        try:
            outcome = equivalence.symbolic(DeferredComparison(gold, answer, Rule(*rule)))
        except MemoryError:
            # later outcomes could not be trusted
            os._exit(1)
        except Exception as error:
            # stderr may be full or closed
            with contextlib.suppress(OSError, ValueError):
                print(
                    f"grading {answer!r} against {gold!r}: {error!r}", file=sys.stderr, flush=True
                )
            outcome = Outcome.grader_error
        try:
            print(outcome, file=answers, flush=True)
        except BrokenPipeError:
            os._exit(1)  # the parent is gone


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
