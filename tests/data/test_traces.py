"""Traces join their problems by text; the first right solution counts."""

from __future__ import annotations

import json

import pytest

from bridge_jax.data import traces
from bridge_jax.types import Problem
from tests import errors
from tests.data.problems import of, write


def test_doubled_problems_are_left_out_and_counted(caplog):
    """Of equal problems the first stays, and the others are counted."""
    kept = traces.deduplicate([of(1, "a"), of(2, "b"), of(1, "a", "later")], "here")
    assert (
        [row.id for row in kept] == [1, 2]
        and kept[0].solution == ""
        and "1 of 3 problems left out" in caplog.text
    )


def test_solutions_are_dropped_by_why(caplog):
    """Missing, wrong and unfinished solutions are left out, each counted by its reason."""
    kept = traces.right_solutions(
        [of(1, "a"), of(2, "b"), of(3, "c"), of(4, "d")],
        {"a": ["right"], "b": ["wrong"], "d": ["<think> right"]},
        check_solutions,
        "here",
    )
    assert [row.id for row in kept.demos] == [1]
    assert (
        "1 demonstrations of 4 problems; left out: 1 without a solution, 1 whose own answer is not"
        in caplog.text
    )
    assert "1 whose solution ends inside an open <think>" in caplog.text


def check_solutions(candidates: list[Problem]) -> list[bool]:
    """By the last word."""
    return [candidate.solution.endswith("right") for candidate in candidates]


def test_problems_that_differ_in_white_space_share_their_rows():
    """Each row is counted once, although both problems train on it."""
    twins = [of(1, "a b"), of(2, "a  b")]
    found = traces.right_solutions(twins, {"a b": ["wrong", "right"]}, check_solutions, "here")
    assert [row.solution for row in found.demos] == ["right", "right"]
    assert {key: value for key, value in found.counts.items() if value} == dict(
        problems=2, matched=2, rows=2, used=1, wrong=1
    )


def test_the_first_right_solution_counts_and_every_row_is_accounted_for(caplog):
    """Wrong before right, right twice, the same row twice, cut inside <think>, rows of no
    problem.
    """
    given = {
        "a": ["wrong", "<think> cut, right", "right", "also right", "wrong", "right"],
        "b": ["wrong", "wronger"],
        "c": ["<think>x</think> right"],
        "nobody asks": ["right", "right"],
    }
    found = traces.right_solutions(
        [of(1, "a"), of(2, "b"), of(3, "c"), of(4, "d")], given, check_solutions, "here"
    )
    assert {row.id: row.solution for row in found.demos} == {
        1: "right",
        3: "<think>x</think> right",
    }
    assert found.others == {1: ("also right",)}
    assert {key: value for key, value in found.counts.items() if value} == dict(
        problems=4, matched=3, rows=11, used=2, repeated=3, wrong=3, unfinished=1, unmatched=2
    )
    assert sum(found.counts[state] for state in traces.ROW_STATES) == 11
    assert "2 solutions match no problem" in caplog.text
    assert "'nobody asks'" in caplog.text
    # what is known once they are tokenised
    left = traces.update_counts(found.counts, ["trace", "stop"], ["trace", "trace", "stop"])
    assert (left["used"], left["repeated"]) == (0, 2)
    assert (left["too_long"], left["stopped"]) == (2, 1)
    assert sum(left[state] for state in traces.ROW_STATES) == 11
    assert all(
        f"{left[state]} {state.replace('_', ' ')}" in traces.summary(left)
        for state in left
        if state in traces.ROW_STATES
    )
    assert traces.update_counts({}, ["trace"], ["trace"]) == {}


@pytest.mark.parametrize(
    "one, other",
    [
        ("2+2", "2*2"),
        ("k>0", "k<0"),
        ("Find N if n = 2", "Find n if n = 2"),
        ("x^2", "x^{2}"),
        ("x²", "x2"),
        ("½", "1/2"),
        ("设 x 为 3 的倍数", "设 x 为 3 的约数"),
        ("1 2", "12"),
        ("-5", "5"),
        ("𝐱 = 1", "x = 1"),
    ],
)
def test_problems_that_differ_are_told_apart(one, other):
    """A difference in a sign, case, script or digit makes another problem."""
    assert traces.text_key(one) != traces.text_key(other)


@pytest.mark.parametrize(
    "one, other",
    [
        ("What is\r\n2 + 2?", " What is 2\u00a0+\u20092? "),
        ("\ufeffWhat is 2?", "What is 2?"),
        ("Poincare\u0301", "Poincar\u00e9"),
        ("a\u200b b", "a b"),
        ("求\u3000x", "求 x"),
        ("a \u2260 b", "a =\u0338 b"),
    ],
)
def test_spellings_of_one_text_are_the_same_problem(one, other):
    """White space, invisible marks and composed characters make no other problem."""
    assert one != other and traces.text_key(one) == traces.text_key(other)


def test_traces(tmp_path):
    """Traces are read by their problem; a row that lacks a text is named."""
    row = {"problem": "What is 2 + 2?", "solution": "It is 4.", "answer": "4"}
    path = write(tmp_path, [row]) / "some.jsonl"
    assert traces.read_traces(str(path)) == {"What is 2 + 2?": ["It is 4."]}
    with errors.raises(ValueError, "some.jsonl", "row 2", "solution", "''"):
        traces.read_traces(str(write(tmp_path, [row, dict(row, solution="")]) / "some.jsonl"))
    with errors.raises(ValueError, "some.jsonl", "row 2", "solution", "None"):
        traces.read_traces(str(write(tmp_path, [row, dict(row, solution=None)]) / "some.jsonl"))
    with errors.raises(ValueError, "some.jsonl", "row 1", "problem", "None"):
        traces.read_traces(str(write(tmp_path, [dict(question="a", solution="b")]) / "some.jsonl"))


def test_all_solutions_of_a_problem_are_kept_in_their_order(tmp_path):
    """Spelled with other spaces, line ends and a mark at the beginning of the file."""
    rows = [
        {"problem": "What is\n 2 + 2?", "solution": "first", "answer": "4"},
        {"problem": "What is 2 * 2?", "solution": "other", "answer": "4"},
        {"problem": " What is 2 +\u00a02?", "solution": "second", "answer": "4"},
    ]
    path = tmp_path / "traces.jsonl"
    path.write_bytes("\r\n".join(map(json.dumps, rows)).encode("utf-8-sig"))
    assert traces.read_traces(str(path)) == {
        "What is 2 + 2?": ["first", "second"],
        "What is 2 * 2?": ["other"],
    }


def test_two_problems_of_one_id_are_not_called_the_same(caplog):
    """Different problems under one id are counted apart from repeated ones."""
    kept = traces.deduplicate([of(1, "a"), of(1, "b"), of(1, "a")], "here")
    assert [row.question for row in kept] == ["a"]
    assert "1 of 3 problems left out, they are repeated" in caplog.text
    assert "1 of 3 problems left out, their ids [1] are those of other problems" in caplog.text
