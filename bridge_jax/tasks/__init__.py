"""Tasks, found by the names of the files of this folder: one new file is one new task.

A task file has a frozen dataclass `Config`, whose fields are the keys of config.task, and
`make(cfg: Config) -> types.Task`; nothing needs to be registered. A file with an ALPHABET, the
characters of its questions and solutions, can be read by data.tokenizer=chars. A file with CLAIMS =
True makes Claims, so that a run of it needs a grading.pool.Pool. Also here is what every task
needs: the check that no row lacks a question or an answer, ids that depend on nothing but the
question, chat messages, and how the tasks that read their rows (datasets.py) are put together.
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
from bridge_jax.data.traces import exact, once, right_solutions
from bridge_jax.grading import equivalence
from bridge_jax.grading.extract import last_boxed, lenient_answer
from bridge_jax.grading.outcome import Claim, Outcome, Rule
from bridge_jax.grading.pool import Pool
from bridge_jax.types import Problem, Task

# after the question
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
    """31-bit id of a question, from its text alone: the same on every machine, whatever else is
    loaded.
    """
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big") & 0x7FFFFFFF


def check_rows(rows: Iterable[Problem], source: str, demos: bool = False) -> tuple[Problem, ...]:
    """The rows as a tuple.

    ValueError names the row (counted from 0) of `source` that is unusable, and why.

    Needed: question and answer (with `demos` also solution) not blank, an id in [0, 2^31) that no
    other row has.
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
    """Chat messages that ask for an answer in a box, behind worked examples (question, solution) as
    earlier turns.
    """
    ask = lambda question: {"role": "user", "content": question + INSTRUCTION}
    told = [{"role": "system", "content": system}] if system else []
    for question, solution in shots:
        told += [ask(question), {"role": "assistant", "content": solution}]
    return told + [ask(problem.question)]


def plain_messages(problem: Problem) -> list[dict[str, str]]:
    """The same request as running text, for base models: role "text" goes around the chat template."""
    return [{"role": "text", "content": f"Question: {problem.question}{INSTRUCTION}\nAnswer:"}]


PROMPTS = {
    "boxed": functools.partial(boxed_messages, system="You are a helpful assistant."),
    "plain": plain_messages,
    "user": boxed_messages,
}
# The mark of a next question: a base model that runs on after its answer would be judged by the
# next one's.
STOPS = {"plain": ("\nQuestion:",)}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Settings of a task that only holds problems out."""

    data_dir: LocalPath = ""  # folder of JSONL files; "": the hub
    # "boxed": the paper's, through the chat template; "plain": text, for base models; "user": as
    # "boxed", without a system message, which some templates refuse
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


def messages_of(cfg: Benchmark) -> Callable:
    """The renderer that cfg.prompt names."""
    if cfg.prompt not in PROMPTS:
        raise ValueError(f"task.prompt={cfg.prompt!r}; allowed: {', '.join(PROMPTS)}")
    return PROMPTS[cfg.prompt]


def with_stop(task: Task, stop: Sequence[str], own: bool) -> Task:
    """The task with these stop strings, behind its own where they apply."""
    return dataclasses.replace(task, stop=tuple(dict.fromkeys((*task.stop * own, *stop))))


def by_rule(problem: Problem, answer: str) -> Outcome | Claim:
    """Mathematical equality, by the rule of the problem."""
    return equivalence.compare(problem.answer, answer, problem.rule)


def of_row(row: dict, rule: Rule = Rule(), solution: str = "") -> Problem:
    """A checked row as a Problem; its level where the data has one."""
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
    """A task of held-out problems alone, its only split named like itself."""
    rows = datasets.read(source, cfg.data_dir, cfg.allow_changed_data)
    split = once([of_row(row, rule(row)) for row in rows], name)
    return Task(
        name,
        (),
        (),
        {name: split},
        messages_of(cfg),
        last_boxed,
        lenient_answer,
        by_rule,
        stop=STOPS.get(cfg.prompt, ()),
    )


def training(
    name: str,
    rows: Sequence[dict],
    solution: Callable[[dict], str],
    cfg: Training,
    splits: dict | None = None,
) -> Task:
    """A task to train on: all rows are prompts, those with a right solution demonstrations.

    Held out as cfg says.

    Of several solutions of a problem the first right one counts. ValueError for a solution that is
    no text.
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
        made = module.make(module.Config(cfg.data_dir, cfg.prompt, cfg.allow_changed_data))
        splits |= made.splits
    if not splits:
        raise ValueError(
            "task.held_out is empty, so nothing would judge the run; name a benchmark, such as "
            "'math500'"
        )
    everything = sorted(once([of_row(row) for row in rows], name), key=lambda problem: problem.id)
    given = data_traces.traces(cfg.traces) if cfg.traces else own_solutions(rows, solution, name)
    found = right_solutions(everything, given, are_right, f"{name} {cfg.traces or 'own solutions'}")
    demos = found.demos[: cfg.demo_size or None]
    beyond = len(found.demos) - len(demos)
    counts = found.counts | {"used": found.counts["used"] - beyond, "beyond_demo_size": beyond}
    return Task(
        name,
        tuple(everything[: cfg.train_size or None]),
        demos,
        splits,
        messages_of(cfg),
        last_boxed,
        lenient_answer,
        by_rule,
        stop=STOPS.get(cfg.prompt, ()),
        other_solutions=found.others,
        demo_counts=counts,
    )


def own_solutions(rows: Sequence[dict], solution: Callable, name: str) -> dict[str, list[str]]:
    """The rows' own solutions by the exact text of their problem.

    ValueError where one is no text.
    """
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
            found.setdefault(exact(row["problem"]), []).append(text)
    return found


def are_right(demos: Sequence[Problem]) -> list[bool]:
    """Whether each solution boxes its problem's answer; a pool is started if one needs algebra."""
    boxed = [last_boxed(problem.solution) for problem in demos]
    found = [
        Outcome.no_answer if answer is None else by_rule(problem, answer)
        for problem, answer in zip(demos, boxed)
    ]
    claims = list(dict.fromkeys(outcome for outcome in found if isinstance(outcome, Claim)))
    judged: dict[Claim, Outcome] = {}
    if claims:
        with Pool() as pool:
            judged = dict(zip(claims, pool.grade(claims), strict=True))
    return [judged.get(outcome, outcome) == Outcome.correct for outcome in found]
