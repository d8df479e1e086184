"""Benchmarks: every split of every task, tokenised; the manifest of an evaluation of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bridge_jax import tasks
from bridge_jax.config import schema
from bridge_jax.data import batches
from bridge_jax.evaluation.model import EvalModel
from bridge_jax.evaluation.options import OWN_BENCHMARK, Options
from bridge_jax.types import Problem, Task


class Benchmark(NamedTuple):
    """One split of one task. A task's only split has the task's name, others are TASK/SPLIT."""

    name: str
    task: Task
    # all that count
    problems: Sequence[Problem]
    # fingerprint of the whole split, whatever the limit
    data: str
    # of the problems whose prompts fit
    prompts: batches.Prompts

    @property
    def too_long(self) -> int:
        """Problems whose prompts do not fit: they are not asked and count as not answered."""
        return len(self.problems) - len(self.prompts.problems)


def make_tasks(options: Options) -> list[Task]:
    """The tasks named in the options, with stop strings; ValueError for an invalid option."""
    made = []
    for name in dict.fromkeys(options.tasks):
        name, _, file = name.partition(":")
        module = tasks.load(name)
        known = {field.name for field in dataclasses.fields(module.Config)}
        if options.prompt != "boxed" and "prompt" not in known:
            raise ValueError(
                f"--prompt={options.prompt}: task {name!r} has one way to ask only; leave the flag "
                "out"
            )
        if file and "test" not in known:
            raise ValueError(
                f"--tasks={name}:{file}: task {name!r} reads no file of yours; give custom:{file}"
            )
        values = {"data_dir": options.data_dir, "prompt": options.prompt}
        if file:
            own = {key: getattr(options, key) for key in OWN_BENCHMARK}
            values |= {"test": schema.expand_user(file)} | {k: v for k, v in own.items() if v}
        config = module.Config(**{key: values[key] for key in values if key in known})
        made.append(tasks.with_stop(module.make(config), options.stop, options.task_stop))
    named = [task.name for task in made]
    if twice := [name for name in named if named.count(name) > 1]:
        raise ValueError(f"two benchmarks have the name {twice[0]!r}; rename one of the files")
    return made


def read(made: Iterable[Task], options: Options, tokenizer: Any) -> list[Benchmark]:
    """Every split of the tasks, tokenised."""
    found = []
    for task in made:
        for split, problems in task.splits.items():
            name = task.name if len(task.splits) == 1 else f"{task.name}/{split}"
            rows = [
                [p.id, p.question, p.answer, list(p.rule)] for p in tasks.check_rows(problems, name)
            ]
            problems = problems[: options.limit or None]
            prompts, _ = batches.encode_prompts(tokenizer, problems, task.messages, options.buckets)
            data = schema.fingerprint({"rows": rows})
            found.append(Benchmark(name, task, problems, data, prompts))
    return found


def manifest(
    options: Options, model: EvalModel, benchmarks: Sequence[Benchmark]
) -> dict[str, dict[str, Any]]:
    """{group: {key: value}}: what must be equal for rows to be in one table, without the weights.

    A group stands for something that can be added to a folder later, such as a task. --limit and
    --rows are in none of them: a larger limit adds problems and changes no row.
    """
    numbers = {key: repr(value) for key, value in dataclasses.asdict(model.cfg).items()}
    groups: dict[str, dict[str, Any]] = {
        "model": {"config": schema.fingerprint(numbers)},
        "generation": {key: getattr(options, key) for key in ("dtype", "max_new")},
    }
    if options.sampled:
        groups["sampled"] = {
            "samples": options.sampled,
            "temperature": options.temperature,
            "seed": options.seed,
        }
    for benchmark in benchmarks:
        template = batches.template_hash(model.tokenizer, benchmark.task.messages)
        group = {"template": template, "data": benchmark.data}
        if benchmark.task.stop:
            group["stop"] = list(benchmark.task.stop)
        if benchmark.name.startswith("custom_"):
            group |= {key: getattr(options, key) for key in ("reward", "pattern")}
        if benchmark.task.reward_code:
            group["reward_code"] = benchmark.task.reward_code
        groups[f"task {benchmark.name}"] = group
    return groups
