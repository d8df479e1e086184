"""The worker process of grading.pool: reads comparisons from stdin, writes outcomes to stdout.

Each is one line, a comparison as JSON. A worker cannot import jax, since it would wait without end
for an accelerator that its parent holds. It exits with its parent, and limits its own memory and
processor time as far as the system allows. The parent enforces the time limit of a comparison: code
that does not return to Python, such as arithmetic with huge integers, ends by SIGKILL alone.

A reward function of the user (rewards.py) is imported before its first comparison, with a limit of
its own. Then the worker says READY again, and the time of the comparison begins.
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
from pathlib import Path
from typing import TextIO

from bridge_jax.filesystem import streams

FORBIDDEN = ("jax", "jaxlib", "flax")
READY = "ready"
# processor time for importing a reward function
IMPORT_SECONDS = 60.0
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """The environment of a worker's process: it finds this package and uses one thread."""
    paths = [str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
    }


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


def begin(memory_bytes: int) -> TextIO:
    """Puts the limits of a worker on this process; returns the stream for outcomes."""
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
    return answers


def main(memory_bytes: int, deadline: float) -> None:
    """Judges comparisons until stdin ends."""
    answers = begin(memory_bytes)
    from bridge_jax.grading import equivalence, rewards
    from bridge_jax.grading.outcome import DeferredComparison, Outcome, Rule

    # imports and caches before the first deadline runs
    equivalence.symbolic(DeferredComparison("x+1", "1+x"))
    # a parent that is gone has closed stdin too, so that the loop ends
    with contextlib.suppress(BrokenPipeError):
        print(READY, file=answers, flush=True)
    imported = set()
    for line in sys.stdin:
        gold, answer, rule, function, question = json.loads(line)
        try:
            if function and function not in imported:
                limit_cpu_time(IMPORT_SECONDS)
                rewards.load(function)
                imported.add(function)
                print(READY, file=answers, flush=True)
            limit_cpu_time(deadline)
            outcome = (
                rewards.judge(function, question, answer, gold)
                if function
                else equivalence.symbolic(DeferredComparison(gold, answer, Rule(*rule)))
            )
        except BrokenPipeError:
            # the parent is gone
            os._exit(1)
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
            # the parent is gone
            os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
