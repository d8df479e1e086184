"""Generate and grade the completions that an evaluation lacks, of all benchmarks in one queue.

Greedy completions and samples of all benchmarks wait in one queue, which keeps the devices busy
(sampling/refill.py). Each completion is stored by itself, as soon as it is graded.
"""

from __future__ import annotations

import collections
import functools
import logging
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from bridge_jax.data.batches import Prompts
from bridge_jax.evaluation import evaluate, rows, scores
from bridge_jax.evaluation.benchmarks import Benchmark
from bridge_jax.evaluation.lazy_pool import LazyPool
from bridge_jax.evaluation.model import EvalModel
from bridge_jax.evaluation.options import Options
from bridge_jax.evaluation.transcripts import Transcripts
from bridge_jax.sampling import decode_plan, refill, slots
from bridge_jax.sampling.refill import Finished, Request
from bridge_jax.types import Tree

logger = logging.getLogger(__name__)
# seconds between two lines of progress
PROGRESS_EVERY = 10.0


class Generator(NamedTuple):
    """A model on the devices, and the resolved options it is sampled with."""

    model: EvalModel
    phi: Tree
    mesh: jax.sharding.Mesh
    options: Options

    @property
    def cache_dtype(self):
        """The dtype of the KV cache."""
        return rows.cache_dtype_of(self.model.cache_dtype, self.options.dtype)

    def refill(self) -> refill.Refill:
        """The sampler. A row's key is fold_in(seed, 0, problem id, sample): no batch changes it."""
        options = self.options
        programs, plan = _programs(self.model.cfg, self.mesh, options.max_new, self.cache_dtype)
        eos_ids = self.model.tokenizer.eos_ids
        return refill.make(programs, plan, self.phi, options.seed, eos_ids, options.buckets)

    def rows(self) -> int:
        """Completions at once: options.rows, or as many as fit."""
        return rows.choose(self.model.cfg, self.options, self.cache_dtype, self.mesh)


@functools.lru_cache(maxsize=8)
def _programs(cfg, mesh: jax.sharding.Mesh, max_new: int, cache_dtype):
    """Programs of one model; cached, so that all evaluations share what is compiled."""
    plan = decode_plan.choose(mesh, max_new, cache_dtype)
    return slots.compiled(cfg, plan), plan


class Missing(NamedTuple):
    """The completions that are not stored yet."""

    prompts: Prompts  # of all benchmarks, one after the other
    owners: tuple[Benchmark, ...]  # the benchmark of each prompt
    requests: tuple[Request, ...]  # greedy rows have temperature 0


def missing(
    chosen: Sequence[Benchmark], options: Options, stores: Mapping[str, Transcripts]
) -> Missing:
    """What the stores, by names of benchmarks, lack."""
    problems, tokens, owners, requests = [], [], [], []
    for benchmark in chosen:
        stored = stores[benchmark.name].rows
        for problem, ids in zip(benchmark.prompts.problems, benchmark.prompts.tokens):
            for sample in [scores.GREEDY] * options.greedy + list(range(options.sampled)):
                if (problem.id, sample) not in stored:
                    requests.append(_request(len(problems), sample, options.temperature))
            problems.append(problem)
            tokens.append(ids)
            owners.append(benchmark)
    return Missing(Prompts(tuple(problems), tuple(tokens)), tuple(owners), tuple(requests))


def _request(prompt: int, sample: int | str, temperature: float) -> Request:
    if sample == scores.GREEDY:
        return Request(prompt, 0, 0.0)
    return Request(prompt, sample, temperature)


def generate_missing(
    generator: Generator,
    chosen: Sequence[Benchmark],
    stores: Mapping[str, Transcripts],
    pool: LazyPool,
) -> None:
    """Generate and grade the completions that the stores lack.

    What has ended is graded and on disk before what ends next is. While it is graded, the devices
    go on.
    """
    asked = missing(chosen, generator.options, stores)
    if not asked.requests:
        return
    progress = Progress(asked.requests)
    sample = generator.refill()
    for ended in sample(asked.prompts, asked.requests, generator.rows()):
        for benchmark, rows_of_it in _by_benchmark(asked, ended):
            grading = evaluate.Grading(benchmark.task, generator.model.tokenizer, pool)
            stores[benchmark.name].append(_transcripts(grading, asked.prompts, rows_of_it))
        progress.add(ended)


def _by_benchmark(
    asked: Missing, ended: Sequence[Finished]
) -> list[tuple[Benchmark, list[Finished]]]:
    """The rows of each benchmark that has some."""
    found = collections.defaultdict(list)
    for row in ended:
        found[asked.owners[row.request.prompt].name].append(row)
    return [(asked.owners[part[0].request.prompt], part) for part in found.values()]


def _transcripts(
    grading: evaluate.Grading, prompts: Prompts, ended: Sequence[Finished]
) -> list[dict]:
    """Transcripts of these rows; a greedy one has scores.GREEDY for its sample."""
    problems = [prompts.problems[row.request.prompt] for row in ended]
    samples = [row.request.sample if row.request.temperature else scores.GREEDY for row in ended]
    return evaluate.transcripts_of(grading, problems, refill.as_samples(ended), samples)


class Progress:
    """Counts of what has ended, for a line every PROGRESS_EVERY seconds and one at the end."""

    def __init__(self, requests: Sequence[Request]):
        self.began = self.logged = time.monotonic()
        self.open = collections.Counter(request.prompt for request in requests)
        self.problems, self.rows = len(self.open), len(requests)
        self.ended = self.tokens = 0

    def add(self, ended: Sequence[Finished]) -> None:
        """Count these rows."""
        self.ended += len(ended)
        self.tokens += sum(len(row.tokens_T) for row in ended)
        self.open.subtract(row.request.prompt for row in ended)
        now = time.monotonic()
        if self.ended == self.rows and ended or now - self.logged > PROGRESS_EVERY and self.ended:
            self.logged = now
            logger.info(self.line(now - self.began))

    def line(self, seconds: float) -> str:
        """What has ended after so many seconds."""
        done = sum(not left for left in self.open.values())
        left = seconds * (self.rows - self.ended) / self.ended
        return (
            f"{done} of {self.problems} problems, {self.ended} of {self.rows} completions, "
            f"{seconds:.0f} s, {self.tokens / max(seconds, 1e-9):.0f} tokens/s, about {left:.0f} s "
            "left"
        )
