"""Tasks, registered by the names of the files of this folder: one new file is one new task.

A task file has a frozen dataclass `Config`, whose fields are the keys of config.task, and
`make(cfg: Config) -> types.Task`. Optional: ALPHABET, all characters of its questions and
solutions, which data.tokenizer=chars needs; DEFERS_COMPARISONS = True for a task whose `compare`
may return a DeferredComparison, so that a run needs a grading.pool.Pool. This module holds what
tasks share: checks of rows, ids from the text of the question, chat messages, and the construction
of tasks that read data sets (datasets.py).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import NamedTuple

from bridge_jax.config.schema import LocalPath
from bridge_jax.data import datasets, tables
from bridge_jax.data import traces as data_traces
from bridge_jax.data.traces import deduplicate, right_solutions, text_key
from bridge_jax.grading import equivalence
from bridge_jax.grading.extract import last_boxed, lenient_answer
from bridge_jax.grading.outcome import DeferredComparison, Outcome, Rule
from bridge_jax.grading.pool import Pool
from bridge_jax.types import Problem, Task

# appended to the question
INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."


def names() -> tuple[str, ...]:
    """Names of all tasks, sorted: the files of this folder."""
    return tuple(
        sorted(
            module.name
            for module in pkgutil.iter_modules(__path__)
            if not module.name.startswith("_")
        )
    )


def load(name: str) -> ModuleType:
    """The task's module, with its Config and make; ValueError lists the tasks that exist."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"task {name!r} does not exist.{hint} Tasks: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def defaults(name: str) -> dict:
    """The task's settings, groups as dicts, at their defaults."""
    return dataclasses.asdict(load(name).Config())


def question_id(question: str) -> int:
    """31-bit id of a question, a hash of its text: the same on every machine."""
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big") & 0x7FFFFFFF


def check_rows(rows: Iterable[Problem], source: str, demos: bool = False) -> tuple[Problem, ...]:
    """The rows as a tuple; ValueError names the first invalid row (from 0) of `source`.

    A valid row has a question and an answer (with `demos` also a solution) that are not blank, and
    a unique id in [0, 2^31).
    """
    seen: dict[int, int] = {}
    checked = tuple(rows)
    for number, row in enumerate(checked):
        where = f"{source}: row {number} (id {row.id!r})"
        for field in ("question", "answer", "solution")[: 3 if demos else 2]:
            value = getattr(row, field)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(
                    f"{where} has {field} {value!r}; it must be a text that is not blank. "
                    "Remove the row from the data or fill it in"
                )
        if isinstance(row.id, bool) or not isinstance(row.id, int) or not 0 <= row.id < 2**31:
            raise ValueError(
                f"{where}: an id must be an integer in [0, 2^31), such as question_id(question)"
            )
        if row.id in seen:
            raise ValueError(
                f"{where} has the id of row {seen[row.id]}; ids must be unique. Remove one of the "
                "rows"
            )
        seen[row.id] = number
    return checked


def boxed_messages(
    problem: Problem,
    system: str = "",
    shots: tuple[tuple[str, str], ...] = (),
    instruction: str = INSTRUCTION,
) -> list[dict[str, str]]:
    """Chat messages that ask for an answer, by default for a boxed one.

    shots: worked examples (question, solution), given as earlier turns.
    """
    ask = lambda question: {"role": "user", "content": question + instruction}
    messages = [{"role": "system", "content": system}] if system else []
    for question, solution in shots:
        messages += [ask(question), {"role": "assistant", "content": solution}]
    return messages + [ask(problem.question)]


def plain_messages(problem: Problem, instruction: str = INSTRUCTION) -> list[dict[str, str]]:
    """The same request as plain text, for base models; role "text" bypasses the chat template."""
    return [{"role": "text", "content": f"Question: {problem.question}{instruction}\nAnswer:"}]


PROMPTS = {
    "boxed": functools.partial(boxed_messages, system="You are a helpful assistant."),
    "plain": plain_messages,
    "user": boxed_messages,
}
# The mark of a next question: where a base model goes on after its answer with a further question,
# the answer to that one would be graded.
STOPS = {"plain": ("\nQuestion:",)}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Settings of a task for evaluation alone."""

    data_dir: LocalPath = ""  # folder of JSONL files; "": the hub
    # "boxed": the paper's, through the chat template; "plain": plain text, for base models; "user":
    # as "boxed", without a system message, which some templates reject
    prompt: str = "boxed"
    # go on where rows or content are not those declared in the task's file
    allow_changed_data: bool = False


@dataclasses.dataclass(frozen=True)
class Training(Benchmark):
    """Settings of a task to train on."""

    # benchmarks whose problems runs are judged by, the first one foremost
    held_out: tuple[str, ...] = ()
    # JSONL of expert traces {"problem", "solution", "answer"}; "": the data's own solutions
    traces: LocalPath = ""
    # instead of traces, demonstrations whose problems need not be the task's: files or hub names
    # (of the split train, or NAME#SPLIT) with commas between them; FILE:2 is read twice in each
    # epoch
    demos: str = ""
    # go on where more than a fifth of the rows of traces or demos (of task custom: of its files)
    # are unusable
    allow_dropped: bool = False
    train_size: int = 0  # RL prompts, the first ones by id; 0: all
    demo_size: int = 0  # demonstrations; 0: all


def message_renderer(cfg: Benchmark) -> Callable:
    """The function of PROMPTS that cfg.prompt names."""
    if cfg.prompt not in PROMPTS:
        raise ValueError(f"task.prompt={cfg.prompt!r}; allowed: {', '.join(PROMPTS)}")
    return PROMPTS[cfg.prompt]


class Grader(NamedTuple):
    """How a task reads a completion and compares its answer: the fields of types.Task."""

    extract: Callable
    lenient: Callable
    compare: Callable


def with_stop(task: Task, stop: Sequence[str], own: bool) -> Task:
    """The task with these stop strings; own: after its own ones, which otherwise are removed."""
    return dataclasses.replace(task, stop=tuple(dict.fromkeys((*task.stop * own, *stop))))


def compare_by_rule(problem: Problem, answer: str) -> Outcome | DeferredComparison:
    """Mathematical equality under the problem's rule."""
    return equivalence.compare(problem.answer, answer, problem.rule)


# a box, compared mathematically
MATHEMATICS = Grader(last_boxed, lenient_answer, compare_by_rule)


def problem_from_row(row: dict, rule: Rule = Rule(), solution: str = "") -> Problem:
    """A checked row as a Problem, with level 0 where the data has none."""
    level = row.get("level")
    return Problem(
        question_id(row["problem"]),
        row["problem"],
        row["answer"],
        solution,
        level if isinstance(level, int) else 0,
        rule,
    )


def benchmark(
    name: str,
    source: datasets.Source,
    cfg: Benchmark,
    rule: Callable[[dict], Rule] = lambda row: Rule(),
) -> Task:
    """A task for evaluation alone; its only split has the task's name."""
    rows = datasets.read(source, cfg.data_dir, cfg.allow_changed_data)
    split = deduplicate([problem_from_row(row, rule(row)) for row in rows], name)
    return Task(
        name,
        (),
        (),
        {name: split},
        message_renderer(cfg),
        *MATHEMATICS,
        stop=STOPS.get(cfg.prompt, ()),
    )


def training(
    name: str,
    rows: Sequence[dict],
    solution: Callable[[dict], str],
    cfg: Training,
    splits: dict | None = None,
    grader: Grader = MATHEMATICS,
) -> Task:
    """A training task: all rows are prompts, rows with a correct solution are demonstrations.

    cfg.held_out names the benchmarks whose problems are added to `splits`. The first correct
    solution of a problem is its demonstration. ValueError for a solution that is not a text.
    """
    splits = dict(splits or {}) | held_out_splits(name, cfg)
    if not splits:
        raise ValueError(
            "task.held_out is empty, so nothing would judge the run; name a benchmark, such as "
            "'math500'"
        )
    everything = sorted(
        deduplicate([problem_from_row(row) for row in rows], name), key=lambda problem: problem.id
    )
    if cfg.traces and cfg.demos:
        raise ValueError(
            "task.traces and task.demos are both set; give one of them: traces hold solutions of "
            "the task's own problems, demos may hold others"
        )
    right, weights = functools.partial(check_solutions, grader=grader), {}
    if cfg.demos:
        found, weights = own_demos(cfg.demos, right)
    else:
        given = (
            data_traces.read_traces(cfg.traces)
            if cfg.traces
            else dataset_solutions(rows, solution, name)
        )
        where = f"{name} {cfg.traces or 'own solutions'}"
        found = right_solutions(everything, given, right, where)
    demos = found.demos[: cfg.demo_size or None]
    beyond = len(found.demos) - len(demos)
    counts = found.counts | {"used": found.counts["used"] - beyond, "beyond_demo_size": beyond}
    return Task(
        name,
        tuple(everything[: cfg.train_size or None]),
        demos,
        splits,
        message_renderer(cfg),
        *grader,
        stop=STOPS.get(cfg.prompt, ()),
        other_solutions=found.others,
        demo_counts=counts,
        demo_weights=weights,
    )


def held_out_splits(name: str, cfg: Training) -> dict[str, tuple[Problem, ...]]:
    """The problems of the benchmarks that cfg.held_out names."""
    splits: dict[str, tuple[Problem, ...]] = {}
    for other in cfg.held_out:
        module = load(other)
        if (
            other == name
            or not issubclass(module.Config, Benchmark)
            or issubclass(module.Config, Training)
        ):
            allowed = [task for task in names() if load(task).Config is Benchmark]
            raise ValueError(f"task.held_out={cfg.held_out}; allowed: {', '.join(allowed)}")
        task = module.make(module.Config(cfg.data_dir, cfg.prompt, cfg.allow_changed_data))
        splits |= task.splits
    return splits


def own_demos(text: str, right: Callable) -> tuple[data_traces.Selection, dict[int, int]]:
    """Demonstrations of task.demos, and how often each id comes in an epoch where not once.

    A problem that is in several files has the weight of the first.
    """
    problems: dict[int, Problem] = {}
    weights: dict[int, int] = {}
    given: dict[str, list[str]] = {}
    incomplete = 0
    for path, weight in parse_demos(text):
        table = tables.read(path, f"task.demos={path}", as_demos=True)
        incomplete += table.total - len(table.rows)
        for row in table.rows:
            if not row["solution"].strip():
                incomplete += 1
                continue
            problem = problem_from_row(row)
            if problem.id not in problems and weight > 1:
                weights[problem.id] = weight
            problems.setdefault(problem.id, problem)
            given.setdefault(text_key(problem.question), []).append(row["solution"])
    ordered = sorted(problems.values(), key=lambda problem: problem.id)
    found = right_solutions(ordered, given, right, f"task.demos={text}")
    counts = found.counts | {
        "rows": found.counts["rows"] + incomplete,
        "incomplete": incomplete,
    }
    return found._replace(counts=counts), weights


def parse_demos(text: str) -> list[tuple[str, int]]:
    """ "a.jsonl:2,b.jsonl" -> [("a.jsonl", 2), ("b.jsonl", 1)]; ValueError for other weights."""
    found = []
    for piece in filter(None, (part.strip() for part in text.split(","))):
        path, colon, weight = piece.rpartition(":")
        if colon and "/" not in weight:
            if not re.fullmatch("[1-9][0-9]*", weight):
                raise ValueError(
                    f"task.demos={text!r}: the weight {weight!r} of {path} is invalid; allowed: a "
                    "whole number from 1 on, how often its rows come in each epoch"
                )
            found.append((path, int(weight)))
        else:
            found.append((piece, 1))
    if not found:
        raise ValueError(
            f"task.demos={text!r} names no file; give FILE,FILE:2 or the like, or leave it empty "
            "to take the task's own solutions"
        )
    return found


def dataset_solutions(rows: Sequence[dict], solution: Callable, name: str) -> dict[str, list[str]]:
    """text_key of a problem -> the data set's solutions; ValueError for one that is not a text."""
    found: dict[str, list[str]] = {}
    for row in rows:
        given = row.get("solution")
        if not isinstance(given, str | None):
            raise ValueError(
                f"{name}, id {row['id']!r}: solution is {given!r:.80}; it must be a text, or null "
                "where there is none"
            )
        text = solution(row)
        if text.strip():
            found.setdefault(text_key(row["problem"]), []).append(text)
    return found


def check_solutions(demos: Sequence[Problem], grader: Grader = MATHEMATICS) -> list[bool]:
    """Whether each solution gives its problem's answer; a pool decides deferred comparisons."""
    answers = [grader.extract(problem.solution) for problem in demos]
    found = [
        Outcome.no_answer if answer is None else grader.compare(problem, answer)
        for problem, answer in zip(demos, answers)
    ]
    deferred = list(
        dict.fromkeys(outcome for outcome in found if isinstance(outcome, DeferredComparison))
    )
    judged: dict[DeferredComparison, Outcome] = {}
    if deferred:
        with Pool() as pool:
            judged = dict(zip(deferred, pool.grade(deferred), strict=True))
    return [judged.get(outcome, outcome) == Outcome.correct for outcome in found]
