"""What all tasks share: finding a task by name, checked rows, ids of questions, the boxed
prompt.
"""

from __future__ import annotations

import pytest

from bridge_jax import tasks
from bridge_jax.tasks import arithmetic
from bridge_jax.types import Problem
from tests import errors


def test_load_finds_a_task_by_its_file():
    """A task is found by the name of its file."""
    assert "arithmetic" in tasks.names() and not any(name.startswith("_") for name in tasks.names())
    assert tasks.load("arithmetic") is arithmetic


def test_load_names_what_exists():
    """An unknown task is an error with a suggestion and the list of tasks."""
    with errors.raises(ValueError, "'arithmatic'", "'arithmetic'"):
        tasks.load("arithmatic")
    with errors.raises(ValueError, "'os.path'", "arithmetic"):
        tasks.load("os.path")


GOOD = Problem(7, "q", "a", "s", 1)


@pytest.mark.parametrize(
    "row, complaint",
    [
        (GOOD._replace(answer=""), "answer ''"),
        (GOOD._replace(answer=" \n"), "answer ' "),
        (GOOD._replace(answer=None), "answer None"),
        (GOOD._replace(answer=5), "answer 5"),
        (GOOD._replace(question=""), "question ''"),
        (GOOD._replace(solution=""), "solution ''"),
        (GOOD._replace(id=-1), "id"),
        (GOOD._replace(id=2**31), "id"),
        (GOOD._replace(id="x"), "id"),
        (GOOD._replace(id=3), "id of row 0"),
    ],
)
def test_check_rows_names_the_bad_row(row, complaint):
    """A bad row is an error that names the file, the row and the field."""
    first = GOOD._replace(id=3)
    assert tasks.check_rows([first, GOOD], "f.jsonl", demos=True) == (first, GOOD)
    with errors.raises(ValueError, "f.jsonl", "row 1", complaint):
        tasks.check_rows([first, row], "f.jsonl", demos=True)


def test_a_solution_is_needed_only_of_demos():
    """A row that is no demonstration may lack a solution."""
    assert tasks.check_rows([GOOD._replace(solution="")], "f")


def test_question_id_is_what_it_always_was():
    """The id of a question never changes and fits 31 bits."""
    assert (
        tasks.question_id("12+7-5=") == 624582925
    )  # a change would move every split and every sampling key
    assert all(0 <= tasks.question_id(str(i)) < 2**31 for i in range(200))


def test_boxed_messages():
    """The boxed prompt is one user turn after an optional system turn."""
    user = {
        "role": "user",
        "content": "q\nPlease reason step by step, and put your final answer within \\boxed{}.",
    }
    assert tasks.boxed_messages(GOOD) == [user]
    assert tasks.boxed_messages(GOOD, "Be brief.") == [
        {"role": "system", "content": "Be brief."},
        user,
    ]
