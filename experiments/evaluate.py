"""Evaluate: `python -m experiments.evaluate --model=HF_DIR_or_RUN_DIR --tasks=math500,aime24 [--samples=8] --out=DIR`.

Greedy pass@1 of every task (--nogreedy: not), and with --samples=k avg@k and unbiased pass@k, with 95% intervals; a run
directory without --tasks is judged by its own task's held-out splits, with the settings of its training. Whatever was
generated is in DIR at once: the same command goes on where the last one ended. DIR holds transcripts (one JSONL file per
benchmark), manifest.json, and in the end results.json, table.md, table.csv and table.tex. A prompt over the largest
bucket is never asked: it counts as not answered (too_long). One process must see all devices.
Exit codes: 0 done, 2 what was asked for cannot be done, or the memory is full, 5 the disk is full: make room, and the same
command goes on; 130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from bridge_jax.filesystem import files, textfile
from experiments import INTERRUPTED
from experiments.cli import (
    define_path,
    fail,
    fail_by,
    keep_freed_memory,
    log_to_stderr,
    run_command,
    use_compilation_cache,
)

logger = logging.getLogger(__name__)
PUBLISHED = Path(__file__).parent / "paper" / "published.json"
MAX_NEW, BUCKETS = 5000, (64, 128, 256, 512, 1024, 2048)
PROMPTS = ("", "boxed", "plain", "user")
UNGRADED = 0.05  # share of timeouts and grader errors that is warned about


@dataclasses.dataclass(frozen=True)
class Asked:
    """The flags. What is empty or 0 is filled in by `settle`."""

    tasks: tuple[str, ...] = ()
    data_dir: str = ""
    greedy: bool = True
    samples: int = 1
    temperature: float = 0.7  # of the samples
    max_new: int = 0
    limit: int = 0  # problems of each split; 0: all
    rows: int = 0  # completions generated at once
    seed: int = 0
    buckets: tuple[int, ...] = ()
    dtype: str = ""
    prompt: str = ""
    stop: tuple[str, ...] = ()  # beside those of the tasks
    task_stop: bool = True
    decode_tensor: int = (
        1  # devices that share a copy of the weights and its heads; rows lie over the others
    )

    @property
    def sampled(self) -> int:
        """Samples of each problem beside the greedy completion."""
        return self.samples if self.samples > 1 or not self.greedy else 0


class Model(NamedTuple):
    """A policy that can be evaluated."""

    label: str
    cfg: Any  # layers.Config
    tokenizer: Any
    load: Callable  # (mesh, dtype) -> (phi on the mesh, what to add to the label)
    cache_dtype: str = ""  # "": the compute dtype
    settings: Any = None  # of a run directory
    task: Any = None  # of a run directory, as it was in training


class Benchmark(NamedTuple):
    """One split of one task."""

    name: str
    task: Any
    problems: tuple  # all that count
    data: str  # fingerprint of the whole split, whatever the limit
    prompts: Any  # data.Prompts of those that can be asked


def evaluate_model(model: str, out: str, asked: Asked, devices=None) -> dict:
    """Everything from flags to tables; the content of results.json. ValueError and OSError say what the user can do."""
    check(asked)
    names = asked.tasks or own_task(model)
    with Grader() as grader, contextlib.ExitStack() as held:
        if needs_pool(names):
            grader.start()  # before anything touches the devices
        from bridge_jax.config import schema
        from bridge_jax.distributed import platforms, sharding
        from bridge_jax.evaluation import results, transcripts
        from bridge_jax.rundir import checkpoint
        from bridge_jax.training import settings

        platforms.devices()
        given = open_model(model)
        asked = settle(asked, given)
        print(
            f"{given.label}: {given.cfg.family}, {asked.dtype}; buckets {asked.buckets}, at most {asked.max_new} new tokens",
            flush=True,
        )
        benchmarks = read_tasks(asked, given)
        made = manifest(asked, given, benchmarks)
        for benchmark in benchmarks:
            told = made[f"task {benchmark.name}"]
            print(
                f"{benchmark.name}: {len(benchmark.problems)} problems, data {told['data']}, prompt template "
                f"{told['template']}",
                flush=True,
            )
        sharding.check_heads(
            "--decode_tensor", asked.decode_tensor, given.cfg.heads, given.cfg.kv_heads
        )
        mesh = sharding.make_decode_mesh(
            sharding.MeshConfig(decode_tensor=asked.decode_tensor), devices
        )
        held.enter_context(transcripts.claimed(out))
        phi, at_step = given.load(mesh, settings.dtype_of("--dtype", asked.dtype))
        made["model"]["weights"] = schema.fingerprint(
            checkpoint.checksums(phi)
        )  # of the numbers, wherever they came from
        folder = transcripts.open_folder(out, made)
        parts = {}
        for benchmark in benchmarks:
            store = transcripts.Transcripts(folder / f"{benchmark.name.replace('/', '.')}.jsonl")
            for kind, M in (("greedy", 1), ("sampled", asked.sampled)):
                if M if kind == "sampled" else asked.greedy:
                    complete(kind, M, asked, given, benchmark, phi, mesh, store, grader)
            parts[benchmark.name] = summary(asked, benchmark, store.rows)
        report = {
            "model": given.label + at_step,
            "settings": dataclasses.asdict(asked),
            "devices": mesh.size,
            "benchmarks": parts,
        }
        texts = results.tables(report, json.loads(PUBLISHED.read_text(encoding="utf-8")))
        for name, text in texts.items():
            files.replace(folder / name, text)
        print(texts["table.md"], flush=True)
    return report


def check(asked: Asked) -> None:
    """ValueError for numbers that are invalid."""
    for key, least in (
        ("samples", 1),
        ("max_new", 0),
        ("limit", 0),
        ("rows", 0),
        ("seed", 0),
        ("decode_tensor", 1),
    ):
        if getattr(asked, key) < least:
            raise ValueError(
                f"--{key}={getattr(asked, key)}; allowed: a whole number of at least {least}"
            )
    if asked.sampled and not asked.temperature > 0:
        raise ValueError(
            f"--temperature={asked.temperature} would make all samples of a problem equal; allowed: above 0. "
            "The greedy completion is made without --samples"
        )
    if asked.prompt not in PROMPTS:
        raise ValueError(f"--prompt={asked.prompt!r}; allowed: {', '.join(filter(None, PROMPTS))}")
    if "" in asked.stop:
        raise ValueError("--stop= is empty, which stands everywhere; leave the flag out")
    given = [f"--prompt={asked.prompt}"] * bool(asked.prompt)
    given += [f"--stop={text!r}" for text in asked.stop] + ["--notask_stop"] * (not asked.task_stop)
    if given and not asked.tasks:
        raise ValueError(
            f"{given[0]} without --tasks: a run is asked its own task as it was in training"
        )


# ---- grading


class Grader:
    """A grading.pool.Pool that is made, and checked, when the first claim comes, or by `start`."""

    def __init__(self):
        self.pool = None

    def start(self) -> None:
        """Worker processes, which must pass the self-test."""
        from bridge_jax.grading import pool, selftest

        self.pool = pool.Pool()
        selftest.check(self.pool)

    def grade(self, claims: list) -> list:
        """One Outcome for each claim."""
        if self.pool is None:
            self.start()
        return self.pool.grade(claims)

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *error) -> None:
        if self.pool is not None:
            self.pool.close()


def needs_pool(names: tuple[str, ...]) -> bool:
    """Whether some of the tasks say that their compare makes DeferredComparisons (DEFERS_COMPARISONS = True in the task's file)."""
    from bridge_jax import tasks

    # every name is looked up, so that an unknown one is told at once
    loaded = [tasks.load(name) for name in names]
    return any(getattr(task, "DEFERS_COMPARISONS", False) for task in loaded)


# ---- models


def run_config(path: str) -> dict | None:
    """The config of a run directory; None where the path is something else."""
    try:
        text = textfile.read(Path(path).expanduser() / "config.json")
    except OSError:
        return None
    try:
        record = json.loads(text)
    except ValueError:
        return None
    config = (
        record.get("config") if isinstance(record, dict) and "model_type" not in record else None
    )
    return config if isinstance(config, dict) else None


def own_task(model: str) -> tuple[str, ...]:
    """Name of the task that the run was trained on."""
    config = run_config(model)
    if config is None:
        from bridge_jax import tasks

        raise ValueError(
            f"--tasks is empty and --model={model} is no run directory, which would have a task of its own; "
            f"give --tasks=NAME,NAME out of {', '.join(tasks.names())}"
        )
    return (config["task"]["name"],)


def open_model(path: str) -> Model:
    """A run directory or an HF folder (or hub name); no weights are read yet."""
    return open_folder(path) if run_config(path) is None else open_run(path)


def open_folder(path: str) -> Model:
    """The model of an HF folder or hub name."""
    from bridge_jax.data import tokenizers
    from bridge_jax.distributed import sharding
    from bridge_jax.filesystem import hf_folder
    from bridge_jax.models import params

    folder = hf_folder.locate(path)
    cfg, tokenizer = (
        params.read_config(hf_folder.hf_json(folder)),
        tokenizers.HFTokenizer(str(folder)),
    )
    tokenizers.check_vocabulary(tokenizer, cfg.vocab)

    def load(mesh, dtype):
        layout = sharding.of_tree(mesh, params.logical_axes(cfg), params.abstract(cfg))
        return params.load(cfg, folder, layout, dtype), ""

    return Model(Path(path).name, cfg, tokenizer, load)


def open_run(path: str) -> Model:
    """The policy of a run's newest checkpoint, by default in the compute dtype of its training."""
    import jax

    from bridge_jax.distributed import sharding
    from bridge_jax.models import params
    from bridge_jax.training import programs
    from experiments import export

    # in fp32: cast to `dtype` behind the sum, merge gives the bits of training
    setup, data = export.rebuild(path)
    s, dtype_of_training = setup.settings, run_config(path)["model"]["dtype"]
    model = dataclasses.replace(s.model, dtype=dtype_of_training)
    setup = setup._replace(settings=s._replace(model=model))

    def load(mesh, dtype):
        parts, step = export.restore(setup, path)
        layout = sharding.of_tree(mesh, params.logical_axes(setup.cfg), params.abstract(setup.cfg))
        merge = lambda parts: jax.tree.map(
            lambda x: x.astype(dtype), setup.method.policy(parts, "theta")
        )
        phi = jax.jit(merge, compiler_options=programs.compiler_options())(
            parts.replace(theta_hat=None)
        )
        return jax.device_put(phi, layout), f", step {step}"

    return Model(
        Path(path).name,
        setup.cfg,
        data.tokenizer,
        load,
        s.rollout.cache_dtype,
        setup.settings,
        data.task,
    )


def settle(asked: Asked, model: Model) -> Asked:
    """The flags with nothing left open; says what was clipped. A run on its own task is judged as in its training."""
    import jax

    own = model.settings if model.settings and not asked.tasks else None
    positions = model.cfg.max_positions
    usual = tuple(b for b in BUCKETS if b <= positions // 2) or (max(1, positions // 2),)
    buckets = asked.buckets or (own.data.buckets if own else usual)
    room = positions - max(buckets)
    max_new = asked.max_new or (own.rollout.max_new if own else min(MAX_NEW, room))
    if max_new > room or room < 1:
        raise ValueError(
            f"--max_new={max_new} behind prompts of up to {max(buckets)} tokens (--buckets) makes "
            f"{max(buckets) + max_new} positions, the model has {positions}; lower one of the two"
        )
    if not asked.max_new and not own and max_new < MAX_NEW:
        print(
            f"--max_new={max_new}: {MAX_NEW} is usual, but the model has {positions} positions, {max(buckets)} of them kept "
            "for the prompt",
            flush=True,
        )
    native = (
        model.settings.model.dtype
        if model.settings
        else "float32"
        if jax.default_backend() == "cpu"
        else "bfloat16"
    )
    limit = asked.limit or (own.eval.limit if own else 0)
    prompt = asked.prompt or getattr(
        model.settings.task if model.settings else None, "prompt", "boxed"
    )
    trained = model.settings.rollout if model.settings else None
    return dataclasses.replace(
        asked,
        prompt=prompt,
        stop=asked.stop or (trained.stop if trained else ()),
        task_stop=asked.task_stop and (trained is None or trained.task_stop),
        buckets=buckets,
        max_new=max_new,
        dtype=asked.dtype or native,
        limit=limit,
        rows=asked.rows or (own.eval.rows if own else 16),
    )


# ---- tasks


def read_tasks(asked: Asked, model: Model) -> list[Benchmark]:
    """Every split of every task, tokenised; a task's only split has the task's name."""
    from bridge_jax import tasks
    from bridge_jax.config import schema
    from bridge_jax.data import batches

    batches.check_buckets(asked.buckets)
    found = []
    if asked.tasks:
        made = []
        for name in dict.fromkeys(asked.tasks):
            Config = tasks.load(name).Config
            known = {field.name for field in dataclasses.fields(Config)}
            if asked.prompt != "boxed" and "prompt" not in known:
                raise ValueError(
                    f"--prompt={asked.prompt}: task {name!r} has one way to ask only; leave the flag out"
                )
            given = {"data_dir": asked.data_dir, "prompt": asked.prompt}
            task = tasks.load(name).make(
                Config(**{key: given[key] for key in given if key in known})
            )
            made.append(tasks.with_stop(task, asked.stop, asked.task_stop))
    else:
        made = [model.task]
    for task in made:
        for split, problems in task.splits.items():
            name = task.name if len(task.splits) == 1 else f"{task.name}/{split}"
            rows = [
                [p.id, p.question, p.answer, list(p.rule)] for p in tasks.check_rows(problems, name)
            ]
            problems = problems[: asked.limit or None]
            prompts, dropped = batches.encode_prompts(
                model.tokenizer, problems, task.messages, asked.buckets
            )
            if dropped:
                print(
                    f"{name}: {len(dropped)} of {len(problems)} prompts are longer than {asked.buckets[-1]} tokens: not "
                    "asked, counted as not answered (too_long); raise --buckets to ask them",
                    flush=True,
                )
            found.append(
                Benchmark(name, task, problems, schema.fingerprint({"rows": rows}), prompts)
            )
    return found


def manifest(asked: Asked, model: Model, benchmarks: list[Benchmark]) -> dict[str, dict]:
    """What must be the same for rows to stand in one table, but the weights; a group for each thing that can be added."""
    from bridge_jax.config import schema
    from bridge_jax.data import batches

    numbers = {key: repr(value) for key, value in dataclasses.asdict(model.cfg).items()}
    groups = {
        "model": {"config": schema.fingerprint(numbers)},
        "generation": {key: getattr(asked, key) for key in ("dtype", "max_new")},
    }
    if asked.sampled:
        groups["sampled"] = {
            "samples": asked.sampled,
            "temperature": asked.temperature,
            "seed": asked.seed,
        }
    for (
        benchmark
    ) in benchmarks:  # --limit and --rows are free: a larger limit adds problems and changes none
        template = batches.template_hash(model.tokenizer, benchmark.task.messages)
        groups[f"task {benchmark.name}"] = {"template": template, "data": benchmark.data}
        if benchmark.task.stop:
            groups[f"task {benchmark.name}"]["stop"] = list(benchmark.task.stop)
    return groups


# ---- generation


def complete(
    kind: str, M: int, asked: Asked, model: Model, benchmark: Benchmark, phi, mesh, store, grader
) -> None:
    """Generate and grade what the store lacks: M completions of each prompt. Each batch is on disk before the next is graded.

    A problem some of whose samples are missing is sampled again as a whole; only the missing ones are added.
    """
    from bridge_jax.data import batches
    from bridge_jax.evaluation import evaluate, results
    from bridge_jax.training import programs, settings

    prompts = benchmark.prompts
    samples = [results.GREEDY] if kind == "greedy" else list(range(M))
    lacking = [
        i
        for i, problem in enumerate(prompts.problems)
        if any((problem.id, sample) not in store.rows for sample in samples)
    ]
    if not lacking:
        return
    pick = lambda rows: tuple(rows[i] for i in lacking)
    prompts, began, done = (
        batches.Prompts(pick(prompts.problems), pick(prompts.tokens)),
        time.monotonic(),
        0,
    )
    spread = mesh.shape["data"] * mesh.shape["fsdp"]
    P = -(-max(1, asked.rows // M) // spread) * spread  # prompts at once, as many on every device
    cache_dtype = settings.dtype_of("--dtype", model.cache_dtype or asked.dtype)
    generate = evaluate.sampler(
        model.cfg,
        phi,
        mesh,
        model.tokenizer.eos_ids,
        M,
        asked.max_new,
        cache_dtype,
        asked.seed,
        asked.temperature if kind == "sampled" else 0.0,
        programs.compiler_options(emitters=True),
    )
    for rows in evaluate.transcribe(
        generate, benchmark.task, model.tokenizer, prompts, P, asked.buckets, M, grader
    ):
        store.append(
            [row | {"sample": results.GREEDY} for row in rows] if kind == "greedy" else rows
        )
        done += len(rows) // M
        logger.info(
            "%s, %s: %d of %d problems, %.0f s",
            benchmark.name,
            kind,
            done,
            len(lacking),
            time.monotonic() - began,
        )


# ---- what came of it


def summary(asked: Asked, benchmark: Benchmark, rows: dict) -> dict:
    """Scores and facts of one benchmark, for results.json."""
    from bridge_jax.evaluation import results

    asked_ids, ids = (
        {problem.id for problem in benchmark.prompts.problems},
        [problem.id for problem in benchmark.problems],
    )
    wanted = [results.GREEDY] * asked.greedy + list(range(asked.sampled))
    kept = [rows[id, sample] for id in ids if id in asked_ids for sample in wanted]
    too_long, facts = len(ids) - len(asked_ids), {}
    for kind, per_problem in (("greedy", int(asked.greedy)), ("sampled", asked.sampled)):
        if per_problem:
            own = [row for row in kept if (row["sample"] == results.GREEDY) == (kind == "greedy")]
            facts[kind] = results.facts(own, too_long, per_problem)
            shares = facts[kind]["outcomes"]["strict"]
            if (lost := shares["timeout"] + shares["grader_error"]) > UNGRADED:
                logger.warning(
                    "%s, %s: the grader gave up on %.1f%% of the rows; the scores below are too low by up to that "
                    "much. Look for timeout and grader_error in the transcripts",
                    benchmark.name,
                    kind,
                    100 * lost,
                )
    return {
        "n": len(ids),
        "too_long": too_long,
        "facts": facts,
        "scores": results.scores(ids, kept, asked.sampled, asked.greedy),
    }


def define_flags() -> None:
    """The flags of this command."""
    default = Asked()
    define_path("model", None, "an HF folder, a hub name, or a run directory", required=True)
    define_path(
        "out",
        None,
        "the folder of transcripts and tables; one that was begun is gone on with",
        required=True,
    )
    flags.DEFINE_list("tasks", [], "names of tasks; empty: the task of the run directory")
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
        "completions generated at once, rounded to whole prompts, as many on every device; 0: 16",
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
        "base models; user: as boxed, without a system message. Empty: as in the run's training, else boxed",
    )
    flags.DEFINE_multi_string(
        "stop",
        [],
        "a text at which a completion is cut when it is read, \\n for a newline; may be given several times. It comes "
        "beside those of the task (--prompt=plain: the mark of a next question); empty: as in the run's training",
    )
    flags.DEFINE_bool("task_stop", default.task_stop, "whether the task's own stop strings apply")
    flags.DEFINE_integer(
        "decode_tensor",
        default.decode_tensor,
        "devices that share a copy of the weights, the others have rows",
    )


def read_flags() -> Asked:
    """The flags as Asked; ValueError for buckets that are no numbers."""
    given = {field.name: getattr(flags.FLAGS, field.name) for field in dataclasses.fields(Asked)}
    try:
        buckets = tuple(int(text) for text in given["buckets"])
    except ValueError:
        raise ValueError(
            f"--buckets={','.join(given['buckets'])}; allowed: whole numbers, such as 128,256"
        ) from None
    stop = tuple(text.replace("\\n", "\n") for text in given["stop"])
    names = tuple(name for name in given["tasks"] if name)
    return Asked(**given | {"buckets": buckets, "tasks": names, "stop": stop})


def main(argv: list[str]) -> None:
    """Evaluate, and turn errors into one line and exit code 2."""
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}; tasks are given as --tasks=NAME,NAME")
    log_to_stderr()
    use_compilation_cache()
    keep_freed_memory()
    kept = "every batch that was graded is on disk, and the same command goes on from there"
    try:
        from bridge_jax.training import interrupt

        with interrupt.acknowledge_interrupts(
            "ending when the devices are done with the batch", kept
        ):
            evaluate_model(flags.FLAGS.model, flags.FLAGS.out, read_flags())
    except KeyboardInterrupt:
        fail(f"stopped; {kept}", code=INTERRUPTED)
    except (
        ValueError,
        OSError,
        RuntimeError,
    ) as error:  # RuntimeError: of the grader's self-test, or of the devices
        logger.debug("where it came from", exc_info=True)
        if "RESOURCE_EXHAUSTED" in str(error) and not files.is_full(error):
            fail(
                f"the devices have too little memory; lower --rows or --max_new, or raise --decode_tensor ({error})"
            )
        fail_by(error)


if __name__ == "__main__":
    define_flags()
    run_command(main)
