"""experiments.grade and experiments.regrade as commands; the speed that experiments.bench grade
measures.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.tiny_runs import quick, unbroken  # noqa: F401 (fixtures)

ROOT = pathlib.Path(__file__).resolve().parents[2]


def command(module: str, *args: str, stdin: str = ""):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", *args],
        cwd=ROOT,
        input=stdin,
        text=True,
        capture_output=True,
        timeout=300,
    )


PAIRS = [
    ({"gold": "11", "prediction": r"So \boxed{11_2}."}, "wrong"),
    ({"gold": "42", "prediction": "mentions 42"}, "no_answer"),
    ({"gold": "x^2-1", "prediction": r"\boxed{(x-1)(x+1)}", "note": "kept"}, "correct"),
    ({"gold": "7", "prediction": r"\boxed{(10!)!}"}, "parse_error"),
    ({"gold": "1000", "prediction": r"\boxed{1000.05}", "rule": {"relative": 0.001}}, "correct"),
    ({"gold": "1000", "prediction": r"\boxed{1000.05}"}, "wrong"),
    ({"gold": "3", "prediction": "\ud800"}, "no_answer"),
]


def lines(done) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_grade_writes_each_line_with_its_outcome(tmp_path):
    """Each line is written with its outcome, and the counts are shown."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row, _ in PAIRS))
    done = command("grade", f"--file={path}")
    assert done.returncode == 0, done.stderr
    assert lines(done) == [row | {"outcome": outcome} for row, outcome in PAIRS]
    assert "7 graded: correct 2 (28.6%), wrong 2" in done.stderr
    stdin = command(
        "grade", "--file=-", "--reading=bare", stdin='{"gold": "1/2", "prediction": "0.5"}\n\n'
    )
    assert [row["outcome"] for row in lines(stdin)] == ["correct"], stdin.stderr


@pytest.mark.parametrize(
    "bad, message",
    [
        ('{"gold": "1"', "line 3: no JSON"),
        pytest.param(
            '{"gold": "1"}',
            'it must be an object with the texts "gold" and "prediction"',
            marks=pytest.mark.slow,
        ),
        pytest.param(
            '{"gold": " ", "prediction": "1"}',
            "gold is ' '; nothing could equal it",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            '{"gold": "1", "prediction": "1", "rule": {"relativ": 1}}',
            "rule is {'relativ': 1}; allowed:",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_bad_line_is_named_and_what_stands_before_it_is_graded(bad, message):
    """A bad line is an error with its number, after the earlier ones."""
    good = json.dumps({"gold": "1", "prediction": r"\boxed{1}"})
    done = command("grade", "--file=-", stdin=f"{good}\n{good}\n{bad}\n{good}\n")
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert [row["outcome"] for row in lines(done)] == ["correct", "correct"]


@pytest.mark.slow
def test_a_file_that_is_no_utf8_is_named(tmp_path):
    """Also where it comes from stdin, and whatever the locale is; a byte-order mark of UTF-8 and
    CRLF are read.
    """
    row = {"gold": "√2", "prediction": "so \\boxed{√2} é"}
    text = json.dumps(row, ensure_ascii=False) + "\r\n"
    path = tmp_path / "pairs.jsonl"
    for encoding in ("utf-16", "latin-1", "utf-8-sig"):
        path.write_bytes(
            (text.replace("√2", "2") if encoding == "latin-1" else text).encode(encoding)
        )
        done = command("grade", f"--file={path}")
        if encoding == "utf-8-sig":
            assert [line["outcome"] for line in lines(done)] == ["correct"], done.stderr
        else:
            assert done.returncode == 2 and "Traceback" not in done.stderr
            assert "pairs.jsonl, line 1 is not UTF-8 text" in done.stderr and "iconv" in done.stderr
    stdin = subprocess.run(
        [sys.executable, "-m", "experiments.grade", "--file=-"],
        cwd=ROOT,
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        input=text.encode(),
        capture_output=True,
        timeout=300,
    )
    assert json.loads(stdin.stdout)["outcome"] == "correct", stdin.stderr


def test_grade_without_a_file():
    """A missing file is an error without a traceback."""
    done = command("grade", "--file=nowhere.jsonl")
    assert (
        done.returncode == 2 and "nowhere.jsonl" in done.stderr and "Traceback" not in done.stderr
    )


@pytest.mark.slow
def test_regrade_writes_what_changes(unbroken, tmp_path):
    """As a command, in a process whose arithmetic grader is the real one: parity said something
    else.
    """
    out = tmp_path / "changed.jsonl"
    done = command("regrade", str(unbroken("grpo")), f"--out={out}")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows and all(row["outcome"] != row["outcome_now"] for row in rows)
    assert f"{len(rows)} outcomes change" in done.stdout


@pytest.mark.slow
def test_regrade_of_no_run(tmp_path, unbroken):
    """A folder that is no run, or has no rollouts, is an error without a traceback."""
    for folder, message in (
        (tmp_path, "is not a run directory"),
        (unbroken("sft"), "has no rollouts"),
    ):
        done = command("regrade", str(folder))
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert "expected one run directory" in command("regrade").stderr


@pytest.mark.slow
def test_bench_grade():
    """The mix that stands in for real data, and its rate, which is the machine's."""
    done = command("bench", "grade", "--repeats=1")
    assert done.returncode == 0, done.stderr
    line = lines(done)[-1]
    assert line["case"] == "grade" and line["answers"] == 8000 and line["median_of"] == 1
    assert (
        line["cheap_share"] >= 0.95
        and line["answers_per_s"] > 0
        and 0.5 <= line["correct_share"] < 0.55
    )
    assert command("bench", "sing").returncode == 2
