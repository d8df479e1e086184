"""Somebody's own problems: files or hub names, columns and reward by the config, without code.

`task.train` is a JSONL or parquet file, a folder of them, or a hub name; `task.test` another one.
Without it a share of the problems is held out, by a hash of the question: the same ones on every
machine, whatever is added later. Without `task.train` the task is for evaluation alone.

Rewards: `math` compares mathematically, `exact` as text with white space folded, `choice` by the
letter, `regex` as `exact` with the answer found by `task.pattern`, `knights_knaves` by who is
called a knight and who a knave, in any order (knights_knaves.py), and MODULE:FUNCTION calls
function(question, text, gold) in the grading workers (grading/rewards.py); the file of its code is
among the run's fingerprints. The text is the whole completion or, with `task.pattern`, what the
pattern finds. The search has a time limit (PATTERN_S), since a pattern may backtrack for hours; a
sample at which it is reached has the outcome timeout, and a pattern that often reaches it ends the
run.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import regex

from bridge_jax import tasks
from bridge_jax.config.schema import LocalPath
from bridge_jax.data import row_source, tables
from bridge_jax.data.traces import MOST_DROPPED, deduplicate, text_key
from bridge_jax.grading import rewards, trial
from bridge_jax.grading.extract import last_boxed, lenient_answer
from bridge_jax.grading.outcome import DeferredComparison, Outcome
from bridge_jax.tasks import knights_knaves
from bridge_jax.types import Problem, Task

logger = logging.getLogger(__name__)
DEFERS_COMPARISONS = True
REWARDS = ("math", "exact", "choice", "regex", "knights_knaves")
CHOICE_INSTRUCTION = (
    "\nPlease reason step by step, and put the letter of your answer within \\boxed{}."
)
# instructions of rewards that read a box
INSTRUCTIONS = {
    "math": tasks.INSTRUCTION,
    "exact": tasks.INSTRUCTION,
    "choice": CHOICE_INSTRUCTION,
    "knights_knaves": tasks.INSTRUCTION,
}
NO_INSTRUCTION = "none"
# seconds that the search for task.pattern in one completion may take
PATTERN_S = 1.0
# so many searches cut off among the last RECENT ones are the pattern's fault, not a sample's
MOST_CUT_OFF, RECENT = 10, 1000
# in place of an answer where that was too short
TIMED_OUT = "\0task.pattern reached its time limit"
# characters at the end of a completion that are searched
TAIL = 20_000
LETTER = re.compile(r"\(?\s*([A-Za-z])\s*(?:[).:].*)?", re.DOTALL)
IN_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
STATED_LETTER = re.compile(r"\banswer\s*(?:is|:)[\s*]*\(?([A-Za-z])\b(?!')", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Config(tasks.Training):
    """Settings; held_out adds benchmarks to the task's own held-out problems."""

    # JSONL or parquet, a folder or pattern of them, or owner/name[/config][@REVISION][#SPLIT]
    train: LocalPath = ""
    test: LocalPath = ""  # the same; "": a share of train
    split: str = "train"  # of a hub name in train without #SPLIT
    test_split: str = "test"  # of a hub name in test without #SPLIT
    test_share: float = 0.05  # of train that is held out where there is no test
    # problem:COLUMN,answer:COLUMN,solution:COLUMN; A.B is field B of column A; those left out are
    # found by their usual names
    columns: str = ""
    reward: str = "math"  # one of REWARDS, MODULE:FUNCTION or FILE.py:FUNCTION
    # with one group, which is the answer; the last match counts; "": the last box
    pattern: str = ""
    # appended to the question, \n for a newline; "": that of the reward; "none": nothing
    instruction: str = ""


def make(cfg: Config) -> Task:
    """The task; ValueError in one line for files, columns, patterns and functions that fail."""
    check(cfg)
    test = read(cfg, cfg.test, "test", cfg.test_split) if cfg.test else []
    train = read(cfg, cfg.train, "train", cfg.split) if cfg.train else []
    if train and not test:
        train, test = split(train, cfg)
    check_golds(cfg, [*train, *test])
    code = try_function(cfg, [*train, *test])
    grader = grader_of(cfg)
    held_out = deduplicate([tasks.problem_from_row(row) for row in test], "task.test")
    if train:
        splits = {"test": held_out} if held_out else {}
        solution = lambda row: row["solution"]
        task = tasks.training("custom", train, solution, cfg, splits, grader)
    else:
        name = benchmark_name(cfg.test)
        stop = tasks.STOPS.get(cfg.prompt, ())
        messages = tasks.message_renderer(cfg)
        task = Task(name, (), (), {name: held_out}, messages, *grader, stop=stop)
    render = functools.partial(tasks.message_renderer(cfg), instruction=instruction_of(cfg))
    return dataclasses.replace(task, messages=render, reward_code=code)


def check(cfg: Config) -> None:
    """ValueError for settings that are invalid whatever the data."""
    if not cfg.train and not cfg.test:
        raise ValueError(
            "task custom has no data: set task.train=FILE (JSONL or parquet, a folder, or a hub "
            "name); in evaluation give --tasks=custom:FILE"
        )
    if cfg.reward not in REWARDS and not rewards.is_name(cfg.reward):
        raise ValueError(
            f"task.reward={cfg.reward!r}; allowed: {', '.join(REWARDS)}, MODULE:FUNCTION or "
            "FILE.py:FUNCTION"
        )
    if cfg.reward == "regex" and not cfg.pattern:
        raise ValueError("task.reward=regex needs task.pattern, such as '<answer>(.*?)</answer>'")
    if cfg.pattern:
        try:
            groups = regex.compile(cfg.pattern, regex.DOTALL).groups
        except regex.error as error:
            raise ValueError(
                f"task.pattern={cfg.pattern!r} is no regular expression: {error}"
            ) from None
        if groups != 1:
            raise ValueError(
                f"task.pattern={cfg.pattern!r} has {groups} groups; wanted: one, which is the "
                "answer, and (?:...) for others"
            )
    if not 0 <= cfg.test_share < 1:
        raise ValueError(f"task.test_share={cfg.test_share}; allowed: from 0 to below 1")


def read(cfg: Config, given: str, key: str, hub_split: str) -> list[dict]:
    """The rows with ids; a warning counts those left out, and too many are a ValueError."""
    # the words of experiments.evaluate where there is nothing to train on
    where = f"task.{key}={given}" if cfg.train else f"--tasks=custom:{given}"
    columns_key = "task.columns" if cfg.train else "--columns"
    table = tables.read(given, where, hub_split, cfg.columns, columns_key)
    if table.dropped:
        lost = table.total - len(table.rows)
        message = f"{where}: {lost} of {table.total} rows left out: {table.reasons()}"
        if lost > MOST_DROPPED * table.total and not cfg.allow_dropped:
            raise ValueError(f"{message}; take the others with task.allow_dropped=True")
        logger.warning("%s", message)
    return [{"id": str(number)} | row for number, row in enumerate(table.rows, 1)]


def split(rows: list[dict], cfg: Config) -> tuple[list[dict], list[dict]]:
    """The rows to train on and those held out, by a hash of the question.

    ValueError where one of the two is empty but wanted.
    """
    parts: tuple[list[dict], list[dict]] = ([], [])
    for row in rows:
        parts[position(row["problem"]) < cfg.test_share].append(row)
    if not parts[0] or (cfg.test_share and not parts[1]):
        raise ValueError(
            f"task.test_share={cfg.test_share} of the {len(rows)} rows of task.train={cfg.train} "
            f"leaves {len(parts[0])} to train on and {len(parts[1])} held out; change it, or give "
            "task.test=FILE"
        )
    return parts


def position(question: str) -> float:
    """A number in [0, 1) that follows from a question's text: the same on every machine."""
    digest = hashlib.sha256(f"held out/{text_key(question)}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def check_golds(cfg: Config, rows: Sequence[dict]) -> None:
    """ValueError for the first gold answer that the reward, where it wants a form, cannot read."""
    forms = {
        "choice": (letter, "is no letter such as B or (B)"),
        "knights_knaves": (
            knights_knaves.named_kinds,
            "names nobody as a knight or a knave, or somebody as both",
        ),
    }
    if cfg.reward not in forms:
        return
    read_gold, fault = forms[cfg.reward]
    for row in rows:
        if read_gold(row["answer"]) is None:
            raise ValueError(
                f"task.reward={cfg.reward}: the answer {row['answer']!r:.80} of the problem "
                f"{row['problem']!r:.80} {fault}"
            )


def try_function(cfg: Config, rows: Sequence[dict]) -> str:
    """The fingerprint of a reward function's code; "" where the reward is none.

    ValueError where the function cannot be imported or called.
    """
    if cfg.reward in REWARDS:
        return ""
    # a row with a worked solution is like a completion
    row = next((row for row in rows if row["solution"].strip()), rows[0])
    text = whole_text(row["solution"]) or row["answer"]
    if cfg.pattern:
        text = PatternSearch(cfg.pattern)(text)
    found = trial.try_out(cfg.reward, row["problem"], text or row["answer"], row["answer"])
    if found.failure:
        raise ValueError(f"task.reward={cfg.reward}: {found.failure}")
    return found.code


def grader_of(cfg: Config) -> tasks.Grader:
    """How completions are read and compared."""
    function = "" if cfg.reward in REWARDS else cfg.reward
    compare = functools.partial(by_function, function=function)
    if not function:
        compare = COMPARISONS[cfg.reward]
    if cfg.pattern:
        search = PatternSearch(cfg.pattern)
        return tasks.Grader(search, search, functools.partial(unless_timed_out, compare))
    if function:
        return tasks.Grader(whole_text, whole_text, compare)
    return tasks.Grader(last_boxed, LENIENT.get(cfg.reward, lenient_answer), compare)


class PatternSearch:
    """Finds the answer of a text by task.pattern, with a time limit.

    ValueError at the MOST_CUT_OFF-th of the last RECENT searches that reached the limit: each costs
    PATTERN_S seconds of the process that trains.
    """

    def __init__(self, pattern: str):
        self.pattern = pattern
        self._searches = 0
        # the numbers of the last searches that were cut off
        self._cut_off: collections.deque[int] = collections.deque(maxlen=MOST_CUT_OFF)

    def __call__(self, text: str) -> str | None:
        """What the last match found; TIMED_OUT at the limit, None without a match."""
        self._searches += 1
        try:
            # re has no time limit
            found = regex.findall(self.pattern, text[-TAIL:], regex.DOTALL, timeout=PATTERN_S)
        except TimeoutError:
            self._count_cut_off(text)
            return TIMED_OUT
        return (found[-1].strip() or None) if found else None

    def _count_cut_off(self, text: str) -> None:
        """Notes a search that was cut off; ValueError where they are too many."""
        self._cut_off.append(self._searches)
        recent = self._searches - self._cut_off[0] < RECENT
        if len(self._cut_off) == MOST_CUT_OFF and recent:
            raise ValueError(
                f"task.pattern={self.pattern!r}: {MOST_CUT_OFF} of the last "
                f"{min(self._searches, RECENT)} searches took longer than {PATTERN_S:g} s each, "
                f"the last one in the text {text[-80:]!r}; give a pattern that does not backtrack, "
                "such as one without a repetition inside a repetition"
            )


def whole_text(text: str) -> str | None:
    """The text; None where it is blank."""
    return text if text.strip() else None


def unless_timed_out(
    compare: Callable, problem: Problem, answer: str
) -> Outcome | DeferredComparison:
    """compare(problem, answer), or timeout where the search for the answer was cut off."""
    return Outcome.timeout if answer == TIMED_OUT else compare(problem, answer)


def by_text(problem: Problem, answer: str) -> Outcome:
    """Equality with white space folded."""
    same = text_key(answer) == text_key(problem.answer)
    return Outcome.correct if same else Outcome.wrong


def by_letter(problem: Problem, answer: str) -> Outcome:
    """Equality of the letters; a parse_error where the answer is none."""
    found = letter(answer)
    if found is None:
        return Outcome.parse_error
    return Outcome.correct if found == letter(problem.answer) else Outcome.wrong


def by_function(problem: Problem, answer: str, function: str) -> DeferredComparison:
    """The question for a grading worker."""
    return DeferredComparison(problem.answer, answer, function=function, question=problem.question)


def letter(text: str) -> str | None:
    """The letter of B, (b), B. and \\text{(B) seven}; None for anything else."""
    found = LETTER.fullmatch(IN_COMMAND.sub(r"\1", text).strip().strip("$").strip())
    return found[1].upper() if found else None


def stated_letter(text: str) -> str | None:
    """The lenient reading of a choice: the last box, else the last "the answer is (B)"."""
    if (boxed := last_boxed(text)) is not None:
        return boxed
    stated = STATED_LETTER.findall(text[-TAIL:])
    return stated[-1] if stated else None


# how the rewards of REWARDS compare an answer, and what the lenient reading of some takes for one
COMPARISONS = {
    "math": tasks.compare_by_rule,
    "exact": by_text,
    "choice": by_letter,
    "regex": by_text,
    "knights_knaves": knights_knaves.compare,
}
LENIENT = {"choice": stated_letter, "knights_knaves": knights_knaves.lenient}


def instruction_of(cfg: Config) -> str:
    """The text that is appended to every question."""
    if cfg.instruction == NO_INSTRUCTION:
        return ""
    if cfg.instruction:
        text = cfg.instruction.replace("\\n", "\n")
        return text if text[0].isspace() else f"\n{text}"
    return "" if cfg.pattern else INSTRUCTIONS.get(cfg.reward, "")


def benchmark_name(given: str) -> str:
    """The name of a benchmark of one's own in tables and file names: custom_STEM."""
    stem = Path(given.rstrip("/")).name
    for suffix in row_source.SUFFIXES:
        stem = stem.removesuffix(suffix)
    return f"custom_{re.sub(r'[^A-Za-z0-9_.-]+', '_', stem)}"
