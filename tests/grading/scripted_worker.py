"""A worker of the grading pool that does what its comparison's gold text says, instead of judging
it. Started by test_pool.

    correct            answer at once
    burn SECONDS       use so much processor time, then answer
    sleep, stop, die   never answer: wait, be stopped as by SIGSTOP, be killed
    eat                ask for more memory than the limit
    nonsense           answer with a word that is no outcome
    once PATH KIND     KIND the first time, marked by a file; an answer the second time

SCRIPTED_START may say "die", "stop", or "once PATH KIND": the same before the worker is ready.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

from bridge_jax.grading import worker


def act(script: str) -> str:
    """Do what it says; the outcome, if there is one."""
    kind, *rest = script.split()
    if kind == "once":
        path, kind, rest = rest[0], rest[1], rest[2:]
        try:
            # one process alone can make the file, even where several start at once
            open(path, "x").close()
        except FileExistsError:
            return "correct"
    if kind == "burn":
        until = time.process_time() + float(rest[0])
        while time.process_time() < until:
            pass
    elif kind == "sleep":
        time.sleep(1000)
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(1000)
    elif kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000)
    elif kind == "eat":
        try:
            bytearray(8 << 30)
        except MemoryError:
            os._exit(1)
    elif kind == "nonsense":
        return "perhaps"
    return "correct"


def main() -> None:
    """As worker.main."""
    memory_bytes, deadline = int(sys.argv[1]), float(sys.argv[2])
    worker.limit_memory(memory_bytes)
    threading.Thread(target=worker.exit_with_parent, args=(os.getppid(),), daemon=True).start()
    act(os.environ.get("SCRIPTED_START", "correct"))
    print(worker.READY, flush=True)
    for line in sys.stdin:
        worker.limit_cpu_time(deadline)
        print(act(json.loads(line)[0]), flush=True)


if __name__ == "__main__":
    main()
