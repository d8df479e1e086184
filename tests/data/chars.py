"""A character tokenizer, the real ones where they lie, and small problems."""

from __future__ import annotations

import functools
import json
import pathlib

import pytest

from bridge_jax.data.tokenizers import CharTokenizer, HFTokenizer
from bridge_jax.tasks import arithmetic
from bridge_jax.types import Problem

TOKENIZERS = pathlib.Path(__file__).parents[3] / "shared" / "data" / "tokenizers"
CHAR = CharTokenizer(arithmetic.ALPHABET)


@functools.cache
def real(name: str) -> HFTokenizer:
    """One of the real tokenizers; the test is skipped where its files are absent."""
    if not (TOKENIZERS / name / "tokenizer.json").exists():
        pytest.skip(f"needs the {name} tokenizer in ../shared/data/tokenizers")
    return HFTokenizer(str(TOKENIZERS / name))


def plain(problem: Problem):
    """The question alone as the one message."""
    return [{"role": "user", "content": problem.question}]


def problem(id: int, question: str, solution: str = "#1") -> Problem:
    """A problem with answer 1."""
    return Problem(id, question, "1", solution, 1)


def small_hf(folder, files: dict | None = None, **settings):
    """The folder of a character tokenizer with other settings and files."""
    CharTokenizer("<|im_endstarb>12\n").save(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    for name, content in (files or {}).items():
        (folder / name).write_text(json.dumps(content))
    return folder
