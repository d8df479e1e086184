"""Scores against hand-computed numbers and brute force; the tables that show them; the published numbers."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import pathlib
import statistics

import numpy as np
import pytest

from bridge_jax import results
from bridge_jax.results import Score

PUBLISHED = json.loads(
    (
        pathlib.Path(__file__).resolve().parents[1] / "experiments" / "paper" / "published.json"
    ).read_text()
)


def rows(id: int, sampled: str = "", greedy: str = "", lenient: str | None = None) -> list[dict]:
    """Transcripts of one problem: a letter per row, c correct, w wrong."""
    names = {"c": "correct", "w": "wrong", "n": "no_answer"}
    other = lenient or sampled + greedy
    samples = [*range(len(sampled)), *([results.GREEDY] if greedy else [])]
    return [
        {
            "id": id,
            "sample": sample,
            "outcome": names[a],
            "outcome_lenient": names[b],
            "tokens": 10,
            "stopped": a != "n",
        }
        for sample, a, b in zip(samples, sampled + greedy, other)
    ]


def test_binomial_error():
    """By hand: 3 of 10 -> share 5/14; at 0 of n it is not 0."""
    assert results.binomial_error(3, 10) == pytest.approx(math.sqrt(5 / 14 * 9 / 14 / 14))
    assert results.binomial_error(0, 100) == pytest.approx(math.sqrt(2 / 104 * 102 / 104 / 104))


def test_clustered_error():
    """Equals the binomial one on zeros and ones; on fractions, the spread of 1/2, 1/2 beside 0, 0, 1, 1: 1/6 * 1."""
    assert results.clustered_error([1, 1, 1, 0, 0, 0, 0, 0, 0, 0]) == pytest.approx(
        results.binomial_error(3, 10)
    )
    assert results.clustered_error([0.5, 0.5]) == pytest.approx(math.sqrt(4 * 0.25) / 6)
    many = [i % 5 / 4 for i in range(4000)]
    assert results.clustered_error(many) == pytest.approx(
        statistics.stdev(many) / math.sqrt(4000), rel=1e-3
    )


@pytest.mark.parametrize(
    "n,c,k,expected",
    [
        (4, 1, 2, 0.5),
        (4, 2, 2, 5 / 6),
        (5, 0, 3, 0),
        (5, 3, 3, 1),
        (10, 3, 1, 0.3),
        (4, 4, 4, 1),
        (8, 1, 8, 1),
    ],
)
def test_pass_at_k_by_hand(n, c, k, expected):
    assert results.pass_at_k(n, c, k) == pytest.approx(expected)


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample():
    for n, c, k in [(6, 2, 3), (7, 1, 4), (5, 4, 2)]:
        subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
        assert results.pass_at_k(n, c, k) == pytest.approx(sum(map(max, subsets)) / len(subsets))


def test_sampling_variance():
    """k = 1: p (1 - p) / (n - 1); any k: the jackknife, spelled out; k = n: it cannot be told."""
    assert results.sampling_variance(8, 3, 1) == pytest.approx(3 / 8 * 5 / 8 / 7)
    assert results.sampling_variance(8, 0, 2) == results.sampling_variance(8, 8, 2) == 0
    assert results.sampling_variance(8, 3, 8) is None and results.sampling_variance(1, 1, 1) is None
    for n, c, k in [(6, 2, 3), (8, 1, 4), (5, 4, 2)]:
        left = [results.pass_at_k(n - 1, c - (j < c), k) for j in range(n)]
        expected = (n - 1) / n * sum((x - sum(left) / n) ** 2 for x in left)
        assert results.sampling_variance(n, c, k) == pytest.approx(expected)


def test_sampling_error_is_the_spread_over_new_samples():
    """Simulated: problems of fixed difficulty, sampled again and again."""
    rng, p, n = np.random.default_rng(0), np.asarray([0.1, 0.5, 0.8, 0.9]), 16
    for k, near in ((1, 0.03), (2, 0.08), (4, 0.2)):
        draws = rng.binomial(n, p, (4000, 4))
        found = [results.sampled_score(list(map(int, counts)), n, k) for counts in draws]
        true = np.std([score.value for score in found])
        told = math.sqrt(np.mean([score.sampling_error**2 for score in found]))
        assert told == pytest.approx(true, rel=near), k


def test_steps_to():
    assert [results.steps_to(n) for n in (1, 2, 4, 6, 8)] == [
        [1],
        [1, 2],
        [1, 2, 4],
        [1, 2, 4, 6],
        [1, 2, 4, 8],
    ]


def test_scores_by_hand():
    """Three problems, the last was too long to be asked: 2 of 4, 1 of 4, nothing; greedy right on one of three."""
    table = results.scores(
        [1, 2, 3], rows(1, "cwcw", "c") + rows(2, "wwwc", "w", lenient="ccccc"), samples=4
    )
    strict, lenient = table["strict"], table["lenient"]
    assert list(strict) == ["greedy pass@1", "avg@4", "pass@1", "pass@2", "pass@4"]
    assert strict["greedy pass@1"] == Score(1 / 3, results.binomial_error(1, 3), None)
    assert strict["avg@4"] == strict["pass@1"] and strict["avg@4"].value == pytest.approx(
        (0.5 + 0.25) / 3
    )
    assert strict["avg@4"].stderr == pytest.approx(results.clustered_error([0.5, 0.25, 0]))
    assert strict["avg@4"].sampling_error == pytest.approx(math.sqrt(0.25 / 3 + 0.1875 / 3) / 3)
    assert strict["pass@2"].value == pytest.approx((5 / 6 + 1 / 2) / 3)
    assert (
        strict["pass@4"].value == pytest.approx(2 / 3) and strict["pass@4"].sampling_error is None
    )
    assert lenient["avg@4"].value == pytest.approx(1.5 / 3) and lenient[
        "greedy pass@1"
    ].value == pytest.approx(2 / 3)
    assert list(results.scores([1], rows(1, "cw"), samples=2, greedy=False)["strict"]) == [
        "avg@2",
        "pass@1",
        "pass@2",
    ]
    assert list(results.scores([1], rows(1, "", "c"))["strict"]) == ["greedy pass@1"]


def test_average():
    """Mean of the benchmarks, not of the problems; errors in quadrature over their number."""
    found = results.average([Score(0.5, 0.03, 0.01), Score(0.1, 0.04, 0.02)])
    assert found.value == pytest.approx(0.3) and found.stderr == pytest.approx(0.05 / 2)
    assert found.sampling_error == pytest.approx(math.sqrt(0.0005) / 2)
    assert results.average([Score(0.5, 0.03, None), Score(0.1, 0.04, 0.02)]).sampling_error is None


def test_facts():
    """Shares of all rows, of those that could not be asked too; lengths of those that were made."""
    told = results.facts(rows(1, "cn") + rows(2, "wc"), too_long=1, per_problem=2)
    assert told["rows"] == 4 and told["tokens"] == 10 and told["truncated"] == 0.25
    strict = told["outcomes"]["strict"]
    assert strict["correct"] == pytest.approx(2 / 6) and strict["too_long"] == pytest.approx(2 / 6)
    assert sum(strict.values()) == pytest.approx(1) and strict["timeout"] == 0


def test_published_averages_are_the_means_of_their_rows():
    names = ["math500", "minerva_math", "olympiadbench", "aime24", "amc23"]
    lines = results.published_lines(PUBLISHED, names)
    assert len(lines) == 8 and all(line.published and "Qwen2.5-3B" in line.label for line in lines)
    for line, row in zip(lines, PUBLISHED["rows"]):
        assert list(row["scores"]) == names
        assert 100 * line.cells["average"].value == pytest.approx(row["average"], abs=0.05001), (
            line.label
        )
    part = results.published_lines(PUBLISHED, ["aime24", "gsm8k"])
    assert (
        part[-1].cells == {"aime24": Score(0.133)} and "BRIDGE" in part[-1].label
    )  # no average beside gsm8k
    assert results.published_lines(PUBLISHED, ["gsm8k"]) == []
    both = results.published_lines(PUBLISHED, ["aime24", "amc23"])[-1]
    assert both.cells["average"].value == pytest.approx((0.133 + 0.475) / 2)


def report(*names: str) -> dict:
    """Two problems each, one of them right."""
    part = {
        "n": 2,
        "too_long": 0,
        "facts": {"greedy": results.facts(rows(1, "", "c") + rows(2, "", "w"), 0)},
        "scores": results.scores([1, 2], rows(1, "cw", "c") + rows(2, "ww", "w"), samples=2),
    }
    settings = dict(
        dtype="float32", max_new=9, prompt="boxed", temperature=0.7, seed=3, samples=2, greedy=True
    )
    return {"model": "a_b&c", "settings": settings, "benchmarks": dict.fromkeys(names, part)}


def test_tables():
    made = results.tables(report("math500", "aime24"), PUBLISHED)
    text, error = made["table.md"], results.clustered_error([1, 0])
    lines = text.splitlines()
    assert lines[0] == "| % | math500 (n=2) | aime24 (n=2) | average |"
    cell, mean = f"50.0 ± {100 * error:.1f}", f"50.0 ± {100 * error / math.sqrt(2):.1f}"
    assert lines[2] == f"| a_b&c, greedy pass@1 | {cell} | {cell} | {mean} |"
    assert "| published: Qwen2.5-3B BRIDGE | 66.2 | 13.3 | 39.8 |" in lines
    assert "those of arXiv 2509.06948 v3, not ours" in text and "temperature 0.7, seed 3" in text
    assert "| a_b&c, pass@1 |" not in text and any(
        line.startswith("| a_b&c, pass@2, lenient |") for line in lines
    )
    content = json.loads(made["results.json"])
    assert content["benchmarks"]["aime24"]["scores"]["strict"]["greedy pass@1"] == {
        "value": 0.5,
        "stderr": error,
        "sampling_error": None,
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
        error,
    )
    assert {record["published"] for record in records if "published" in record["line"]} == {"1"}
    tex = made["table.tex"]
    assert r"a\_b\&c, greedy pass@1 & 50.0 $\pm$ " in tex and tex.count(r"\midrule") == 2
    assert all(
        line.count("&") - line.count(r"\&") == 3
        for line in tex.splitlines()
        if line.endswith(r"\\")
    )


def test_without_published_benchmarks_nothing_is_said_of_them():
    made = results.tables(report("gsm8k"), PUBLISHED)
    assert "published" not in made["table.md"] and "published" not in json.loads(
        made["results.json"]
    )
    assert made["table.tex"].count(r"\midrule") == 1
