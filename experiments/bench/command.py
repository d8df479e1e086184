"""Measure the speed of a part: `python -m experiments.bench CASE [--repeats=5]`.

Prints a JSON line for each repeat; the last line has the medians. Cases:

    grade                  answers a second through box, cheap stage and worker processes, and the
                           share that the cheap stage decides
    rollout                tokens a second of the sampler: 64 rows of 128 tokens
    rollout_uneven         the same to their ends, which made-up prompts reach only at the limit
    evaluation             256 rows of very uneven lengths in fixed batches, and in refilled slots
    evaluation_many        the same of 1,520 rows, on all devices there are
    update                 a grpo update of these rows, where each prompt is computed once
    update_repeated        the same, where each prompt is computed for every sample
    update_bridge          an update of bridge and one of grpo, in turn, on fewer rows
    update_bridge_repeated the same, where each prompt is computed for every sample
    step_grpo, step_bridge a whole step; and for each phase the time that this machine cannot beat:
                           its FLOPs and bytes at the measured rates of a matmul and a read
    reference              these rates alone

`grade` takes reference solutions (--data_dir: a folder with the JSONL of MATH and GSM8K). Each is
graded against its own gold answer and against that of the next problem. Without --data_dir answers
are made up in about MATH's proportions. The other cases take --model, a local folder, --dtype, and
prompts of GSM8K in --data_dir, or made-up ones.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import random
import resource
import statistics
import time
from importlib import metadata
from pathlib import Path

from absl import flags

from bridge_jax.data import datasets
from bridge_jax.grading import equivalence, selftest
from bridge_jax.grading.extract import last_boxed
from bridge_jax.grading.outcome import DeferredComparison, Rule
from bridge_jax.grading.pool import Pool
from experiments.bench.answers import made_up
from experiments.cli import (
    check_output,
    define_path,
    fail,
    fail_by,
    log_to_stderr,
    prepare_memory,
    run_command,
)

VERSIONS = ("jax", "jaxlib", "sympy", "math-verify")
# data with reference solutions
FILES = ("math_test_minus_math500.jsonl", "gsm8k_test.jsonl")


def solutions(data_dir: str) -> list[tuple[str, str]]:
    """(gold, solution) of the reference solutions in data_dir."""
    rows = []
    for name in FILES:
        path = Path(data_dir) / "train" / name
        path = path if path.is_file() else Path(data_dir) / name
        rows += [
            (
                row["answer"],
                row["solution"]
                if "boxed" in row["solution"]
                else f"{row['solution']} The answer is \\boxed{{{row['answer']}}}.",
            )
            for row in datasets.jsonl(path)
            if row.get("solution")
        ]
    return rows


def grade(repeats: int) -> list[dict]:
    """Answers a second, and the share of them that the cheap stage decides."""
    data_dir = flags.FLAGS.data_dir
    right = solutions(data_dir) if data_dir else made_up(4000)
    other = [(gold, text) for (gold, _), (_, text) in zip(right, right[1:] + right[:1])]
    rows = [(gold, text, Rule()) for gold, text in right + other]
    random.Random(1).shuffle(rows)
    deferred = sum(
        isinstance(equivalence.compare(gold, last_boxed(text) or "", rule), DeferredComparison)
        for gold, text, rule in rows
    )
    lines = []
    with Pool() as pool:
        began = time.monotonic()
        selftest.check(pool)
        start = time.monotonic() - began
        for _ in range(repeats):
            began = time.monotonic()
            outcomes = selftest.grade(rows, pool)
            seconds = time.monotonic() - began
            lines.append(
                {
                    "answers_per_s": len(rows) / seconds,
                    "seconds": seconds,
                    "answers": len(rows),
                    "cheap_share": 1 - deferred / len(rows),
                    "selftest_s": start,
                    "workers_killed": pool.killed,
                    "correct_share": sum(outcome == "correct" for outcome in outcomes) / len(rows),
                }
            )
    return lines


def on_model(case: str, module: str = "model_cases", **how):
    """A case of model_cases.py, or of another module beside it."""

    def measure(repeats: int) -> list[dict]:
        import jax

        from bridge_jax.distributed import platforms
        from bridge_jax.training import interrupt

        platforms.devices()
        # compile_s is the time of compiling
        jax.config.update("jax_enable_compilation_cache", False)
        given = flags.FLAGS
        measured = getattr(importlib.import_module(f"experiments.bench.{module}"), case)
        with interrupt.acknowledge_interrupts("ending", "nothing was measured"):
            return measured(repeats, given.model, given.data_dir, given.dtype, **how)

    return measure


CASES = {
    "grade": grade,
    "reference": on_model("reference"),
    "rollout": on_model("sampling", uneven=False),
    "rollout_uneven": on_model("sampling", uneven=True),
    "evaluation": on_model("evaluation", "evaluation_cases"),
    "evaluation_many": on_model("evaluation", "evaluation_cases", prompts=190),
    "update": on_model("update", shared=True),
    "update_repeated": on_model("update", shared=False),
    "update_bridge": on_model("bridge_beside_grpo", shared=True),
    "update_bridge_repeated": on_model("bridge_beside_grpo", shared=False),
    "step_grpo": on_model("step", method="grpo"),
    "step_bridge": on_model("step", method="bridge"),
}


def instructions() -> str:
    """The widest vector instructions of the processor, on Linux; others give other figures."""
    about = Path("/proc/cpuinfo")
    named = set(about.read_text().split()) if about.is_file() else set()
    return next((kind for kind in ("amx_bf16", "avx512f", "avx2") if kind in named), "")


def main(argv: list[str]) -> None:
    """Run the case, print its lines and the median."""
    if len(argv) != 2 or argv[1] not in CASES:
        fail(f"expected one case, got {argv[1:]}; allowed: {', '.join(CASES)}")
    if flags.FLAGS.repeats < 1:
        fail(f"--repeats={flags.FLAGS.repeats}; allowed: at least 1")
    log_to_stderr()
    # as in training
    prepare_memory()
    about = {
        "case": argv[1],
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "instructions": instructions(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in VERSIONS},
    }
    try:
        lines = CASES[argv[1]](flags.FLAGS.repeats)
    except (ValueError, OSError, RuntimeError) as error:
        fail_by(error)
    peak = {
        who: resource.getrusage(kind).ru_maxrss / 2**10
        for who, kind in (("self", resource.RUSAGE_SELF), ("workers", resource.RUSAGE_CHILDREN))
    }
    for line in lines:
        print(json.dumps(about | line))
    medians = {key: statistics.median(line[key] for line in lines) for key in lines[0]}
    print(json.dumps(about | medians | {"median_of": len(lines), "peak_mb": peak}))
    check_output()


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_integer("repeats", 5, "how often")
    define_path("data_dir", "", "a folder with reference solutions; without it they are made up")
    define_path("model", "models_local/smollm2", "a local model folder")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of weights and cache")


def start() -> None:
    """The command, with its flags."""
    define_flags()
    run_command(main)
