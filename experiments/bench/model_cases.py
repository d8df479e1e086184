"""The cases of experiments.bench that run a model: sampler and updates, at the peers' sizes.

There are 8 prompts x 8 samples (5 x 8 where bridge is compared with grpo). Prompts are padded to
256 tokens and have 128 new ones. All weights are trained by AdamW at 8 rows a micro-batch. The
programs are those of training (programs.trace_sampler, trace_update), compiled as in training.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bridge_jax.data import datasets, tokenizers
from bridge_jax.distributed.compiler import compiler_options
from bridge_jax.grading import selftest
from bridge_jax.grading.outcome import Rule
from bridge_jax.grading.pool import Pool
from bridge_jax.planner import phases
from bridge_jax.planner.flops import chip_bytes
from bridge_jax.sampling.draw import Sampling, row_keys
from bridge_jax.training import build, programs
from bridge_jax.training.build import Setup
from bridge_jax.types import Batch, Packing, Rollouts, Sequences
from configs import base
from experiments.bench.answers import made_up

PROMPTS, SAMPLES, DEMOS, BUCKET, NEW = 8, 8, 16, 256, 128
# prompts where bridge is compared with grpo: their 40 samples and 8 demos are whole micro-batches
FEWER = 5
INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."
STEADY = dict(learning_rate=1e-6, schedule="constant", warmup_steps=0, decay_steps=0)


class Sizes(NamedTuple):
    """Sizes of a case; 0: the usual number."""

    max_new: int = 0  # usually NEW
    pack: int = 0
    prompts: int = 0  # usually PROMPTS
    # usually DEMOS: one for every five samples, as in the paper, rounded up to a multiple of 8
    demos: int = 0
    sft_microbatches: int = 0


USUAL = Sizes()


def make(method: str, model: str, dtype: str, sizes: Sizes = USUAL) -> Setup:
    """A run of these sizes, without data."""
    config = base.get_config(method)
    config.model.update(dict(path=model, dtype=dtype, remat="none"))
    config.data.buckets = (BUCKET,)
    config.rollout.update(dict(max_new=sizes.max_new or NEW, cache_dtype=dtype))
    config.batch.update(
        dict(
            prompts_per_step=sizes.prompts or PROMPTS,
            samples_per_prompt=SAMPLES,
            demos_per_step=sizes.demos or DEMOS,
            microbatch_rows=8,
            pack=sizes.pack,
        )
    )
    if sizes.sft_microbatches:
        config.method.bridge.sft_microbatches = sizes.sft_microbatches
    config.optim.base.update(STEADY)
    config.optim.lora.update(STEADY)
    return build.make_setup(config, jax.devices()[:1])


def texts(model: str, data_dir: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompts [8, 256], their lengths, and a stream of tokens of solutions.

    They are those of GSM8K in data_dir, or made up.
    """
    if not data_dir:
        rng = np.random.default_rng(0)
        return (
            rng.integers(1000, 9000, (PROMPTS, BUCKET)),
            rng.integers(BUCKET // 3, BUCKET, PROMPTS),
            rng.integers(1000, 9000, 80 * NEW),
        )
    tokenizer = tokenizers.HFTokenizer(model)
    path = Path(data_dir) / "train" / "gsm8k_train.jsonl"
    rows = datasets.jsonl(path)[:400]
    asked = [
        tokenizer.render([{"role": "user", "content": row["problem"] + INSTRUCTION}])
        for row in rows[:PROMPTS]
    ]
    padded = np.array([ids + [0] * (BUCKET - len(ids)) for ids in asked])
    return (
        padded,
        np.array([len(ids) for ids in asked]),
        np.array(tokenizer.encode("\n".join(row["solution"] for row in rows))),
    )


def completions(setup: Setup, model: str, data_dir: str) -> Batch:
    """The batch of an update: full-length completions cut from solutions, rewards 0 and 1."""
    prompt, length, stream = texts(model, data_dir)
    s = setup.settings.batch
    P, B, D = s.prompts_per_step, s.rollout_rows, s.demos_per_step

    def rows(P: int, B: int, first: int) -> Sequences:
        cut = stream[first * NEW : (first + B) * NEW].reshape(B, NEW)
        ints, which = lambda x: jnp.asarray(x, jnp.int32), np.arange(P) % PROMPTS
        # a row for each sample, with its prompt in it
        alone = Packing(ints(np.arange(B)[:, None]), ints(B)) if s.pack else None
        return Sequences(
            ints(prompt[which]), ints(length[which]), ints(cut), ints(np.full(B, NEW)), alone
        )

    reward_B = jnp.asarray(np.random.default_rng(0).integers(0, 2, B), jnp.float32)
    samples = Rollouts(rows(P, B, 0), jnp.full((B, NEW), -2.0), reward_B, jnp.float32(1.0))
    spec = setup.method.step_kinds[0]
    return Batch(rows(D, D, B) if spec.demos else None, dict.fromkeys(spec.sampled_by, samples))


def compiled(trace: Callable, emitters: bool = False) -> tuple[jax.stages.Compiled, float]:
    """The program, and the seconds of tracing and compiling it."""
    began = time.monotonic()
    program = trace().lower().compile(compiler_options=compiler_options(emitters))
    return program, time.monotonic() - began


def timed(call: Callable) -> tuple[float, object]:
    """Seconds until the result is ready, and the result."""
    began = time.monotonic()
    result = jax.block_until_ready(call())
    return time.monotonic() - began, result


def sampler(
    setup: Setup, model: str, data_dir: str, uneven: bool = False
) -> tuple[Callable, float]:
    """call(phi, repeat) -> (seconds to the first token, to the last, Samples); compile seconds."""
    prompt, length, _ = texts(model, data_dir)
    shapes = programs.abstract_phi(setup, build.abstract_state(setup))
    program, compile_s = compiled(
        lambda: programs.trace_sampler(setup, shapes, BUCKET, PROMPTS, SAMPLES), emitters=True
    )
    eos_E, limit = (
        jnp.asarray(setup.eos_ids, jnp.int32),
        jnp.int32(setup.settings.rollout.max_new),
    )
    how = Sampling(jnp.float32(1.0), eos_E if uneven else jnp.full_like(eos_E, -1), limit)

    def call(phi, repeat: int):
        keys = row_keys(jax.random.key(0), repeat, jnp.arange(PROMPTS), SAMPLES)
        given = phi, jnp.asarray(prompt, jnp.int32), jnp.asarray(length, jnp.int32), keys
        first_s, _ = timed(lambda: program(*given, how._replace(limit=jnp.int32(1))))
        return first_s, *timed(lambda: program(*given, how))

    return call, compile_s


def sampling(repeats: int, model: str, data_dir: str, dtype: str, uneven: bool) -> list[dict]:
    """The sampler, and the rate of a matmul right before.

    Every row has 128 tokens; uneven: it goes to its end, or to 256 tokens.
    """
    setup = make("grpo", model, dtype, Sizes(max_new=2 * NEW if uneven else NEW))
    phi = jax.tree.map(lambda x: x.astype(dtype), build.initial_theta(setup))
    sample, compile_s = sampler(setup, model, data_dir, uneven)
    measure, lines = machine("float32", read=False), []
    for repeat in range(repeats + 1):
        rates = measure()
        first_s, seconds, samples = sample(phi, repeat)
        tokens = int(samples.seqs.length_B.sum())
        lines.append(
            {
                "seconds": seconds,
                "tokens": tokens,
                "tokens_per_s": tokens / seconds,
                "compile_s": compile_s,
                "first_token_s": first_s,
                "longest": int(samples.seqs.length_B.max()),
                **rates,
            }
        )
    # the first call warms up
    return lines[1:]


def updates(
    setup: Setup, model: str, data_dir: str
) -> tuple[Callable[[], tuple[float, dict]], dict]:
    """call() -> (seconds of an update, its metrics); and figures of its program.

    These are the seconds of compiling, the bytes of the training state, and those it takes above
    it.
    """
    shapes = build.abstract_state(setup)
    program, compile_s = compiled(
        lambda: programs.trace_update(setup, shapes, BUCKET, setup.method.step_kinds[0])
    )
    state, batch = (
        jax.jit(setup.method.init)(build.initial_theta(setup), jax.random.key(0)),
        completions(setup, model, data_dir),
    )

    def call():
        nonlocal state
        seconds, (state, metrics) = timed(lambda: program(state, batch))
        return seconds, metrics

    return call, {
        "compile_s": compile_s,
        "state_gb": chip_bytes(shapes) / 1e9,
        "above_gb": program.memory_analysis().temp_size_in_bytes / 1e9,
    }


def update(repeats: int, model: str, data_dir: str, dtype: str, shared: bool) -> list[dict]:
    """An update of grpo on 64 samples; shared: each prompt is computed once for its 8 samples."""
    setup = make("grpo", model, dtype, Sizes(pack=0 if shared else 1))
    (call, about), rows, lines = (
        updates(setup, model, data_dir),
        setup.settings.batch.rollout_rows,
        [],
    )
    for _ in range(repeats + 1):
        seconds, metrics = call()
        lines.append(
            {
                "seconds": seconds,
                "rows_per_s": rows / seconds,
                "tokens_per_s": rows * (BUCKET + NEW) / seconds,
                **about,
                "grad_norm": float(metrics["grad/norm_theta"]),
            }
        )
    # the first call warms up
    return lines[1:]


def bridge_beside_grpo(
    repeats: int, model: str, data_dir: str, dtype: str, shared: bool
) -> list[dict]:
    """An update of bridge and one of grpo in turn, on the same 40 samples.

    bridge has 8 demos, exactly one for every five samples. They are passed two at a time, which is
    not the default: all 8 have more positions than a prompt and its samples, and so would take more
    memory. times_*: the figure of bridge divided by that of grpo.
    """
    demos = FEWER * SAMPLES // 5
    sizes = Sizes(pack=0 if shared else 1, prompts=FEWER, demos=demos)
    in_pairs = sizes._replace(sft_microbatches=-(-demos // 2))
    runs = {
        "bridge": make("bridge", model, dtype, in_pairs),
        "grpo": make("grpo", model, dtype, sizes),
    }
    both = {method: updates(run, model, data_dir) for method, run in runs.items()}
    line = {
        f"{method}_{key}": value
        for method, (_, about) in both.items()
        for key, value in about.items()
    }
    line["times_above_gb"], lines = line["bridge_above_gb"] / line["grpo_above_gb"], []
    for _ in range(repeats + 1):
        spent = {f"{method}_seconds": call()[0] for method, (call, _) in both.items()}
        lines.append(
            {**line, **spent, "times_seconds": spent["bridge_seconds"] / spent["grpo_seconds"]}
        )
    # the first calls warm up
    return lines[1:]


def machine(dtype: str, read: bool = True) -> Callable[[], dict[str, float]]:
    """measure() -> rates of this machine: matmuls of 2048 in GFLOP/s, sums of 1 GiB in GB/s.

    Each is the best of five, since a single one may take five times as long.
    """
    matmul, total = jax.jit(jnp.matmul), jax.jit(jnp.sum)
    best = lambda call, *given: min(timed(lambda: call(*given))[0] for _ in range(5))

    def measure() -> dict[str, float]:
        # an argument of the program: the compiler would fold a constant
        a = jnp.ones((2048, 2048), dtype)
        rates = {"matmul_gflops": 2 * 2048**3 / best(matmul, a, a) / 1e9}
        if read:
            x = jnp.ones(2**28)
            rates["read_gb_s"] = x.nbytes / best(total, x) / 1e9
        return rates

    # compile
    measure()
    return measure


def reference(repeats: int, model: str, data_dir: str, dtype: str) -> list[dict]:
    """The rates of the machine alone."""
    measure = machine(dtype)
    return [measure() for _ in range(repeats)]


def step(repeats: int, model: str, data_dir: str, dtype: str, method: str) -> list[dict]:
    """One step by phases: merge, prefill, decode, grading of made-up answers, update.

    NAME_s: seconds of a phase. NAME_limit_s: the larger of its FLOPs at the rate of a matmul and
    its bytes at that of a read, both measured right before. NAME_share: limit / seconds. A call
    that samples one token separates prefill from decode. tokens_per_s: new tokens over the seconds
    of the whole step.
    """
    answers = [(gold, text, Rule()) for gold, text in made_up(PROMPTS * SAMPLES)]
    # first: a process counts the memory of its parent at the start as its own
    with Pool() as pool:
        selftest.grade(answers, pool)
        setup = make(method, model, dtype)
        shapes, batch = build.abstract_state(setup), completions(setup, model, data_dir)
        work = {phase.name: phase.work(phase.trace()) for phase in phases.phases(setup, shapes)}
        merge, merge_compile_s = compiled(lambda: programs.trace_policy(setup, shapes, "theta"))
        update, update_compile_s = compiled(
            lambda: programs.trace_update(setup, shapes, BUCKET, setup.method.step_kinds[0])
        )
        sample, sample_compile_s = sampler(setup, model, data_dir)
        compile_s = merge_compile_s + update_compile_s + sample_compile_s
        state, measure, lines = (
            jax.jit(setup.method.init)(build.initial_theta(setup), jax.random.key(0)),
            machine(dtype),
            [],
        )
        for repeat in range(repeats + 1):
            line, spent = measure(), {}
            spent["merge"], phi = timed(lambda: merge(state.params))
            first_s, rollout_s, samples = sample(phi, repeat)
            spent["decode"] = (rollout_s - first_s) * NEW / (NEW - 1)
            spent["prefill"] = rollout_s - spent["decode"]
            spent["grade"], _ = timed(lambda: selftest.grade(answers, pool))
            spent["update"], (state, _) = timed(lambda: update(state, batch))
            for name, seconds in spent.items():
                line[f"{name}_s"] = seconds
                if name in work:
                    flops, moved = work[name]
                    limit_s = max(flops / line["matmul_gflops"], moved / line["read_gb_s"]) / 1e9
                    line |= {f"{name}_limit_s": limit_s, f"{name}_share": limit_s / seconds}
            seconds = sum(spent.values())
            lines.append(
                line
                | {
                    "seconds": seconds,
                    "compile_s": compile_s,
                    "tokens_per_s": int(samples.seqs.length_B.sum()) / seconds,
                }
            )
    # the first step warms up
    return lines[1:]
