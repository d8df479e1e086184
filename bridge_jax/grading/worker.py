"""A process that judges Claims: one JSON object a line on stdin, one outcome a line on stdout. Started by grading.pool.

It cannot import jax (a worker that touched an accelerator held by its parent would wait for ever), ends with its parent,
and limits its own memory and processor time. Time per claim is the parent's business: code that never comes back to Python,
such as arithmetic of huge integers, can be ended by nothing but SIGKILL.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import threading
import time

from bridge_jax import streams

FORBIDDEN = ("jax", "jaxlib", "flax")
READY = "ready"


def limit(memory_bytes: int) -> None:
    """Bound the address space, leave no core file."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def end_with(parent: int) -> None:
    """End soon after the parent does. Not the kernel's PDEATHSIG, which strikes when the parent's THREAD ends."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)  # code that never lets this thread run is ended by `grant`


def grant(seconds: float) -> None:
    """Processor time for one claim, counted from now: should the parent's SIGKILL not come, the kernel's does."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = int(used.ru_utime + used.ru_stime + seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, resource.RLIM_INFINITY))


def main(memory_bytes: int, deadline: float) -> None:
    """Answer claims until stdin ends."""
    streams.install()  # a stderr that cannot be written would cost a claim its outcome
    sys.modules.update(dict.fromkeys(FORBIDDEN))  # None there makes their import fail
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    logging.disable(
        logging.WARNING
    )  # math-verify says at every claim that it has no timeout of its own
    limit(memory_bytes)
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    from bridge_jax.grading import equivalence
    from bridge_jax.grading.outcome import Claim, Outcome, Rule

    equivalence.symbolic(Claim("x+1", "1+x"))  # imports and caches before the first deadline runs
    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        gold, answer, rule = json.loads(line)
        grant(deadline)
        try:
            outcome = equivalence.symbolic(Claim(gold, answer, Rule(*rule)))
        except MemoryError:
            os._exit(1)  # nothing that follows could be trusted
        except Exception as error:
            print(f"grading {answer!r} against {gold!r}: {error!r}", file=sys.stderr)
            outcome = Outcome.grader_error
        print(outcome, file=answers, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
