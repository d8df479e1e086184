"""What every task promises that is generated, asked of each file of bridge_jax/tasks: a new one is
picked up by itself.

A task whose settings name a folder or a file reads data, which need not be here: those that ship
are in test_benchmarks.py.
"""

from __future__ import annotations

import functools
import typing

import pytest

from bridge_jax import tasks
from bridge_jax.config import schema
from bridge_jax.data.tokenizers import CharTokenizer
from bridge_jax.grading.outcome import DeferredComparison, Outcome

GENERATED = [
    name
    for name in tasks.names()
    if schema.LocalPath not in typing.get_type_hints(tasks.load(name).Config).values()
]
every_task = pytest.mark.parametrize("name", GENERATED)


@functools.cache
def made(name: str):
    """The task with its default settings."""
    module = tasks.load(name)
    return module.make(module.Config())


def everything(task) -> list:
    """Its problems, of all lists."""
    return [*task.train, *task.demos, *(row for rows in task.splits.values() for row in rows)]


def test_the_tasks_that_are_generated_are_found():
    """Generated tasks are told apart from those that read data."""
    assert {"arithmetic", "knights_knaves"} <= set(GENERATED)
    assert not {"gsm8k", "math500"} & set(GENERATED)


@every_task
def test_rows_are_usable_and_held_out(name):
    """Named like its file; each list is checked, and no problem that is learned from is in a
    split.
    """
    task = made(name)
    assert task.name == name and task.train and task.splits
    tasks.check_rows(task.train, name)
    tasks.check_rows(task.demos, name, demos=True)
    learned = {row.id for row in (*task.train, *task.demos)}
    for split in task.splits.values():
        assert split and not learned & {row.id for row in tasks.check_rows(split, name)}
    of_id = {}
    assert all(of_id.setdefault(row.id, row.question) == row.question for row in everything(task))


@every_task
def test_the_same_settings_give_the_same_problems(name):
    """Two tasks made with the same settings are equal."""
    module = tasks.load(name)
    again, task = module.make(module.Config()), made(name)
    assert (again.train, again.demos, again.splits) == (task.train, task.demos, task.splits)


@every_task
def test_demos_are_graded_correct_and_other_answers_are_not(name):
    """By the strict reading and the lenient one; another problem's answer is wrong, no text
    none.
    """
    task = made(name)
    for row in task.demos:
        for read in (task.extract, task.lenient):
            outcome = task.compare(row, read(row.solution))
            assert isinstance(outcome, DeferredComparison) or outcome == Outcome.correct, row
    answers = {row.answer for row in task.demos}
    row = next(iter(task.demos))
    for answer in answers - {row.answer}:
        assert task.compare(row, answer) != Outcome.correct
    assert task.extract("") is None


@every_task
def test_prompts_are_messages_and_characters_are_spelled(name):
    """Prompts are messages, and the task's alphabet spells all its text."""
    task, alphabet = made(name), getattr(tasks.load(name), "ALPHABET", None)
    for row in everything(task):
        messages = task.messages(row)
        assert messages and all(set(message) == {"role", "content"} for message in messages)
        if alphabet:
            text = messages[-1]["content"] + row.solution
            tokenizer = CharTokenizer(alphabet)
            assert tokenizer.decode(tokenizer.encode(text)) == text
