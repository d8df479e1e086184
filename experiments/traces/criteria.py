"""What the tasks contribute to the choice of demonstrations: graders, problems, benchmarks."""

from __future__ import annotations

import logging

from bridge_jax import tasks
from bridge_jax.data.demo_selection import Grader, tagged_answer
from bridge_jax.data.traces import text_key
from bridge_jax.grading.extract import last_boxed
from bridge_jax.types import Problem

logger = logging.getLogger(__name__)


def grader(name: str) -> Grader | None:
    """The grader of --grader: math, the `compare` of a task's file, or none."""
    if name == "none":
        return None
    if name == "math":
        return Grader(last_boxed, tasks.compare_by_rule)
    try:
        compare = getattr(tasks.load(name), "compare", None)
    except ValueError as error:
        raise ValueError(f"--grader={name}: {error}") from None
    if compare is None:
        raise ValueError(
            f"--grader={name}: the task grades mathematics; allowed: math, none, or a task with a "
            "compare of its own, such as knights_knaves"
        )
    return Grader(tagged_answer, compare)


def problems_to_match(name: str, data_dir: str) -> dict[str, Problem]:
    """text_key -> problem of the task's training problems; ValueError where there are none."""
    task = make_task(name, data_dir)
    if not task.train:
        every = [one for one in tasks.names() if issubclass(tasks.load(one).Config, tasks.Training)]
        raise ValueError(
            f"--match={name}: the task has no training problems; allowed: {', '.join(every)}"
        )
    return {text_key(problem.question): problem for problem in task.train}


def make_task(name: str, data_dir: str):
    """The task by its defaults, its rows from data_dir where that is given."""
    module = tasks.load(name)
    if not issubclass(module.Config, tasks.Benchmark):
        return module.make(module.Config())
    return module.make(module.Config(data_dir=data_dir, allow_changed_data=True))


def benchmarks(names: str, data_dir: str) -> tuple[dict[str, list[Problem]], list[str]]:
    """(held-out problems by task, benchmarks that could not be loaded).

    names: tasks with commas between them; "all": every benchmark that can be had; "none".
    ValueError for a named task that cannot be had.
    """
    if names == "none":
        return {}, []
    every = [name for name in tasks.names() if tasks.load(name).Config is tasks.Benchmark]
    found, missing, offline = {}, [], False
    for name in every if names == "all" else names.split(","):
        try:
            if offline:
                raise ValueError("the hub cannot be reached")
            splits = make_task(name, data_dir).splits.values()
            found[name] = [problem for split in splits for problem in split]
        except ValueError as error:
            if names != "all":
                raise ValueError(f"--decontaminate={names}: {error}") from error
            # each further attempt would wait for the hub again
            offline = offline or isinstance(error.__cause__, ConnectionError)
            missing.append(name)
            logger.info("%s: %s", name, error)
    if missing:
        logger.warning(
            "not decontaminated against %s, which could not be loaded; --data_dir=DIR reads "
            "DIR/benchmarks/NAME.jsonl",
            ", ".join(missing),
        )
    return found, missing
