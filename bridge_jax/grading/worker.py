"""A process that judges DeferredComparisons: one JSON object a line on stdin, one outcome a line on
stdout.

Started by grading.pool.

It cannot import jax (a worker that touched an accelerator held by its parent would wait for ever),
ends with its parent, and limits its own memory and processor time, as far as the system lets it.
Time per claim is the parent's business: code that never comes back to Python, such as arithmetic of
huge integers, can be ended by nothing but SIGKILL.
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


def limit(memory_bytes: int) -> None:
    """Bound the address space, leave no core file.

    A lower bound that the shell has set stays; macOS may refuse any.
    """
    for kind, wanted in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (allowed, allowed))


def have_stderr() -> None:
    """Where the parent runs without stderr, notes go nowhere: a file that is opened next would be
    taken for it.
    """
    try:
        os.fstat(2)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        sys.stderr = open(2, "w", closefd=False)


def end_with(parent: int) -> None:
    """End soon after the parent does.

    Not the kernel's PDEATHSIG, which strikes when the parent's THREAD ends.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)  # code that never lets this thread run is ended by `grant`


def grant(seconds: float) -> None:
    """Processor time for one claim, counted from now: should the parent's SIGKILL not come, the
    kernel's does.
    """
    used, hard = (
        resource.getrusage(resource.RUSAGE_SELF),
        resource.getrlimit(resource.RLIMIT_CPU)[1],
    )
    allowed = int(used.ru_utime + used.ru_stime + seconds) + 2
    # a hard limit that the shell has set (ulimit -t) can be lowered, but not raised
    soft = allowed if hard == resource.RLIM_INFINITY else min(allowed, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def main(memory_bytes: int, deadline: float) -> None:
    """Answer claims until stdin ends."""
    streams.install()  # a stderr that cannot be written would cost a claim its outcome
    sys.modules.update(dict.fromkeys(FORBIDDEN))  # None there makes their import fail
    have_stderr()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    # math-verify says at every claim that it has no timeout of its own
    logging.disable(logging.WARNING)
    limit(memory_bytes)
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    from bridge_jax.grading import equivalence
    from bridge_jax.grading.outcome import DeferredComparison, Outcome, Rule

    # imports and caches before the first deadline runs
    equivalence.symbolic(DeferredComparison("x+1", "1+x"))
    with contextlib.suppress(BrokenPipeError):  # the parent is gone, and so is stdin
        print(READY, file=answers, flush=True)
    for line in sys.stdin:
        gold, answer, rule = json.loads(line)
        grant(deadline)
        try:
            outcome = equivalence.symbolic(DeferredComparison(gold, answer, Rule(*rule)))
        except MemoryError:
            os._exit(1)  # nothing that follows could be trusted
        except Exception as error:
            with contextlib.suppress(OSError, ValueError):  # of a stderr that is full or gone
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
