"""Rows of data files: bad ones are named by file and row, changed ones refused, overlap with benchmarks found."""

from __future__ import annotations

import json
import sys
import types

import pytest

from bridge_jax import problems
from bridge_jax.problems import Source
from bridge_jax.types import Problem

ROWS = [{"id": str(i), "problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(3)]
SOURCE = Source(
    "benchmarks/some.jsonl",
    ("who/what", "main"),
    "test",
    3,
    problems.content_hash(ROWS),
    {"problem": "question"},
)


def write(folder, rows, name="some.jsonl"):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return folder


def hub(monkeypatch, rows, error=None):
    """A module `datasets` that has one data set; returns what was asked of it."""
    asked = []

    def load_dataset(*name, split):
        asked.append((name, split))
        if error:
            raise error
        return rows

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_files_and_hub_give_the_same_rows(tmp_path, monkeypatch):
    """With and without the folder's name; the hub's fields are renamed, its rows numbered."""
    flat, nested = (
        write(tmp_path / "flat", ROWS),
        write(tmp_path / "nested" / "benchmarks", ROWS).parent,
    )
    assert problems.read(SOURCE, str(flat)) == problems.read(SOURCE, str(nested)) == ROWS
    asked = hub(
        monkeypatch, [{"question": row["problem"], "answer": row["answer"]} for row in ROWS]
    )
    found = problems.read(SOURCE)
    assert asked == [(("who/what", "main"), "test")]
    assert [{key: row[key] for key in ROWS[0]} for row in found] == ROWS


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch):
    hub(monkeypatch, [], error=ConnectionError("no route"))
    with pytest.raises(
        ValueError,
        match=r"cannot load who/what/main/test .*ConnectionError: no route.* set data_dir .*some.jsonl",
    ):
        problems.read(SOURCE)


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"id": "7", "problem": "What?"},
            r"some.jsonl, row 3: no field 'answer'; it has id, problem",
        ),
        ({"id": "7", "answer": "4"}, r"some.jsonl, row 3: no field 'problem'"),
        ({"problem": "What?", "answer": "4"}, r"some.jsonl, row 3: no field 'id'"),
        ({"id": "7", "problem": "What?", "answer": None}, r"row 3: no field 'answer'"),
        (
            {"id": "7", "problem": "What?", "answer": "  "},
            r"some.jsonl, row 3 \(id '7'\): answer is '  '",
        ),
        ({"id": "7", "problem": "", "answer": "4"}, r"row 3 \(id '7'\): problem is ''"),
        (
            {"id": "7", "problem": "What?", "answer": 4},
            r"row 3 \(id '7'\): answer is 4; it must be a text",
        ),
        (
            {"id": "0", "problem": "What?", "answer": "4"},
            r"some.jsonl, row 3: the id '0' is that of row 1",
        ),
        ("{torn", r"some.jsonl, row 3: no JSON"),
        ('["a"]', r"some.jsonl, row 3: must be an object, is list"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        problems.read(SOURCE, str(write(tmp_path, [*ROWS[:2], row])))


def test_changed_data_is_refused_or_said(tmp_path, caplog):
    """A missing row and an altered answer; white space and order do not matter."""
    spaced = [dict(row, problem=row["problem"].replace(" ", "  \n")) for row in ROWS[::-1]]
    assert len(problems.read(SOURCE, str(write(tmp_path / "spaced", spaced)))) == 3
    for name, rows in (("short", ROWS[:2]), ("altered", [*ROWS[:2], dict(ROWS[2], answer="5")])):
        folder = str(write(tmp_path / name, rows))
        with pytest.raises(
            ValueError,
            match=f"has {len(rows)} rows with content .* declared are 3 with {SOURCE.digest}",
        ):
            problems.read(SOURCE, folder)
        assert (
            problems.read(SOURCE, folder, allow_changed=True) == rows
            and "used all the same" in caplog.text
        )
        caplog.clear()


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"no some.jsonl in .*, nor in its folder benchmarks"):
        problems.read(SOURCE, str(tmp_path))
    with pytest.raises(ValueError, match="has no rows"):
        problems.read(SOURCE, str(write(tmp_path, [])))


def test_line_ends_inside_strings_do_not_cut_rows(tmp_path):
    """str.splitlines would cut at U+2028."""
    rows = [dict(ROWS[0], problem="a\u2028b"), ROWS[1]]
    (tmp_path / "some.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8"
    )
    assert problems.jsonl(tmp_path / "some.jsonl") == rows


def of(id: int, question: str, solution: str = "", answer: str = "1") -> Problem:
    return Problem(id, question, answer, solution, 0)


def test_doubled_problems_are_left_out_and_counted(caplog):
    kept = problems.once([of(1, "a"), of(2, "b"), of(1, "a", "later")], "here")
    assert (
        [row.id for row in kept] == [1, 2]
        and kept[0].solution == ""
        and "1 of 3 problems left out" in caplog.text
    )


def test_solutions_are_dropped_by_why(caplog):
    kept = problems.right_solutions(
        [of(1, "a", "right"), of(2, "b", "wrong"), of(3, "c", " ")],
        lambda problem: problem.solution == "right",
        "here",
    )
    assert [row.id for row in kept] == [1]
    assert (
        "1 demonstrations of 3 problems; left out: 1 without a solution, 1 whose own answer is not"
        in caplog.text
    )


def test_traces(tmp_path):
    row = {"problem": "What is 2 + 2?", "solution": "It is 4.", "answer": "4"}
    path = write(tmp_path, [row]) / "some.jsonl"
    assert problems.traces(str(path)) == {"what is 2 2": row}
    with pytest.raises(ValueError, match=r"some.jsonl, row 2: solution is ''"):
        problems.traces(str(write(tmp_path, [row, dict(row, solution="")]) / "some.jsonl"))


LONG = "A train leaves town at noon and goes at sixty miles an hour for three whole hours before it stops."


def test_overlap_finds_shared_runs_of_words():
    """Thirteen words in a row, whatever case and marks; twelve are not enough."""
    start = " ".join(LONG.split()[:13])
    train = [
        of(1, start.upper() + " and then?"),
        of(2, " ".join(LONG.split()[:12]) + " end of it, and of all that was before"),
    ]
    assert problems.overlap(train, [of(9, LONG)]) == [(1, 9)]
    assert "held: 1 of 2 training problems share 13 words in a row with one of its 1 (ids 1~9)" in (
        problems.overlap_report(train, {"held": [of(9, LONG)]})
    )


def test_overlap_of_short_texts_is_the_whole_text():
    """Marks are all that tells 2 + 3 from 2 - 3."""
    assert problems.overlap([of(1, "2 + 3?")], [of(9, "2 - 3?")]) == []
    assert problems.overlap([of(1, "What IS 2 +  3?")], [of(9, "What is 2 + 3?")]) == [(1, 9)]


def test_phrasing_is_no_overlap():
    """What most training problems begin with says nothing of one of them."""
    train = [
        of(
            i,
            LONG
            + f" Question {i} about the number {i} of trains in such and such a town and all the towns {i}?",
        )
        for i in range(30)
    ]
    held = [of(100, LONG + " Something else is asked.")]
    assert problems.overlap(train, held) == []
    assert problems.overlap(train[:5], held) == [(i, 100) for i in range(5)]


def test_training_on_a_held_out_problem_is_refused():
    with pytest.raises(
        ValueError,
        match=r"1 problems of held stand in the training set, word for word \(ids \[9\]\)",
    ):
        problems.overlap_report(
            [of(1, LONG.upper())],
            {"fine": [of(8, "Other?")], "held": [of(9, LONG.replace(" ", "  "))]},
        )
