"""The case of experiments.bench for evaluations: fixed batches and refilled slots on uneven
lengths.

There are 32 prompts x 8 samples (or more prompts), each of up to NEW tokens (fewer where a small
vocabulary has no such lengths). Lengths are as uneven as a reasoning model's, of made-up text: at a
very high temperature every token of the vocabulary is as likely as any other, and so many of them
count as ends that the median length is a sixth of the limit. All ways draw the same tokens, by the
programs of evaluations.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bridge_jax.data.batches import Prompts, prompt_batch
from bridge_jax.distributed import sharding
from bridge_jax.distributed.compiler import compiler_options
from bridge_jax.filesystem import hf_folder
from bridge_jax.models import params
from bridge_jax.models.precision import dtype_of
from bridge_jax.sampling import decode_plan, refill, sampler, slots
from bridge_jax.sampling.draw import Sampling, row_keys
from bridge_jax.sampling.refill import Request
from bridge_jax.types import Problem

logger = logging.getLogger(__name__)
PROMPTS, SAMPLES, BUCKET, NEW = 32, 8, 64, 128
# completions at once: those of evaluations before slots were refilled, and as many as a CPU takes
FEW, MANY = 16, 64
# so high that all tokens are about equally likely
UNIFORM = 1e4
SEED = 0


class Case(NamedTuple):
    """A model on the devices, and what is asked of it."""

    cfg: object
    phi: dict
    plan: decode_plan.DecodePlan
    prompts: Prompts
    eos_ids: np.ndarray


class Run(NamedTuple):
    """One way of sampling all rows, measured."""

    seconds: float
    cpu_seconds: float  # of this process, which counts where others keep the cores busy
    tokens: int
    steps: int


class Clock:
    """Seconds since it was made, by the wall and of this process on all cores."""

    def __init__(self):
        self.began = time.monotonic(), time.process_time()

    def spent(self) -> tuple[float, float]:
        """Both."""
        return time.monotonic() - self.began[0], time.process_time() - self.began[1]


def make(model: str, dtype: str, count: int = PROMPTS) -> Case:
    """The model of a local folder, made-up prompts, and enough ends."""
    folder, dtype = hf_folder.locate(model), dtype_of("--dtype", dtype)
    cfg = params.read_config(hf_folder.hf_json(folder))
    theta = params.load(cfg, folder, dtype=dtype)
    mesh = sharding.make_decode_mesh(sharding.MeshConfig(decode_tensor=1))
    rng = np.random.default_rng(SEED)
    tokens = tuple(
        rng.integers(0, cfg.vocab, n).astype(np.int32)
        for n in rng.integers(BUCKET // 3, BUCKET + 1, count)
    )
    problems = tuple(Problem(i, "", "", "", 0) for i in range(count))
    # of a small vocabulary one end may be too many for NEW tokens
    limit = min(NEW, round(6 * math.log(0.5) / math.log(1 - 1 / cfg.vocab)))
    # a share of ends after which half of the rows have ended at a sixth of the limit
    ends = round(cfg.vocab * (1 - 0.5 ** (6 / limit)))
    return Case(
        cfg,
        jax.device_put(theta, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())),
        decode_plan.choose(mesh, limit, dtype),
        Prompts(problems, tokens),
        rng.choice(cfg.vocab, ends, replace=False).astype(np.int32),
    )


def fixed(case: Case, rows: int) -> Callable:
    """call(prompts, limit, eos_ids=the case's) -> Run of batches that wait for their longest row.

    prompts: how many of the case's. limit: most tokens of a row, by default the plan's.
    """
    sample = functools.partial(sampler.sample, case.cfg, plan=case.plan)
    program = jax.jit(sample, compiler_options=compiler_options(emitters=True))
    at_once = max(rows // SAMPLES, case.plan.mesh.shape["data"])

    def call(
        prompts: int, limit: int = case.plan.max_new, eos_ids: np.ndarray = case.eos_ids
    ) -> Run:
        settings = Sampling(jnp.float32(UNIFORM), jnp.asarray(eos_ids, jnp.int32), jnp.int32(limit))
        order = sorted(range(prompts), key=lambda i: len(case.prompts.tokens[i]))
        clock, pending = Clock(), []
        for first in range(0, prompts, at_once):
            part = order[first : first + at_once]
            part += part[-1:] * (at_once - len(part))
            batch = prompt_batch(case.prompts, part, (BUCKET,))
            keys = row_keys(jax.random.key(SEED), 0, jnp.asarray(batch.ids_P), SAMPLES)
            given = batch.prompt_PS, batch.prompt_len_P, keys
            given = jax.device_put(given, sharding.of_rows(case.plan.mesh, given))
            pending.append(program(case.phi, *given, settings).seqs.length_B)
        lengths = jax.device_get(pending)
        spent, tokens = clock.spent(), sum(int(x.sum()) for x in lengths)
        return Run(*spent, tokens, sum(int(x.max()) for x in lengths))

    return call


def refilled(case: Case, rows: int) -> Callable:
    """call(prompts, limit) -> Run of refilled slots."""
    programs = slots.compiled(case.cfg, case.plan)
    sample = refill.make(programs, case.plan, case.phi, SEED, case.eos_ids, (BUCKET,))

    def call(prompts: int, limit: int = case.plan.max_new) -> Run:
        rows_asked = [Request(i, m, UNIFORM, limit) for i in range(prompts) for m in range(SAMPLES)]
        clock, steps, tokens = Clock(), [], 0
        for ended in sample(case.prompts, rows_asked, rows, steps.append):
            tokens += sum(len(row.tokens_T) for row in ended)
        return Run(*clock.spent(), tokens, sum(steps))

    return call


def evaluation(
    repeats: int, model: str, data_dir: str, dtype: str, prompts: int = PROMPTS
) -> list[dict]:
    """Fixed batches and refilled slots in turn.

    times_*: tokens a second of refilled slots over those of batches. times_equal: tokens a second
    where all rows have the mean length, in batches of as many rows, over those of refilled slots.
    steps_*: decode steps, which are what counts where a step takes as long with fewer rows.
    """
    case = make(model, dtype, prompts)
    ways = {
        f"refilled_{MANY}": refilled(case, MANY),
        f"fixed_{FEW}": fixed(case, FEW),
        f"fixed_{MANY}": fixed(case, MANY),
    }
    for call in ways.values():
        # compiles, of few tokens
        call(min(prompts, 2 * MANY // SAMPLES), limit=2)
    lines = []
    for _ in range(repeats):
        lines.append(_line(ways, prompts, np.full_like(case.eos_ids, -1)))
    return lines


def _line(ways: dict[str, Callable], prompts: int, never: np.ndarray) -> dict:
    """Each way once, and rows of equal lengths. never: eos ids that no token has."""
    runs = {}
    for name, call in ways.items():
        runs[name] = call(prompts)
        logger.info("%s: %s", name, runs[name])
    mean = math.ceil(runs[f"refilled_{MANY}"].tokens / prompts / SAMPLES)
    runs[f"equal_{MANY}"] = ways[f"fixed_{MANY}"](prompts, mean, never)
    rate = {name: run.tokens / run.seconds for name, run in runs.items()}
    cpu = {name: run.cpu_seconds / run.tokens for name, run in runs.items()}
    ours = rate[f"refilled_{MANY}"]
    return {
        "seconds": sum(run.seconds for run in runs.values()),
        "mean_tokens": mean,
        **{f"tokens_per_s_{name}": value for name, value in rate.items()},
        **{f"cpu_ms_a_token_{name}": cpu[name] * 1e3 for name in runs},
        **{f"steps_{name}": run.steps for name, run in runs.items()},
        **{f"times_fixed_{n}": ours / rate[f"fixed_{n}"] for n in (FEW, MANY)},
        "times_equal": rate[f"equal_{MANY}"] / ours,
    }
