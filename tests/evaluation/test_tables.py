"""The tables of an evaluation, and the numbers that the paper published."""

from __future__ import annotations

import csv
import io
import json
import math
import pathlib

import pytest

from bridge_jax.evaluation import scores, tables
from bridge_jax.evaluation.scores import Score
from tests.evaluation.graded_rows import rows

PUBLISHED = json.loads(
    (
        pathlib.Path(__file__).resolve().parents[2] / "experiments" / "paper" / "published.json"
    ).read_text()
)


def test_published_averages_are_the_means_of_their_rows():
    """Published averages are the means of their rows, or absent."""
    names = ["math500", "minerva_math", "olympiadbench", "aime24", "amc23"]
    lines = tables.published_lines(PUBLISHED, names)
    assert len(lines) == 8 and all(line.published and "Qwen2.5-3B" in line.label for line in lines)
    for line, row in zip(lines, PUBLISHED["rows"]):
        assert list(row["scores"]) == names
        assert 100 * line.cells["average"].value == pytest.approx(row["average"], abs=0.05001), (
            line.label
        )
    part = tables.published_lines(PUBLISHED, ["aime24", "gsm8k"])
    assert (
        part[-1].cells == {"aime24": Score(0.133)} and "BRIDGE" in part[-1].label
    )  # no average, since gsm8k was not published
    assert tables.published_lines(PUBLISHED, ["gsm8k"]) == []
    both = tables.published_lines(PUBLISHED, ["aime24", "amc23"])[-1]
    assert both.cells["average"].value == pytest.approx((0.133 + 0.475) / 2)


def report(*names: str) -> dict:
    """Two problems each, one of them right."""
    part = {
        "n": 2,
        "too_long": 0,
        "lengths_and_outcomes": {
            "greedy": scores.lengths_and_outcomes(rows(1, "", "c") + rows(2, "", "w"), 0)
        },
        "scores": scores.scores([1, 2], rows(1, "cw", "c") + rows(2, "ww", "w"), samples=2),
    }
    settings = dict(
        dtype="float32", max_new=9, prompt="boxed", temperature=0.7, seed=3, samples=2, greedy=True
    )
    return {"model": "a_b&c", "settings": settings, "benchmarks": dict.fromkeys(names, part)}


def test_tables():
    """The Markdown, JSON, CSV and TeX files hold the same scores and intervals."""
    made = tables.tables(report("math500", "aime24"), PUBLISHED)
    text, score = made["table.md"], scores.problems_score([1.0, 0.0])
    lines = text.splitlines()
    assert lines[0] == "| % | math500 (n=2) | aime24 (n=2) | average |"
    half = 50 - 100 * score.interval[0]
    cell, mean = (f"50.0 [{50 - one:.1f}, {50 + one:.1f}]" for one in (half, half / math.sqrt(2)))
    assert lines[2] == f"| a_b&c, greedy pass@1 | {cell} | {cell} | {mean} |"
    assert "| published: Qwen2.5-3B BRIDGE | 66.2 | 13.3 | 39.8 |" in lines
    assert "those of arXiv 2509.06948 v3, not ours" in text and "temperature 0.7, seed 3" in text
    assert "| a_b&c, pass@1 |" not in text and any(
        line.startswith("| a_b&c, pass@2, lenient |") for line in lines
    )
    content = json.loads(made["results.json"])
    assert content["benchmarks"]["aime24"]["scores"]["strict"]["greedy pass@1"] == {
        "value": 0.5,
        "stderr": score.stderr,
        "sampling_error": None,
        "interval": list(score.interval),
        "sampling_interval": None,
    }
    assert (
        content["averages"]["a_b&c, avg@2"]["value"] == 0.25 and content["published"] == PUBLISHED
    )
    records = list(csv.DictReader(io.StringIO(made["table.csv"])))
    first = records[0]
    assert (first["line"], first["benchmark"], first["n"], float(first["stderr"])) == (
        "a_b&c, greedy pass@1",
        "math500",
        "2",
        score.stderr,
    )
    assert (float(first["low"]), float(first["high"])) == score.interval
    assert first["sampling_low"] == first["sampling_high"] == ""
    assert {record["published"] for record in records if "published" in record["line"]} == {"1"}
    tex = made["table.tex"]
    assert r"a\_b\&c, greedy pass@1 & " + cell in tex and tex.count(r"\midrule") == 2
    assert all(
        line.count("&") - line.count(r"\&") == 3
        for line in tex.splitlines()
        if line.endswith(r"\\")
    )


def test_without_published_benchmarks_nothing_is_said_of_them():
    """Without a published benchmark, no table mentions published rows."""
    made = tables.tables(report("gsm8k"), PUBLISHED)
    assert "published" not in made["table.md"] and "published" not in json.loads(
        made["results.json"]
    )
    assert made["table.tex"].count(r"\midrule") == 1
