"""Reward functions of the user, named MODULE:FUNCTION or FILE.py:FUNCTION.

`function(question, text, gold)` returns True or False, or a number, of which 0.5 and more counts as
correct. It runs in worker processes alone, with their limits of memory and of processor time, and
cannot import jax. An exception or another value is a grader_error. `try_out` loads and calls a
function once in a process of its own, so that a run with a broken one does not begin.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bridge_jax.grading import worker
from bridge_jax.grading.outcome import Outcome

NAME = re.compile(r"([A-Za-z_][\w.]*|.+\.py):([A-Za-z_]\w*)")
CORRECT_FROM = 0.5
# wall-clock seconds for the start, the import and one call
TRIAL_SECONDS = 120.0
MEMORY_BYTES = 2 << 30


def is_name(text: str) -> bool:
    """Whether a text has the form of a function's name."""
    return NAME.fullmatch(text) is not None


@functools.lru_cache(maxsize=8)
def load(name: str) -> Callable:
    """The function of that name; imports its module."""
    place, attribute = NAME.fullmatch(name).groups()
    if place.endswith(".py"):
        path = Path(place).expanduser()
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        # what lies beside the file can be imported by it
        sys.path.insert(0, str(path.resolve().parent))
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    return getattr(module, attribute)


def judge(name: str, question: str, text: str, gold: str) -> Outcome:
    """The outcome that the function gives a completion's text."""
    return outcome_of(load(name)(question, text, gold))


def outcome_of(value: object) -> Outcome:
    """The outcome of a function's value; TypeError where it is neither a truth nor a number."""
    try:
        # of numpy's scalars too; a text such as "1" is a mistake
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise TypeError(f"it returned {value!r:.100}; wanted: True, False or a number")
    return Outcome.correct if number >= CORRECT_FROM else Outcome.wrong


def try_out(name: str, question: str, text: str, gold: str) -> str:
    """Why the function cannot be used, found by one call in a process like a worker; "" if it can.

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
        return f"it did not return within {TRIAL_SECONDS:.0f} seconds"
    if done.returncode:
        return f"its process ended with exit code {done.returncode}"
    return json.loads(done.stdout)


def main(memory_bytes: int, seconds: float) -> None:
    """The process of `try_out`: a call as JSON on stdin, what is wrong as JSON on stdout."""
    answers = worker.begin(memory_bytes)
    worker.limit_cpu_time(seconds)
    call = json.loads(sys.stdin.read())
    try:
        load(call[0])
    except BaseException as error:
        found = f"it cannot be imported: {describe(error)}"
    else:
        try:
            judge(*call)
            found = ""
        except BaseException as error:
            found = f"called on one row it failed: {describe(error)}"
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
    own = file is not None and file.is_file() and file != Path(__file__)
    place = f" ({file.name}, line {frame.tb_lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{place}"


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
