"""Generate the missing completions of an evaluation; samplers compile once for each bucket."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bridge_jax.data.batches import PromptBatch, Prompts
from bridge_jax.distributed import sharding
from bridge_jax.distributed.compiler import compiler_options
from bridge_jax.evaluation import evaluate, scores
from bridge_jax.evaluation.benchmarks import Benchmark
from bridge_jax.evaluation.lazy_pool import LazyPool
from bridge_jax.evaluation.model import EvalModel
from bridge_jax.evaluation.options import Options
from bridge_jax.evaluation.transcripts import Transcripts
from bridge_jax.models.precision import dtype_of
from bridge_jax.sampling import decode_plan
from bridge_jax.sampling import sampler as sampling_sampler
from bridge_jax.sampling.draw import Sampling, row_keys
from bridge_jax.sampling.sampler import Samples
from bridge_jax.types import Tree

logger = logging.getLogger(__name__)


class Generator(NamedTuple):
    """A model on the devices, and the resolved options it is sampled with."""

    model: EvalModel
    phi: Tree
    mesh: jax.sharding.Mesh
    options: Options

    def sampler(self, M: int, temperature: float) -> Callable:
        """generate(PromptBatch) -> Samples, M of each prompt; it returns before they are ready.

        The key of a row is fold_in(seed, 0, problem id, sample id), so that samples do not depend
        on how prompts are batched. temperature 0 is greedy. Compiles once for each bucket.
        """
        options, tokenizer = self.options, self.model.tokenizer
        cache_dtype = dtype_of("--dtype", self.model.cache_dtype or options.dtype)
        sample = _jitted(self.model.cfg, self.mesh, options.max_new, cache_dtype)
        seed_key = jax.random.key(options.seed)
        traced = Sampling(
            jnp.float32(temperature),
            jnp.asarray(tokenizer.eos_ids, jnp.int32),
            jnp.int32(options.max_new),
        )
        place = lambda tree: jax.device_put(tree, sharding.of_rows(self.mesh, tree))

        def generate(batch: PromptBatch) -> Samples:
            return sample(
                self.phi,
                *place((batch.prompt_PS, batch.prompt_len_P)),
                place(_row_keys(seed_key, 0, batch.ids_P, M)),
                traced,
            )

        return generate

    def prompts_at_once(self, M: int) -> int:
        """Prompts of one batch: about options.rows completions, equally many on every device."""
        spread = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        return -(-max(1, self.options.rows // M) // spread) * spread


_row_keys = jax.jit(row_keys, static_argnums=3)


@functools.lru_cache(maxsize=8)
def _jitted(cfg, mesh: jax.sharding.Mesh, max_new: int, cache_dtype):
    """sampler.sample of one model; cached, so that all benchmarks share its compiled programs."""
    plan = decode_plan.choose(mesh, max_new, cache_dtype)
    sample = functools.partial(sampling_sampler.sample, cfg, plan=plan)
    return jax.jit(sample, compiler_options=compiler_options(emitters=True))


def missing_prompts(benchmark: Benchmark, kind: str, M: int, stored: dict) -> Prompts:
    """Prompts of the problems some of whose completions are not stored yet."""
    samples = [scores.GREEDY] if kind == "greedy" else list(range(M))
    prompts = benchmark.prompts
    missing = [
        i
        for i, problem in enumerate(prompts.problems)
        if any((problem.id, sample) not in stored for sample in samples)
    ]
    pick = lambda rows: tuple(rows[i] for i in missing)
    return Prompts(pick(prompts.problems), pick(prompts.tokens))


def generate_missing(
    generator: Generator, benchmark: Benchmark, kind: str, store: Transcripts, pool: LazyPool
) -> None:
    """Generate and grade the completions of one kind, a key of Options.kinds, that the store lacks.

    Each batch is on disk before the next one is graded. A problem some of whose samples are missing
    is sampled again as a whole; only the missing samples are stored.
    """
    M = generator.options.kinds[kind]
    prompts = missing_prompts(benchmark, kind, M, store.rows)
    if not prompts.problems:
        return
    began, done = time.monotonic(), 0
    for rows in _batches(generator, benchmark, kind, prompts, pool):
        store.append(rows)
        done += len(rows) // M
        logger.info(
            "%s, %s: %d of %d problems, %.0f s",
            benchmark.name,
            kind,
            done,
            len(prompts.problems),
            time.monotonic() - began,
        )


def _batches(
    generator: Generator, benchmark: Benchmark, kind: str, prompts: Prompts, pool: LazyPool
) -> Iterator[list[dict]]:
    """Rows of transcripts, batch by batch; a greedy row has scores.GREEDY for its sample."""
    options, M = generator.options, generator.options.kinds[kind]
    greedy = kind == "greedy"
    batches = evaluate.transcribe(
        generator.sampler(M, 0.0 if greedy else options.temperature),
        evaluate.Grading(benchmark.task, generator.model.tokenizer, pool),
        prompts,
        generator.prompts_at_once(M),
        options.buckets,
        M,
    )
    for rows in batches:
        yield [row | {"sample": scores.GREEDY} for row in rows] if greedy else rows
