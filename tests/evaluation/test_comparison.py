"""Groups, curves and notes, against numbers worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bridge_jax.evaluation import comparison
from bridge_jax.evaluation.comparison import Run
from tests import errors


def a_run(seed=0, method="grpo", lines=None, steps=2, solved=None, **task) -> Run:
    config = {
        "seed": seed,
        "steps": steps,
        "method": {"name": method, "lam": 0.5},
        "task": {"name": "arithmetic", **task},
    }
    return Run(
        f"{method}_{seed}",
        config,
        lines or [{"step": 0, "m/x": 0.0}, {"step": 2, "m/x": 1.0 + seed}],
        solved or {},
    )


def test_groups_differ_in_more_than_the_seed():
    """Runs that differ in their seed alone form one group, named by what differs."""
    half = a_run(method="bridge")
    other = a_run(method="bridge")
    other.config["method"]["lam"] = 0.3
    groups = comparison.grouped([a_run(0), a_run(1), half, other])
    assert {name: len(group) for name, group in groups.items()} == {
        "grpo": 2,
        "bridge (lam=0.5)": 1,
        "bridge (lam=0.3)": 1,
    }


def test_groups_of_equal_numbers_and_of_other_problems():
    """1 and 1.0 are one setting; another number of held-out problems makes another group."""
    runs = [a_run(seed, method="bridge") for seed in range(4)]
    runs[0].config["method"]["lam"], runs[1].config["method"]["lam"] = 1, 1.0
    runs[2].config["eval"], runs[3].config["eval"] = (
        {"every": 9, "limit": 4},
        {"every": 5, "limit": 8},
    )
    assert sorted(map(len, comparison.grouped(runs).values())) == [1, 1, 2]


def test_curve():
    """Seeds 0 and 1 end at 1 and 2, so their mean at .75."""
    group = [a_run(0), a_run(1)]
    made = comparison.curve(group, "m/x", "step")
    assert len(made.runs) == 2 and made.mean[0] == 0 and made.mean[-1] == 1.5
    assert (
        comparison.curve([a_run(0), a_run(1, lines=[{"step": 0}, {"step": 2}])], "m/x", "step")
        is None
    )


def test_notes_name_what_cannot_be_compared():
    """Notes name different tasks, repeated seeds, unfinished runs and lacking means."""
    groups = {
        "a": [a_run(0, levels=[1]), a_run(0, levels=[1])],
        "b": [a_run(0, levels=[2], lines=[{"step": 1}])],
    }
    notes = "\n".join(comparison.notes(groups, "m/x"))
    assert "2 different tasks" in notes and "not distinct" in notes and "one seed" in notes
    assert "at step 1 of 2, not finished" in notes and "no m/x; b has no mean" in notes
    assert comparison.notes({"a": [a_run(0), a_run(1)]}, "m/x") == []
    nameless = a_run(7)
    del nameless.config["seed"]
    assert "grpo_7: its config names no seed" in comparison.notes(
        {"a": [nameless, a_run(0), a_run(0)]}, "m/x"
    )


def test_runs_are_comparable_only_on_the_same_problems():
    """Other rows of the metric's split make another task; other training rows do not."""
    rows = lambda held_out, train="t": {"rows": {"held_out": held_out, "train": train}}
    key = lambda found: comparison.eval_key(
        a_run()._replace(fingerprints=found), "eval/held_out_accuracy"
    )
    assert key(rows("x")) != key(rows("y")) and key(rows("x")) == key(rows("x", "u"))
    runs = [a_run(0)._replace(fingerprints=rows("x")), a_run(1)._replace(fingerprints=rows("y"))]
    (note,) = comparison.notes({"a": runs}, "eval/held_out_accuracy")[:1]
    assert "2 different tasks" in note


def test_curves_of_shares_stay_within_0_and_1():
    """Accuracies .95, 1, .97 and 1: Student's t would reach 1.02. Three seeds have no band."""
    metric = "eval/held_out_accuracy"
    lines = lambda last: [{"step": 0, metric: 0.5}, {"step": 2, metric: last}]
    group = [a_run(seed, lines=lines(last)) for seed, last in enumerate((0.95, 1.0, 0.97, 1.0))]
    made = comparison.curve(group, metric, "step")
    assert 0.82 < made.low[-1] < made.mean[-1] < made.high[-1] < 1
    other = [
        run._replace(lines=[{k: 9 * v for k, v in line.items()} for line in run.lines])
        for run in group
    ]
    assert comparison.curve(other, metric, "step").high[-1] > 9  # no shares, whatever their name
    three = comparison.curve(group[:3], metric, "step")
    assert three.mean[-1] == pytest.approx(2.92 / 3)
    assert np.isnan([*three.low, *three.high]).all()
    assert three.runs[:, -1] == pytest.approx([0.95, 1.0, 0.97])
    assert comparison.is_share("reward/mean") and comparison.is_share("bridge/ess")
    assert not comparison.is_share("rollout/length") and not comparison.is_share(
        "measured_gain/gain"
    )


def test_load(tmp_path):
    """Only whole run directories; the last solved line counts."""
    with errors.raises(ValueError, str(tmp_path / "*")):
        comparison.find(str(tmp_path / "*"))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "metrics.jsonl").write_text('{"step": 0}\n')
    with errors.raises(ValueError, str(tmp_path / "one" / "config.json")):
        comparison.load(str(tmp_path / "one"))
    (tmp_path / "one" / "config.json").write_text(json.dumps({"config": {"steps": 3}}))
    (tmp_path / "one" / "solved.jsonl").write_text(
        '{"step": 0, "a": "00"}\n{"step": 3, "a": "01"}\n'
    )
    with errors.raises(ValueError, f"{tmp_path}/typo"):
        comparison.find(f"{tmp_path}/o*,{tmp_path}/typo")
    run = comparison.load(comparison.find(str(tmp_path / "o*"))[0])
    assert run.solved["a"].tolist() == [0, 1]


def test_what_is_no_run_is_skipped_with_a_note(tmp_path):
    """Logs and pictures beside the runs, as the quickstart leaves them; a run is none of them."""
    for name in ("grpo", "sft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("")
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    for name in ("grpo.log", "sft.log", "quickstart.png"):
        (tmp_path / name).write_text("")
    pattern = f"{tmp_path}/*"
    assert comparison.find(pattern) == [f"{tmp_path}/grpo", f"{tmp_path}/sft"]
    assert comparison.skipped(pattern) == [
        "skipped, since they are no run directories: grpo.log, quickstart.png, sft.log"
    ]
    assert comparison.skipped(f"{tmp_path}/grpo") == []
