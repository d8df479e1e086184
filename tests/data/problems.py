"""Files of rows, and problems with one line each."""

from __future__ import annotations

import json

from bridge_jax.types import Problem


def write(folder, rows, name="some.jsonl"):
    """The folder with these rows in a file; a row that is text is written as it is."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return folder


def of(id: int, question: str, solution: str = "", answer: str = "1") -> Problem:
    """A problem of these texts."""
    return Problem(id, question, answer, solution, 0)
