"""A trial of a reward function before a run: one call in a process with the limits of a worker.

So a run with a broken function does not begin, and its error is shown in one line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from bridge_jax.grading import rewards, worker

# wall-clock seconds for the start, the import and one call
TRIAL_SECONDS = 120.0
MEMORY_BYTES = 2 << 30


class Trial(NamedTuple):
    """What one call of a reward function showed."""

    failure: str = ""  # why it cannot be used; "" if it can
    code: str = ""  # rewards.code_hash


def try_out(name: str, question: str, text: str, gold: str) -> Trial:
    """The result of one call of the function in a process like a worker.

    It gets the processor time of an import, not that of one call.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(MEMORY_BYTES), str(TRIAL_SECONDS)],
            input=json.dumps([name, question, text, gold]),
            env=worker.environment(),
            stdout=subprocess.PIPE,
            text=True,
            timeout=TRIAL_SECONDS,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Trial(f"it did not return within {TRIAL_SECONDS:.0f} seconds")
    if done.returncode:
        return Trial(f"its process ended with exit code {done.returncode}")
    return Trial(*json.loads(done.stdout))


def main(memory_bytes: int, seconds: float) -> None:
    """The process of `try_out`: a call as JSON on stdin, a Trial as JSON on stdout."""
    answers = worker.begin(memory_bytes)
    worker.limit_cpu_time(seconds)
    call = json.loads(sys.stdin.read())
    try:
        rewards.load(call[0])
    except BaseException as error:
        found = Trial(f"it cannot be imported: {describe(error)}")
    else:
        try:
            rewards.judge(*call)
            found = Trial(code=rewards.code_hash(call[0]))
        except BaseException as error:
            found = Trial(f"called on one row it failed: {describe(error)}")
    answers.write(json.dumps(found))
    answers.flush()
    # threads of the user's module must not keep the process
    os._exit(0)


def describe(error: BaseException) -> str:
    """The error on one line, with the line of the file where it came from."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    file = Path(frame.tb_frame.f_code.co_filename) if frame is not None else None
    own = file is not None and file.is_file() and file != Path(rewards.__file__)
    place = f" ({file.name}, line {frame.tb_lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{place}"


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
