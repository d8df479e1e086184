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
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType

from bridge_jax.config.schema import LocalPath
from bridge_jax.data import datasets
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
    problem: Problem, system: str = "", shots: tuple[tuple[str, str], ...] = ()
) -> list[dict[str, str]]:
    """Chat messages that ask for a boxed answer.

    shots: worked examples (question, solution), given as earlier turns.
    """
    ask = lambda question: {"role": "user", "content": question + INSTRUCTION}
    messages = [{"role": "system", "content": system}] if system else []
    for question, solution in shots:
        messages += [ask(question), {"role": "assistant", "content": solution}]
    return messages + [ask(problem.question)]


def plain_messages(problem: Problem) -> list[dict[str, str]]:
    """The same request as plain text, for base models; role "text" bypasses the chat template."""
    return [{"role": "text", "content": f"Question: {problem.question}{INSTRUCTION}\nAnswer:"}]


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
    train_size: int = 0  # RL prompts, the first ones by id; 0: all
    demo_size: int = 0  # demonstrations; 0: all


def message_renderer(cfg: Benchmark) -> Callable:
    """The function of PROMPTS that cfg.prompt names."""
    if cfg.prompt not in PROMPTS:
        raise ValueError(f"task.prompt={cfg.prompt!r}; allowed: {', '.join(PROMPTS)}")
    return PROMPTS[cfg.prompt]


def with_stop(task: Task, stop: Sequence[str], own: bool) -> Task:
    """The task with these stop strings; own: after its own ones, which otherwise are removed."""
    return dataclasses.replace(task, stop=tuple(dict.fromkeys((*task.stop * own, *stop))))


def compare_by_rule(problem: Problem, answer: str) -> Outcome | DeferredComparison:
    """Mathematical equality under the problem's rule."""
    return equivalence.compare(problem.answer, answer, problem.rule)


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
        last_boxed,
        lenient_answer,
        compare_by_rule,
        stop=STOPS.get(cfg.prompt, ()),
    )


def training(
    name: str,
    rows: Sequence[dict],
    solution: Callable[[dict], str],
    cfg: Training,
    splits: dict | None = None,
) -> Task:
    """A training task: all rows are prompts, rows with a correct solution are demonstrations.

    cfg.held_out names the benchmarks whose problems are added to `splits`. The first correct
    solution of a problem is its demonstration. ValueError for a solution that is not a text.
    """
    splits = dict(splits or {})
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
    if not splits:
        raise ValueError(
            "task.held_out is empty, so nothing would judge the run; name a benchmark, such as "
            "'math500'"
        )
    everything = sorted(
        deduplicate([problem_from_row(row) for row in rows], name), key=lambda problem: problem.id
    )
    given = (
        data_traces.read_traces(cfg.traces)
        if cfg.traces
        else dataset_solutions(rows, solution, name)
    )
    found = right_solutions(
        everything, given, check_solutions, f"{name} {cfg.traces or 'own solutions'}"
    )
    demos = found.demos[: cfg.demo_size or None]
    beyond = len(found.demos) - len(demos)
    counts = found.counts | {"used": found.counts["used"] - beyond, "beyond_demo_size": beyond}
    return Task(
        name,
        tuple(everything[: cfg.train_size or None]),
        demos,
        splits,
        message_renderer(cfg),
        last_boxed,
        lenient_answer,
        compare_by_rule,
        stop=STOPS.get(cfg.prompt, ()),
        other_solutions=found.others,
        demo_counts=counts,
    )


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


def check_solutions(demos: Sequence[Problem]) -> list[bool]:
    """Whether each solution boxes its problem's answer; starts a pool for deferred comparisons."""
    boxed = [last_boxed(problem.solution) for problem in demos]
    found = [
        Outcome.no_answer if answer is None else compare_by_rule(problem, answer)
        for problem, answer in zip(demos, boxed)
    ]
    deferred = list(
        dict.fromkeys(outcome for outcome in found if isinstance(outcome, DeferredComparison))
    )
    judged: dict[DeferredComparison, Outcome] = {}
    if deferred:
        with Pool() as pool:
            judged = dict(zip(deferred, pool.grade(deferred), strict=True))
    return [judged.get(outcome, outcome) == Outcome.correct for outcome in found]
