"""Evaluation on held-out splits during training."""

from __future__ import annotations

import numpy as np
import pytest

from bridge_jax.rundir import logbook
from tests import tiny_runs
from tests.tiny_runs import go, quick  # noqa: F401 (fixtures)


@pytest.mark.slow
def test_held_out_problems_are_sampled_too(quick, tmp_path):
    """eval.samples: the mean of so many samples of each held-out problem, which solved.jsonl
    counts; no training prompt has them.
    """
    go(tmp_path, "grpo", steps=2, eval__every=2, eval__samples=3)
    lines, counted = logbook.read(str(tmp_path)), tiny_runs.rows(tmp_path / "solved.jsonl")
    evaluated = [line for line in lines if "eval/held_out_accuracy" in line]
    assert [line["step"] for line in evaluated] == [0, 2] == [row["step"] for row in counted]
    for line, row in zip(evaluated, counted):
        counts = [int(digit) for digit in row["held_out_sampled"]]
        assert len(counts) == 8 and line["eval/held_out_sampled_accuracy"] == pytest.approx(
            np.mean(counts) / 3
        )
    assert any(
        0 < int(digit) < 3 for row in counted for digit in row["held_out_sampled"]
    )  # the samples differ
    assert lines[-1]["compile/count"] == lines[1]["compile/count"]


def test_what_is_solved_is_what_the_accuracy_counts(quick, tmp_path):
    """solved.jsonl: a digit for each problem of the split; their mean is the accuracy of the line,
    and the transcripts tell the same problems.
    """
    go(tmp_path, "sft", steps=1, eval__every=1, log__eval_problems=8)
    lines, solved = logbook.read(str(tmp_path)), tiny_runs.rows(tmp_path / "solved.jsonl")
    assert [line["step"] for line in lines] == [row["step"] for row in solved] == [0, 1]
    for line, row in zip(lines, solved):
        digits = [int(digit) for digit in row["held_out"]]
        assert len(digits) == line["eval/held_out_n"] == 8
        assert np.mean(digits) == line["eval/held_out_accuracy"]
        written = tiny_runs.rows(tmp_path / "rollouts" / f"eval_{line['step']:06d}.jsonl")
        assert [one["outcome"] == "correct" for one in written] == [bool(digit) for digit in digits]
        assert {one["policy"] for one in written} == {"theta, greedy, held_out"}
