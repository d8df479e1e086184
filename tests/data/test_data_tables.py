"""Rows of somebody's own data: files, folders, patterns, columns, verl's schema, what is
refused.
"""

from __future__ import annotations

import json
import pathlib

import pyarrow
import pyarrow.parquet
import pytest

from bridge_jax.data import row_source, tables
from tests import errors
from tests.data.problems import write

KK = pathlib.Path(__file__).resolve().parents[3] / "shared/data/public/kk_logic_test.parquet"
RENDERED = "A conversation.\nUser: Who is {}?\nAssistant: Let me think.\n<think> "
VERL = [
    {
        "prompt": [{"role": "system", "content": "Be good."}, {"role": "user", "content": text}],
        "reward_model": {"ground_truth": gold, "style": "rule"},
        "answer": solution,
        "extra_info": {"index": 0},
    }
    for text, gold, solution in (("One?", "1", "So 1."), ("Two?", "2", "2"))
]


def test_usual_names(tmp_path):
    """The first known column of each part; numbers become texts; a solution may be missing."""
    rows = [
        {"question": "One?", "final_answer": 1, "solution": None},
        {"question": "Two?", "final_answer": 2.0, "solution": "It is 2."},
        {"question": "Half?", "final_answer": 0.5},
        {"question": "True?", "final_answer": True, "solution": "True"},
    ]
    table = tables.read(str(write(tmp_path, rows) / "some.jsonl"), "task.train")
    assert [tuple(row.values()) for row in table.rows] == [
        ("One?", "1", ""),
        ("Two?", "2", "It is 2."),
        ("Half?", "0.5", ""),
        ("True?", "True", ""),
    ]


def test_given_columns_and_fields(tmp_path):
    """problem:COLUMN, and A.B for a field; a name with a dot in itself comes first."""
    rows = [{"q": "One?", "meta": {"gold": "1"}, "a.b": "So 1.", "answer": "other"}]
    path = str(write(tmp_path, rows) / "some.jsonl")
    table = tables.read(path, "task.train", columns="problem:q, answer:meta.gold,solution:a.b")
    assert table.rows == ({"problem": "One?", "answer": "1", "solution": "So 1."},)
    with errors.raises(ValueError, "task.train", "problem", "task.columns", "q", "meta.gold"):
        tables.read(path, "task.train")
    with errors.raises(ValueError, "nowhere", "task.columns", "a.b"):
        tables.read(path, "task.train", columns="problem:q,solution:nowhere")
    for wrong in ("q", "question:q", "problem:", "problem=q"):
        with errors.raises(ValueError, "task.columns", repr(wrong), "problem:COLUMN"):
            tables.read(path, "task.train", columns=wrong)


def test_verls_schema(tmp_path):
    """The user's last message, the ground truth, a solution that is more than the answer."""
    table = tables.read(str(write(tmp_path, VERL) / "some.jsonl"), "task.train")
    assert [tuple(row.values()) for row in table.rows] == [
        ("One?", "1", "So 1."),
        ("Two?", "2", ""),
    ]


def test_a_rendered_conversation_is_the_question_of_its_user(tmp_path):
    """As in files for runs from base models."""
    rows = [{"prompt": RENDERED.format("he"), "answer": "A"}]
    table = tables.read(str(write(tmp_path, rows) / "some.jsonl"), "task.train")
    assert table.rows[0]["problem"] == "Who is he?"


@pytest.mark.skipif(not KK.is_file(), reason="the real data do not stand beside the project")
def test_knights_and_knaves_as_published():
    """A real parquet file of verl's schema, with a group as its ground truth."""
    table = tables.read(str(KK), "task.test")
    assert len(table.rows) == 500 and not table.dropped
    row = table.rows[0]
    assert row["problem"].startswith("A very special island") and row["problem"].endswith(
        "</answer>."
    )
    assert row["answer"].startswith("(1) Amelia is a knight\n(2)")
    assert row["solution"].endswith(f"<answer> {row['answer']} </answer>")


def test_files_of_a_folder_and_a_pattern(tmp_path):
    """JSONL and parquet, in order of their names."""
    for number, name in enumerate(("b", "a")):
        write(tmp_path / "data", [{"problem": f"{number}?", "answer": number}], f"{name}.jsonl")
    rows = pyarrow.Table.from_pylist([{"problem": "P?", "answer": ["3"]}])
    pyarrow.parquet.write_table(rows, tmp_path / "data" / "c.parquet")
    read = lambda given: [row["problem"] for row in tables.read(given, "task.train").rows]
    assert read(str(tmp_path / "data")) == ["1?", "0?", "P?"]
    assert read(f"{tmp_path}/data/*.jsonl") == ["1?", "0?"]


def test_demonstrations_need_a_column_of_solutions(tmp_path):
    """Which may have nulls; no key names columns for them, so the error names the other command."""
    rows = [{"problem": "One?", "answer": "1", "generations": ["So 1."]}]
    path = str(write(tmp_path, rows) / "some.jsonl")
    with errors.raises(ValueError, "task.demos", "solution", "generations", "experiments.traces"):
        tables.read(path, "task.demos", as_demos=True)
    path = str(write(tmp_path, [rows[0] | {"solution": None}]) / "some.jsonl")
    assert tables.read(path, "task.demos", as_demos=True).rows[0]["solution"] == ""


def test_rows_left_out_are_counted(tmp_path):
    """Without a problem or an answer."""
    rows = [
        {"problem": "One?", "answer": "1"},
        {"problem": None, "answer": "1"},
        {"problem": "Two?", "answer": " "},
        {"problem": "Three?", "answer": ["1", "2"]},
    ]
    table = tables.read(str(write(tmp_path, rows) / "some.jsonl"), "task.train")
    assert table.total == 4 and table.dropped == {"without problem": 1, "without answer": 2}
    assert table.reasons() == "1 without problem, 2 without answer"


def test_what_cannot_be_read(tmp_path):
    """Nothing there, no rows, no problems, another kind of file, a damaged parquet."""
    read = lambda given: tables.read(str(given), f"task.train={given}")
    with errors.raises(ValueError, "task.train=nowhere.jsonl", "no such file", "owner/name"):
        read("nowhere.jsonl")
    (tmp_path / "empty").mkdir()
    with errors.raises(ValueError, "task.train", ".parquet"):
        read(tmp_path / "empty")
    for name, text in (("none.jsonl", ""), ("some.csv", "a,b"), ("bad.parquet", "x" * 99)):
        (tmp_path / name).write_text(text)
        with errors.raises(ValueError, name):
            read(tmp_path / name)
    (tmp_path / "null.jsonl").write_text(json.dumps({"problem": "", "answer": ""}) + "\n")
    with errors.raises(ValueError, "none of 1 rows", "task.columns", "problem, answer"):
        read(tmp_path / "null.jsonl")
    (tmp_path / "null.jsonl").write_text(json.dumps({"problem": None, "answer": "1"}) + "\n")
    with errors.raises(ValueError, "none of 1 rows", "problem, answer"):
        read(tmp_path / "null.jsonl")
    # white space of Unicode, which counts as a row until it is read
    (tmp_path / "blank.jsonl").write_text("\u00a0\n\n", encoding="utf-8")
    with errors.raises(ValueError, "task.train", "has no rows"):
        read(tmp_path / "blank.jsonl")


def test_a_hub_name(monkeypatch):
    """owner/name/config@revision, with the split; an error of the hub names the key."""
    asked = []

    def open_hub(*given):
        asked.append(given)
        if given[0] == "who/nothing":
            raise ValueError("cannot load: no such name")
        read = lambda: iter([{"problem": "One?", "answer": "1"}])
        return row_source.RowSource("x", {}, ("problem", "answer"), 1, read)

    monkeypatch.setattr(row_source, "open_hub", open_hub)
    assert len(tables.read("who/what/main", "task.train", "dev").rows) == 1
    assert tables.read("who/what@v1.0", "task.train").total == 1
    assert asked == [("who/what", "main", "dev", ""), ("who/what", "", "train", "v1.0")]
    tables.read("who/what/main@v1.0#extra.1", "task.train", "dev")
    assert asked[-1] == ("who/what", "main", "extra.1", "v1.0")
    with pytest.raises(ValueError, match="task.train=who/nothing .*no such name; give a local"):
        tables.read("who/nothing", "task.train=who/nothing")
