"""Try a model on a few prompts: `python -m experiments.sample --model=DIR --prompt="..."`.

Prints --n completions of each prompt, each with its number of tokens, whether it ended by itself,
and the answer in it. --answer=TEXT tells whether that is right. --model is a run directory, a
Hugging Face folder or hub name, or an adapter of PEFT; --model=BEFORE,AFTER shows two (or more)
under each prompt, with the same random keys. --prompt and --answer can be given several times;
--prompts=FILE holds further ones: JSONL of "prompt" (or "problem", "question") and perhaps
"answer", or a text with a prompt in each line.

How a prompt is asked, --template:
    raw     as it stands, without a chat template
    chat    as a user's message, through the model's chat template
    boxed, plain, user    with the instruction to box the answer, as in experiments.evaluate
A run directory asks and reads as its own task does, and so does a model beside it; another one by
"chat" and the last box. --task=NAME asks and reads as that task, --template only asks.

Exit codes: 0 done; 2 it cannot be done; 130 Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from bridge_jax import tasks
from bridge_jax.evaluation import benchmarks, completions, session
from bridge_jax.evaluation import options as evaluation_options
from bridge_jax.evaluation.completions import TEMPLATES, Completion
from bridge_jax.evaluation.generate import Generator
from bridge_jax.evaluation.lazy_pool import LazyPool
from bridge_jax.evaluation.model import EvalModel
from bridge_jax.evaluation.options import Options
from bridge_jax.filesystem import files, textfile
from bridge_jax.models.precision import dtype_of
from bridge_jax.training import reopen
from bridge_jax.types import Problem, Task
from experiments.cli import (
    check_output,
    define_path,
    fail,
    fail_by,
    log_to_stderr,
    prepare_memory,
    run_command,
    use_compilation_cache,
)

MAX_NEW = 512
PROMPT_KEYS = ("prompt", "problem", "question")
EXAMPLE = 'python -m experiments.sample --model=runs/one --prompt="12+34+56="'


class Request(NamedTuple):
    """What is asked for, whatever the model."""

    problems: tuple[Problem, ...]
    n: int = 4
    temperature: float = 1.0
    max_new: int = 0  # 0: MAX_NEW, or what the model has room for
    template: str = ""
    task: str = ""
    data_dir: str = ""
    stop: tuple[str, ...] = ()
    dtype: str = ""
    seed: int = 0


class Shown(NamedTuple):
    """The completions of one model."""

    name: str
    rows: list[list[Completion]]  # of each prompt


def check(request: Request) -> None:
    """ValueError for a request that is invalid whatever the model."""
    if not request.problems:
        raise ValueError('there is no prompt; give --prompt="..." or --prompts=FILE')
    if request.n < 1 or request.max_new < 0:
        raise ValueError(
            f"--n={request.n}, --max_new={request.max_new}; allowed: at least 1, and at least 0"
        )
    if request.temperature < 0:
        raise ValueError(
            f"--temperature={request.temperature}; allowed: above 0, or 0 for the most probable "
            "tokens"
        )
    if not request.temperature and request.n > 1:
        raise ValueError(
            f"--temperature=0 makes all of --n={request.n} completions equal; give --n=1, or a "
            "temperature above 0"
        )
    if request.template and request.template not in TEMPLATES:
        raise ValueError(
            f"--template={request.template!r}; allowed: {', '.join(TEMPLATES)}, or empty"
        )
    if "" in request.stop:
        raise ValueError("--stop= is empty, and every text contains it; leave the flag out")
    if request.task:
        tasks.load(request.task.partition(":")[0])


def problems_of(
    prompts: Sequence[str], answers: Sequence[str], file: str = ""
) -> tuple[Problem, ...]:
    """The prompts of the command line with their answers, and then those of the file."""
    if answers and len(answers) != len(prompts):
        raise ValueError(
            f"{len(answers)} --answer for {len(prompts)} --prompt; give one for each, in the same "
            "order, or none"
        )
    pairs = list(zip(prompts, answers or [""] * len(prompts)))
    pairs += read_prompts(file) if file else []
    if blank := [prompt for prompt, _ in pairs if not prompt.strip()]:
        raise ValueError(f"a prompt is blank ({blank[0]!r}); leave it out")
    return tuple(completions.problem_of(*pair) for pair in pairs)


def read_prompts(path: str) -> list[tuple[str, str]]:
    """(prompt, answer or "") of each line of a file: JSONL, or plain text."""
    if Path(path).suffix not in (".json", ".jsonl"):
        return [(line, "") for line in textfile.read(path).splitlines() if line.strip()]
    found = []
    for number, row in files.rows(path):
        texts = [row[key] for key in PROMPT_KEYS if key in row] if isinstance(row, dict) else []
        if not texts or not isinstance(texts[0], str):
            has = ", ".join(row) if isinstance(row, dict) else repr(row)[:40]
            raise ValueError(
                f"{path}: line {number} has no text {' or '.join(PROMPT_KEYS)}; it has: {has}"
            )
        answer = row.get("answer")
        found.append((texts[0], "" if answer is None else str(answer)))
    return found


def task_of(request: Request, opened: EvalModel) -> Task:
    """How the model is asked and its completions are read; --template changes the first alone."""
    template = request.template
    if request.task:
        name = request.task.partition(":")[0]
        known = {field.name for field in dataclasses.fields(tasks.load(name).Config)}
        prompt = template if template in tasks.PROMPTS else opened.defaults.prompt
        options = Options(
            tasks=(request.task,),
            data_dir=request.data_dir,
            prompt=prompt if "prompt" in known else "boxed",
            stop=opened.defaults.stop,
            task_stop=opened.defaults.task_stop,
        )
        own = evaluation_options.own_benchmark(options, opened.defaults)
        (task,) = benchmarks.make_tasks(dataclasses.replace(options, **own))
    elif opened.own_tasks:
        task = opened.own_tasks[0]
    else:
        task = completions.free_task(template or "chat")
    if template:
        task = dataclasses.replace(task, messages=TEMPLATES[template])
    return tasks.with_stop(task, request.stop, True)


def resolve(request: Request, opened: EvalModel, bucket: int) -> Options:
    """Options of the sampler; ValueError where prompts and completions do not fit the model."""
    room = opened.cfg.max_positions - bucket
    if request.max_new > room:
        raise ValueError(
            f"--max_new={request.max_new} behind a prompt padded to {bucket} tokens is more than "
            f"the {opened.cfg.max_positions} positions of {opened.label}; allowed: up to {room}"
        )
    options = Options(
        max_new=request.max_new or min(MAX_NEW, room),
        buckets=(bucket,),
        dtype=request.dtype,
        seed=request.seed,
    )
    return evaluation_options.resolve_defaults(options, opened.defaults, opened.cfg.max_positions)


def compare(paths: Sequence[str], request: Request, pool: LazyPool, devices=None) -> list[Shown]:
    """Completions of all models, by the same task as far as they have none of their own.

    A model that is no run is asked and read as the first run beside it.
    """
    models = [reopen.open_model(path, own_task=False) for path in paths]
    run = next((opened for opened in models if opened.own_tasks), None)
    judges = [opened if opened.own_tasks or run is None else run for opened in models]
    return [
        sample(path, opened, task_of(request, judge), request, pool, devices)
        for path, opened, judge in zip(paths, models, judges, strict=True)
    ]


def sample(
    path: str, opened: EvalModel, task: Task, request: Request, pool: LazyPool, devices=None
) -> Shown:
    """Completions of one model; its weights are in memory during this call alone."""
    positions = opened.cfg.max_positions
    prompts = completions.encode(opened.tokenizer, request.problems, task, positions)
    options = resolve(request, opened, completions.bucket_of(prompts, positions))
    mesh = session.make_mesh(opened, options, devices)
    phi, step = opened.load(mesh, dtype_of("--dtype", options.dtype))
    generator = Generator(opened, phi, mesh, options)
    rows = completions.complete(generator, task, prompts, request.n, request.temperature, pool)
    return Shown(f"{path}{step}", rows)


def text_of(problems: Sequence[Problem], models: Sequence[Shown]) -> str:
    """All completions under their prompts, those of several models one after the other."""
    lines = []
    for i, problem in enumerate(problems):
        gold = f"   [answer: {problem.answer}]" if problem.answer else ""
        lines += [f"=== {problem.question}{gold}", ""]
        for model in models:
            rows = model.rows[i]
            lines += [f"--- {model.name}: {summary(rows)}", ""]
            for number, row in enumerate(rows, 1):
                lines += [f"({number}) {caption(row)}", textwrap.indent(row.text, "    "), ""]
    return "\n".join(lines)


def summary(rows: Sequence[Completion]) -> str:
    """Counts over the completions of one prompt."""
    count = len(rows)
    parts = [f"{sum(row.outcome == 'correct' for row in rows)} of {count} right"]
    parts = parts if rows[0].outcome else []
    parts.append(f"{sum(row.ended for row in rows)} of {count} ended")
    return ", ".join([*parts, f"{sum(row.tokens for row in rows) / count:.0f} tokens on average"])


def caption(row: Completion) -> str:
    """The line above a completion."""
    ended = "ended" if row.ended else "cut at --max_new"
    plural = "" if row.tokens == 1 else "s"
    answer = "" if row.answer is None else f"; answer {row.answer}"
    return f"{row.tokens} token{plural}, {ended}{answer}{f': {row.outcome}' if row.outcome else ''}"


def define_flags() -> None:
    """The flags of this command."""
    default = Request(())
    define_path(
        "model",
        None,
        "a run directory, an HF folder, a hub name or a PEFT folder; several with commas",
        required=True,
        several=True,
    )
    flags.DEFINE_multi_string("prompt", [], "a prompt; may be given several times")
    define_path("prompts", "", "a file of further prompts: JSONL, or one in each line")
    flags.DEFINE_multi_string("answer", [], "the right answer, one for each --prompt")
    flags.DEFINE_integer("n", default.n, "completions of each prompt")
    flags.DEFINE_float("temperature", default.temperature, "0: the most probable tokens")
    flags.DEFINE_integer(
        "max_new", default.max_new, f"most new tokens; 0: {MAX_NEW}, or what there is room for"
    )
    flags.DEFINE_string("template", default.template, f"{', '.join(TEMPLATES)}; empty: see above")
    flags.DEFINE_string(
        "task", default.task, "ask and read as this task does, such as math500 or custom:FILE"
    )
    define_path("data_dir", default.data_dir, "the folder with the tasks' JSONL files")
    flags.DEFINE_multi_string(
        "stop", [], "a text at which a completion is cut, \\n for a newline; several times"
    )
    flags.DEFINE_string("dtype", default.dtype, "float32 or bfloat16; empty: as in evaluate")
    flags.DEFINE_integer("seed", default.seed, "of the samples")


def read_flags() -> Request:
    """The flags as a Request."""
    given = flags.FLAGS
    # \n in a prompt may be the beginning of \neq
    problems = problems_of(given.prompt, given.answer, given.prompts)
    names = ("n", "temperature", "max_new", "template", "task", "data_dir", "dtype", "seed")
    stop = tuple(text.replace("\\n", "\n") for text in given.stop)
    return Request(problems, stop=stop, **{name: getattr(given, name) for name in names})


def main(argv: list[str]) -> None:
    """Sample and print, and turn errors into one line and exit code 2."""
    if argv[1:]:
        fail(f'unexpected arguments {argv[1:]}; put a prompt in quotes, --prompt="..."')
    log_to_stderr()
    use_compilation_cache()
    prepare_memory()
    try:
        request = read_flags()
        check(request)
        with LazyPool() as pool:
            paths = [path for path in flags.FLAGS.model.split(",") if path]
            models = compare(paths, request, pool)
        print(text_of(request.problems, models))
    except (ValueError, OSError, RuntimeError) as error:
        fail_by(error)
    check_output()


if __name__ == "__main__":
    define_flags()
    run_command(main, EXAMPLE)
