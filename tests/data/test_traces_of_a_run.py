"""A run trains on the right ones of its traces and keeps the counts among its fingerprints."""

from __future__ import annotations

import json
import string

import jax
import pytest

from bridge_jax.config import schema
from bridge_jax.data import tokenizers
from bridge_jax.data.traces import ROW_STATES
from bridge_jax.rundir import logbook, run_config
from bridge_jax.training import build as training_build
from bridge_jax.training import trainer
from bridge_jax.training.build import RunData, Setup
from configs import tasks as task_groups
from tests import errors, tiny_runs

MADE = [
    {"id": f"p{i}", "problem": f"What is {i} times {i}?", "answer": str(i * i)} for i in range(8)
]
LETTERS = "".join(c for c in string.printable if c not in "<>\r\x0b\x0c")
BOX = r"\boxed{%s}."


@pytest.fixture
def folder(tmp_path):
    """A data folder, and a tokenizer of the letters that its texts need."""
    for name, rows in {"train/limr": MADE[:6], "benchmarks/math500": MADE[6:]}.items():
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir()
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizers.CharTokenizer(LETTERS).save(tmp_path / "tokenizer")
    return tmp_path


def build(
    folder, traces: list[dict], method: str = "sft", allowed: bool = True, **given
) -> tuple[Setup, RunData]:
    """A run on the made-up problems with these traces; allowed: however many are lost."""
    path = folder / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in traces))
    config = tiny_runs.config(method, data__tokenizer=str(folder / "tokenizer"), **given)
    config.task = task_groups.group(
        "limr",
        data_dir=str(folder),
        allow_changed_data=True,
        held_out=("math500",),
        traces=str(path),
        allow_dropped=allowed,
    )
    config.model.arch.vocab_size = 128
    config.model.arch.max_position_embeddings = 1024
    config.data.buckets, config.rollout.max_new = (256,), 40
    return training_build.build(config, jax.devices()[:1])


def trace(i: int, solution: str) -> dict:
    return {"problem": MADE[i]["problem"], "solution": solution, "answer": MADE[i]["answer"]}


TRACES = [
    trace(1, BOX % 2),
    trace(1, "Right, but too long to be sampled: " + BOX % 1),
    trace(1, BOX % 1),
    trace(1, BOX % 1),
    trace(2, "Too long in all its solutions, which are " + BOX % 4),
    trace(3, BOX % 9),
    trace(4, BOX % 15),
    {"problem": "Nobody asks?", "solution": BOX % 1, "answer": "1"},
]
COUNTS = dict(problems=6, matched=4, rows=8, used=2, repeated=1, wrong=2, too_long=2, unmatched=1)


def test_a_run_trains_on_the_first_right_solution_that_fits_and_counts_every_row(folder, capsys):
    """A run trains on the first right solution that fits and reports what became of all."""
    setup, data = build(folder, TRACES)
    trained = {problem.question: problem.solution for problem in data.demos.problems}
    assert trained == {MADE[1]["problem"]: BOX % 1, MADE[3]["problem"]: BOX % 9}
    for problem, row in zip(data.demos.problems, data.demos.completions):
        assert data.tokenizer.decode(row) == problem.solution
    assert {key: value for key, value in data.demo_counts.items() if value} == COUNTS
    assert sum(data.demo_counts[state] for state in ROW_STATES) == len(TRACES)
    trainer.print_summary(setup, data, {"step": 0}, 1)
    output = capsys.readouterr().out
    assert "8 solutions for 4 of 6 problems: 2 used, 1 repeated, 2 wrong, " in output
    assert training_build.fingerprints(data)["demonstrations"] == data.demo_counts
    # a method without demonstrations has nothing to report
    assert "demonstrations" not in training_build.fingerprints(build(folder, TRACES, "grpo")[1])


def test_traces_that_are_mostly_lost_are_refused(folder):
    """Unless allowed, or where the method reads none; one in five, and further right ones, may
    be.
    """
    with errors.raises(ValueError, "task.traces=", "5 of 8 rows", "1 unmatched", "allow_dropped"):
        build(folder, TRACES, allowed=False)
    assert not build(folder, TRACES, "grpo", allowed=False)[1].demos.problems
    right = [trace(i, BOX % (i * i)) for i in range(4)]
    assert len(build(folder, [*right, TRACES[-1]], allowed=False)[1].demos.problems) == 4
    assert len(build(folder, [*right, *right], allowed=False)[1].demos.problems) == 4


def test_further_rows_that_change_no_demonstration_do_not_stop_a_run(folder, tmp_path):
    """The fingerprint of the demonstrations decides whether a run is the same; the report is
    kept.
    """
    unmatched = {"problem": "Nor this?", "solution": BOX % 1, "answer": "1"}
    more = training_build.fingerprints(build(folder, [*TRACES, unmatched])[1])
    other = training_build.fingerprints(build(folder, [trace(1, "So " + BOX % 1), *TRACES])[1])
    begun = training_build.fingerprints(build(folder, TRACES)[1])
    workdir = str(tmp_path / "run")
    record = run_config.check_run(workdir, {"steps": 1}, {}, fingerprints=begun)
    run_config.write_config(workdir, record)
    with logbook.Logbook(workdir, -1) as book:
        book.write(0, {})
    go_on = lambda fingerprints: run_config.check_run(
        workdir, {"steps": 1}, {}, ignore=trainer.CHANGEABLE_KEYS, fingerprints=fingerprints
    )
    assert go_on(more)["fingerprints"]["demonstrations"]["unmatched"] == 2
    old = dict(begun)
    del old["demonstrations"]  # as a run says that was begun before there was a report
    run_config.write_config(workdir, record | {"fingerprints": schema.to_json(old)})
    assert go_on(begun)
    with pytest.raises(ValueError, match="fingerprints.rows.demos"):
        go_on(other)


def test_no_demonstration_left_says_what_became_of_all(folder, caplog):
    """The error says why no solution is left, and which key gives others."""
    with errors.raises(ValueError, "task.traces=FILE"):
        build(folder, TRACES[-1:])
    assert "6 without a solution" in caplog.text
    assert "1 solutions match no problem" in caplog.text
    with errors.raises(ValueError, "1 problems", "at most 40"):
        build(folder, TRACES[4:5])
