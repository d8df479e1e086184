"""Tasks, found by the names of the files of this folder: one new file is one new task.

A task file has a frozen dataclass `Config` and `make(cfg: Config) -> types.Task`; nothing needs to be registered.
Also here is what every task needs: the check that no row lacks a question or an answer, ids that depend on nothing
but the question, and chat messages.
"""
from __future__ import annotations

import difflib
import hashlib
import importlib
import pkgutil
from types import ModuleType
from typing import Iterable

from bridge_jax.types import Problem

INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."  # after the question


def names() -> tuple[str, ...]:
    """Names of all tasks, sorted: the files of this folder."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def load(name: str) -> ModuleType:
    """The task's module, with its Config and make; ValueError lists the tasks that exist."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"task {name!r} does not exist.{hint} Tasks: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def question_id(question: str) -> int:
    """31-bit id of a question, from its text alone: the same on every machine, whatever else is loaded."""
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big") & 0x7FFFFFFF


def check_rows(rows: Iterable[Problem], source: str, demos: bool = False) -> tuple[Problem, ...]:
    """The rows as a tuple; ValueError names the row (counted from 0) of `source` that is unusable, and why.

    Needed: question and answer (with `demos` also solution) not blank, an id in [0, 2^31) that no other row has.
    """
    seen: dict[int, int] = {}
    checked = tuple(rows)
    for number, row in enumerate(checked):
        where = f"{source}: row {number} (id {row.id!r})"
        for field in ("question", "answer", "solution")[:3 if demos else 2]:
            value = getattr(row, field)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{where} has {field} {value!r}; it must be a text that is not blank. "
                                 "Remove the row from the data or fill it in")
        if isinstance(row.id, bool) or not isinstance(row.id, int) or not 0 <= row.id < 2**31:
            raise ValueError(f"{where}: an id must be an integer in [0, 2^31), such as question_id(question)")
        if row.id in seen:
            raise ValueError(f"{where} has the id of row {seen[row.id]}; ids must be unique. Remove one of the rows")
        seen[row.id] = number
    return checked


def boxed_messages(problem: Problem, system: str = "", shots: tuple[tuple[str, str], ...] = ()) -> list[dict[str, str]]:
    """Chat messages that ask for an answer in a box, behind worked examples (question, solution) as earlier turns."""
    ask = lambda question: {"role": "user", "content": question + INSTRUCTION}
    told = [{"role": "system", "content": system}] if system else []
    for question, solution in shots:
        told += [ask(question), {"role": "assistant", "content": solution}]
    return told + [ask(problem.question)]
