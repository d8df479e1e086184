"""Evaluate a model or a run on benchmarks: `python -m experiments.evaluate
--model=HF_DIR_or_RUN_DIR --tasks=NAMES --out=DIR`.

Every task is evaluated by greedy pass@1 (--nogreedy: not) and, with --samples=k, by avg@k and
unbiased pass@k, with 95% intervals. A run directory without --tasks is evaluated on the held-out
splits of its own task, with the settings of its training. DIR holds transcripts (one JSONL file for
each benchmark), manifest.json and, in the end, results.json, table.md, table.csv and table.tex.
Completions are stored as soon as they are graded: the same command goes on where the last one
ended. A prompt longer than the largest bucket is not asked and counts as not answered (too_long).
One process must see all devices.

Exit codes: 0 done; 2 the request cannot be fulfilled, or the devices are out of memory; 5 the disk
is full: make room, and the same command goes on; 130 Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

from absl import flags

from bridge_jax import tasks
from bridge_jax.distributed import platforms
from bridge_jax.evaluation import benchmarks, session, transcripts
from bridge_jax.evaluation import options as evaluation_options
from bridge_jax.evaluation.lazy_pool import LazyPool, needs_pool
from bridge_jax.evaluation.model import EvalModel
from bridge_jax.evaluation.options import MAX_NEW, PROMPTS, Options
from bridge_jax.filesystem import files, hf_folder
from bridge_jax.training import interrupt, reopen
from experiments import INTERRUPTED
from experiments.cli import (
    define_path,
    fail,
    fail_by,
    log_to_stderr,
    prepare_memory,
    run_command,
    use_compilation_cache,
)

logger = logging.getLogger(__name__)
PUBLISHED = Path(__file__).parent / "paper" / "published.json"
KEPT = "every completion that was graded is on disk, and the same command goes on from there"
EXAMPLE = "python -m experiments.evaluate --model=runs/one --out=runs/one/eval"


def evaluate_model(path: str, out: str, options: Options, devices=None) -> dict:
    """Evaluate a model; the content of results.json. ValueError and OSError tell the way out."""
    evaluation_options.check(options)
    with LazyPool() as pool:
        if needs_pool(options.tasks or own_task(path)):
            # before anything touches the devices
            pool.start()
        platforms.devices()
        opened = reopen.open_model(path, own_task=not options.tasks)
        resolved = resolve(options, opened)
        made = benchmarks.make_tasks(resolved) if options.tasks else opened.own_tasks
        chosen = benchmarks.read(made, resolved, opened.tokenizer)
        describe(chosen, benchmarks.manifest(resolved, opened, chosen), resolved)
        mesh = session.make_mesh(opened, resolved, devices)
        with transcripts.folder_lock(out):
            report = session.evaluate_benchmarks(opened, chosen, resolved, out, pool, mesh)
            published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
            print(session.write_report(out, report, published), flush=True)
    return report


def own_task(path: str) -> tuple[str, ...]:
    """Name of the task that a run was trained on; ValueError if the path is no run directory."""
    config = reopen.recorded_config(path)
    if not config:
        if not Path(path).exists() and hf_folder.looks_local(path):
            raise ValueError(hf_folder.absent(path))
        raise ValueError(
            f"--tasks is empty and --model={path} is no run directory, which would have a task of "
            f"its own; give --tasks=NAME,NAME out of {', '.join(tasks.names())}"
        )
    return (config["task"]["name"],)


def resolve(options: Options, opened: EvalModel) -> Options:
    """The options with nothing left out; prints them."""
    positions, defaults = opened.cfg.max_positions, opened.defaults
    resolved = evaluation_options.resolve_defaults(options, defaults, positions)
    if note := evaluation_options.clipping_note(options, resolved, defaults, positions):
        print(note, flush=True)
    if note := evaluation_options.own_benchmark_note(options, resolved):
        print(note, flush=True)
    print(
        f"{opened.label}: {opened.cfg.family}, {resolved.dtype}; buckets {resolved.buckets}, "
        f"at most {resolved.max_new} new tokens",
        flush=True,
    )
    return resolved


def describe(chosen: list[benchmarks.Benchmark], manifest: dict, options: Options) -> None:
    """Print a line about each benchmark, and about prompts that do not fit."""
    for benchmark in chosen:
        if benchmark.too_long:
            print(
                f"{benchmark.name}: {benchmark.too_long} of {len(benchmark.problems)} prompts are "
                f"longer than {options.buckets[-1]} tokens: not asked, counted as not answered "
                "(too_long); raise --buckets to ask them",
                flush=True,
            )
    for benchmark in chosen:
        group = manifest[f"task {benchmark.name}"]
        print(
            f"{benchmark.name}: {len(benchmark.problems)} problems, data {group['data']}, "
            f"prompt template {group['template']}",
            flush=True,
        )


def define_flags() -> None:
    """The flags of this command."""
    default = Options()
    define_path(
        "model", None, "an HF folder, a hub name, a run directory or a PEFT folder", required=True
    )
    define_path(
        "out",
        None,
        "the folder of transcripts and tables; an evaluation in it goes on",
        required=True,
    )
    flags.DEFINE_list(
        "tasks",
        [],
        "names of tasks, and custom:FILE for a benchmark of your own (JSONL, parquet, a folder or "
        "a hub name); empty: the task of the run directory",
    )
    flags.DEFINE_string(
        "columns",
        "",
        "of custom:FILE: problem:COLUMN,answer:COLUMN; empty: those of a run "
        "of the task custom, else the usual names",
    )
    flags.DEFINE_string(
        "reward",
        "",
        "of custom:FILE: math, exact, choice, regex, knights_knaves or MODULE:FUNCTION; empty: "
        "with --pattern and --instruction as in the training of a run of the task custom, else "
        "math",
    )
    flags.DEFINE_string("pattern", "", "of custom:FILE: one group that finds the answer")
    flags.DEFINE_string(
        "instruction", "", "of custom:FILE, behind the question; empty: by the reward; none: none"
    )
    define_path("data_dir", "", "the folder with the tasks' JSONL files; empty: from the hub")
    flags.DEFINE_bool("greedy", default.greedy, "greedy pass@1")
    flags.DEFINE_integer(
        "samples", default.samples, "samples of each problem, from 2 on; avg@k and pass@k"
    )
    flags.DEFINE_float("temperature", default.temperature, "of the samples")
    flags.DEFINE_integer(
        "max_new", 0, f"most new tokens; 0: {MAX_NEW}, or what the model has room for"
    )
    flags.DEFINE_integer("limit", 0, "first problems of each split; 0: all")
    flags.DEFINE_integer(
        "rows",
        0,
        "completions generated at once, as many on every device; 0: as many as fit into free "
        "memory, at most 64 on a CPU",
    )
    flags.DEFINE_integer("seed", default.seed, "of the samples")
    flags.DEFINE_list(
        "buckets", [], "prompt lengths that programs are compiled for, rising; empty: powers of two"
    )
    flags.DEFINE_string(
        "dtype",
        "",
        "float32 or bfloat16; empty: that of the run, else float32 on a CPU, bfloat16 elsewhere",
    )
    flags.DEFINE_enum(
        "prompt",
        default.prompt,
        PROMPTS,
        "boxed: through the model's chat template; plain: running text, for "
        "base models; user: as boxed, without a system message. Empty: as in the run's training, "
        "else boxed",
    )
    flags.DEFINE_multi_string(
        "stop",
        [],
        "a text at which a completion is cut when it is read, \\n for a newline; may be given "
        "several "
        "times. It is added to those of the task (--prompt=plain: the mark of a next question); "
        "empty: as in the run's training",
    )
    flags.DEFINE_bool("task_stop", default.task_stop, "whether the task's own stop strings apply")
    flags.DEFINE_integer(
        "decode_tensor",
        default.decode_tensor,
        "devices that share one copy of the weights; the rows are split over the others",
    )


def read_flags() -> Options:
    """The flags as Options; ValueError for buckets that are no numbers."""
    given = {field.name: getattr(flags.FLAGS, field.name) for field in dataclasses.fields(Options)}
    try:
        buckets = tuple(int(text) for text in given["buckets"])
    except ValueError:
        raise ValueError(
            f"--buckets={','.join(given['buckets'])}; allowed: whole numbers, such as 128,256"
        ) from None
    stop = tuple(text.replace("\\n", "\n") for text in given["stop"])
    names = tuple(name for name in given["tasks"] if name)
    return Options(**given | {"buckets": buckets, "tasks": names, "stop": stop})


def main(argv: list[str]) -> None:
    """Evaluate, and turn errors into one line and exit code 2."""
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}; tasks are given as --tasks=NAME,NAME")
    log_to_stderr()
    use_compilation_cache()
    prepare_memory()
    try:
        with interrupt.acknowledge_interrupts(
            "ending when the devices are done with these tokens", KEPT
        ):
            evaluate_model(flags.FLAGS.model, flags.FLAGS.out, read_flags())
    except KeyboardInterrupt:
        fail(f"stopped; {KEPT}", code=INTERRUPTED)
    except (ValueError, OSError, RuntimeError) as error:
        # RuntimeError: of the grader's self-test, or of the devices
        logger.debug("where it came from", exc_info=True)
        if "RESOURCE_EXHAUSTED" in str(error) and not files.is_full(error):
            fail(
                "the devices have too little memory; lower --rows or --max_new, or raise "
                f"--decode_tensor ({error})"
            )
        fail_by(error)


if __name__ == "__main__":
    define_flags()
    run_command(main, EXAMPLE)
