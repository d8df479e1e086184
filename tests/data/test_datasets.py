"""Rows of data files: bad ones are named by file and row, changed ones refused, overlap with benchmarks found."""

from __future__ import annotations

import json
import sys
import types

import pytest

from bridge_jax.data import contamination, datasets, traces
from bridge_jax.data.datasets import Source
from bridge_jax.types import Problem

ROWS = [{"id": str(i), "problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(3)]
SOURCE = Source(
    "benchmarks/some.jsonl",
    ("who/what", "main"),
    "test",
    3,
    datasets.content_hash(ROWS),
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
    assert datasets.read(SOURCE, str(flat)) == datasets.read(SOURCE, str(nested)) == ROWS
    asked = hub(
        monkeypatch, [{"question": row["problem"], "answer": row["answer"]} for row in ROWS]
    )
    found = datasets.read(SOURCE)
    assert asked == [(("who/what", "main"), "test")]
    assert [{key: row[key] for key in ROWS[0]} for row in found] == ROWS


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch):
    hub(monkeypatch, [], error=ConnectionError("no route"))
    with pytest.raises(
        ValueError,
        match=r"cannot load who/what/main/test .*ConnectionError: no route.* set data_dir .*some.jsonl",
    ):
        datasets.read(SOURCE)


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
        datasets.read(SOURCE, str(write(tmp_path, [*ROWS[:2], row])))


def test_changed_data_is_refused_or_said(tmp_path, caplog):
    """A missing row and an altered answer; white space and order do not matter."""
    spaced = [dict(row, problem=row["problem"].replace(" ", "  \n")) for row in ROWS[::-1]]
    assert len(datasets.read(SOURCE, str(write(tmp_path / "spaced", spaced)))) == 3
    for name, rows in (("short", ROWS[:2]), ("altered", [*ROWS[:2], dict(ROWS[2], answer="5")])):
        folder = str(write(tmp_path / name, rows))
        with pytest.raises(
            ValueError,
            match=f"has {len(rows)} rows with content .* declared are 3 with {SOURCE.digest}",
        ):
            datasets.read(SOURCE, folder)
        assert (
            datasets.read(SOURCE, folder, allow_changed=True) == rows
            and "used anyway" in caplog.text
        )
        caplog.clear()


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"no some.jsonl in .*, nor in its folder benchmarks"):
        datasets.read(SOURCE, str(tmp_path))
    with pytest.raises(ValueError, match="has no rows"):
        datasets.read(SOURCE, str(write(tmp_path, [])))


def test_line_ends_inside_strings_do_not_cut_rows(tmp_path):
    """str.splitlines would cut at U+2028."""
    rows = [dict(ROWS[0], problem="a\u2028b"), ROWS[1]]
    (tmp_path / "some.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8"
    )
    assert datasets.jsonl(tmp_path / "some.jsonl") == rows


def of(id: int, question: str, solution: str = "", answer: str = "1") -> Problem:
    return Problem(id, question, answer, solution, 0)


def test_doubled_problems_are_left_out_and_counted(caplog):
    kept = traces.deduplicate([of(1, "a"), of(2, "b"), of(1, "a", "later")], "here")
    assert (
        [row.id for row in kept] == [1, 2]
        and kept[0].solution == ""
        and "1 of 3 problems left out" in caplog.text
    )


def test_solutions_are_dropped_by_why(caplog):
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
    """Wrong before right, right twice, the same row twice, cut inside <think>, rows of no problem."""
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
    assert one != other and traces.text_key(one) == traces.text_key(other)


def test_traces(tmp_path):
    row = {"problem": "What is 2 + 2?", "solution": "It is 4.", "answer": "4"}
    path = write(tmp_path, [row]) / "some.jsonl"
    assert traces.read_traces(str(path)) == {"What is 2 + 2?": ["It is 4."]}
    with pytest.raises(ValueError, match=r"some.jsonl, row 2: solution is ''"):
        traces.read_traces(str(write(tmp_path, [row, dict(row, solution="")]) / "some.jsonl"))
    with pytest.raises(ValueError, match=r"some.jsonl, row 2: solution is None"):
        traces.read_traces(str(write(tmp_path, [row, dict(row, solution=None)]) / "some.jsonl"))
    with pytest.raises(ValueError, match=r"some.jsonl, row 1: problem is None"):
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


def test_files_that_are_no_utf8_and_half_characters_are_named(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_bytes("".join(json.dumps(row) + "\n" for row in ROWS).encode("utf-16"))
    with pytest.raises(ValueError, match="some.jsonl is not UTF-8 text: .*iconv -f UTF-16"):
        datasets.read(SOURCE, str(tmp_path))
    write(tmp_path, [ROWS[0], '{"id": "7", "problem": "a \\ud835?", "answer": "4"}'])
    with pytest.raises(ValueError, match="some.jsonl, row 2: holds a part of a character"):
        datasets.jsonl(path)


def test_a_hub_row_that_lacks_what_is_taken_from_it_is_named(monkeypatch):
    fields = {"problem": "question", "answer": lambda row: row["answer"].strip()}
    hub(monkeypatch, [{"question": "a", "answer": "1"}, {"question": "b", "answer": None}])
    with pytest.raises(ValueError, match="who/what/main/test, row 2: 'answer' cannot be taken"):
        datasets.read(SOURCE._replace(fields=fields))


def test_two_problems_of_one_id_are_not_called_the_same(caplog):
    kept = traces.deduplicate([of(1, "a"), of(1, "b"), of(1, "a")], "here")
    assert [row.question for row in kept] == ["a"]
    assert "1 of 3 problems left out, they are repeated" in caplog.text
    assert "1 of 3 problems left out, their ids [1] are those of other problems" in caplog.text


LONG = "A train leaves town at noon and goes at sixty miles an hour for three whole hours before it stops."


def test_overlap_finds_shared_runs_of_words():
    """Thirteen words in a row, whatever case and marks; twelve are not enough."""
    start = " ".join(LONG.split()[:13])
    train = [
        of(1, start.upper() + " and then?"),
        of(2, " ".join(LONG.split()[:12]) + " end of it, and of all that was before"),
    ]
    assert contamination.overlap(train, [of(9, LONG)]) == [(1, 9)]
    assert "held: 1 of 2 training problems share 13 words in a row with one of its 1 (ids 1~9)" in (
        contamination.overlap_report(train, {"held": [of(9, LONG)]})
    )


def test_overlap_of_short_texts_is_the_whole_text():
    """Marks are all that tells 2 + 3 from 2 - 3."""
    assert contamination.overlap([of(1, "2 + 3?")], [of(9, "2 - 3?")]) == []
    assert contamination.overlap([of(1, "What IS 2 +  3?")], [of(9, "What is 2 + 3?")]) == [(1, 9)]


CHINESE = "一列火车从甲站出发以每小时六十公里的速度行驶三小时后到达乙站求两站距离"


@pytest.mark.parametrize(
    "train, held, shared",
    [
        (CHINESE + "是多少公里？", "问题：" + CHINESE + "。", True),
        (CHINESE, "某班有学生四十人其中男生占五分之三后来又转来若干名男生问现在共有多少人", False),
        (
            "В каждой клетке таблицы " * 5 + "3 на 3",
            "В КАЖДОЙ клетке таблицы " * 5 + "4 на 4",
            True,
        ),
        ("В каждой клетке таблицы " * 5 + "3 на 3", "Найдите число всех пар, где " * 5, False),
        ("+".join(map(str, range(20))) + " = ?", "-".join(map(str, range(20))) + " = ?", False),
        ("Now " + "+".join(map(str, range(20))), " + ".join(map(str, range(1, 20))), True),
        ("∀ε>0 ∃δ>0", "∀ε>0 ∃δ<0", False),
        ("∀ε>0  ∃δ>0", "∀ε>0 ∃δ>0", True),
        ("求 x² 的值", "求 x2 的值", True),
    ],
)
def test_overlap_reads_every_script_and_the_marks_of_formulas(train, held, shared):
    assert contamination.overlap([of(1, train)], [of(9, held)]) == [(1, 9)] * shared


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
    assert contamination.overlap(train, held) == []
    assert contamination.overlap(train[:5], held) == [(i, 100) for i in range(5)]


def test_training_on_a_held_out_problem_is_refused():
    with pytest.raises(
        ValueError,
        match=r"1 problems of held are also in the training set \(ids \[9\]\)",
    ):
        contamination.overlap_report(
            [of(1, LONG.upper())],
            {"fine": [of(8, "Other?")], "held": [of(9, LONG.replace(" ", "  "))]},
        )
