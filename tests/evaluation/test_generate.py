"""What an evaluation lacks, and the line of its progress."""

from __future__ import annotations

import types

import numpy as np

from bridge_jax.data.batches import Prompts
from bridge_jax.evaluation import generate
from bridge_jax.evaluation.benchmarks import Benchmark
from bridge_jax.evaluation.options import Options
from bridge_jax.sampling.refill import Finished, Request
from tests.evaluation.completions import TASK


def benchmark(name: str, count: int) -> Benchmark:
    """The first problems of the toy task."""
    problems = TASK.train[:count]
    prompts = Prompts(problems, tuple(np.ones(i + 1, np.int32) for i in range(count)))
    return Benchmark(name, TASK, problems, "", prompts)


def test_what_is_stored_is_not_asked_again():
    """Single samples are missing, not whole problems; the prompts of all benchmarks follow."""
    one, two = benchmark("one", 2), benchmark("two", 1)
    stored = {(TASK.train[0].id, "greedy"): {}, (TASK.train[1].id, 1): {}}
    stores = {
        "one": types.SimpleNamespace(rows=stored),
        "two": types.SimpleNamespace(rows={(TASK.train[0].id, 0): {}}),
    }
    asked = generate.missing([one, two], Options(samples=2, temperature=0.5), stores)
    assert asked.owners == (one, one, two) and len(asked.prompts.tokens) == 3
    assert [(r.prompt, r.sample, r.temperature) for r in asked.requests] == [
        (0, 0, 0.5),
        (0, 1, 0.5),
        (1, 0, 0.0),
        (1, 0, 0.5),
        (2, 0, 0.0),
        (2, 1, 0.5),
    ]


def test_a_line_of_progress():
    """A problem counts when all its completions have ended."""
    requests = [Request(p, m) for p in (0, 1) for m in (0, 1)]
    progress = generate.Progress(requests)
    ended = lambda request, n: Finished(request, np.zeros(n, np.int32), np.zeros(n), True)
    progress.add([ended(requests[0], 30), ended(requests[2], 50), ended(requests[1], 20)])
    assert progress.line(50.0) == (
        "1 of 2 problems, 3 of 4 completions, 50 s, 2 tokens/s, about 17 s left"
    )
