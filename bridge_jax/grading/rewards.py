"""Reward functions of the user, named MODULE:FUNCTION or FILE.py:FUNCTION.

`function(question, text, gold)` returns True or False, or a number, of which 0.5 and more counts as
correct. It runs in worker processes alone, with their limits of memory and of processor time, and
cannot import jax. An exception or another value is a grader_error. Before a run trial.py calls
the function once.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

from bridge_jax.grading.outcome import Outcome

NAME = re.compile(r"([A-Za-z_][\w.]*|.+\.py):([A-Za-z_]\w*)")
CORRECT_FROM = 0.5


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


def code_hash(name: str) -> str:
    """12 hex digits of the SHA-256 of the files of the function and of the module that is named.

    What these import is not in it.
    """
    function, place = load(name), NAME.fullmatch(name)[1]
    module = place if place.endswith(".py") else sys.modules[place].__file__
    code = getattr(function, "__code__", None)
    files = dict.fromkeys((module, code.co_filename if code else module))
    contents = [Path(file).expanduser() for file in files if file]
    whole = b"".join(one.read_bytes() for one in contents if one.is_file())
    return hashlib.sha256(whole).hexdigest()[:12]


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
