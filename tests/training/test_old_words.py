"""A run directory from before keys were renamed resumes, is reported, regraded and opened again."""

from __future__ import annotations

import json

import pytest

from bridge_jax.evaluation import comparison, regrade, report_samples, report_tables
from bridge_jax.training import reopen
from bridge_jax.training.step_log import StepLog
from tests import tiny_runs
from tests.tiny_runs import go, lines, quick  # noqa: F401

GIVEN = dict(eval__every=2, eval__measured_gain=True)
METRICS = {
    "grad/inner_sft_rl": "coop/inner",
    "grad/norm_ratio_sft_rl": "coop/norm_ratio",
    "measured_gain/gain": "coop/gain",
    "eval/demo_logp": "coop/expert_logp",
}
KEYS = {"policy": "actor", "fingerprints": "facts", "measured_gain": "cooperation"}


def old_words(value):
    """The value with old keys, in all of its dicts."""
    if isinstance(value, list):
        return [old_words(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, item in value.items():
        for new, old in METRICS.items():
            key = old + key.removeprefix(new) if key.startswith(new) else key
        found[KEYS.get(key, key)] = old_words(item)
    return found


def rewrite(path, whole: bool = False) -> None:
    """The JSON object of a file, or each of its lines, with old words."""
    texts = [path.read_text()] if whole else path.read_text().splitlines()
    path.write_text("".join(json.dumps(old_words(json.loads(text))) + "\n" for text in texts))


@pytest.mark.slow
def test_a_run_of_before_goes_on_and_is_read(quick, tmp_path, monkeypatch):  # noqa: F811
    """Its last line waited for its evaluation; the whole record is that of an unbroken run."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    go(whole, **GIVEN)
    meta = StepLog.meta

    def old_meta(self, number, cursors, pending_evaluation):
        found = meta(self, number, cursors, pending_evaluation=True)
        return found | {"unlogged": old_words(found.pop("deferred_line"))}

    monkeypatch.setattr(StepLog, "meta", old_meta)
    go(run, stop_at=2, **GIVEN)
    monkeypatch.setattr(StepLog, "meta", meta)
    rewrite(run / "config.json", whole=True)
    # the line that waits for its evaluation is in the checkpoint alone
    table = run / "metrics.jsonl"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    rewrite(table)
    for path in (run / "rollouts").iterdir():
        rewrite(path)
    stored = table.read_text()
    assert "coop/inner" in stored and "coop/expert_logp" in stored and "measured" not in stored
    assert '"facts"' in (run / "config.json").read_text()

    go(run, **GIVEN)
    assert lines(run) == lines(whole)
    assert "coop/inner" in table.read_text()
    groups = comparison.grouped([comparison.load(str(run)), comparison.load(str(whole))])
    assert [len(group) for group in groups.values()] == [2]
    curves = report_tables.curves(groups, "eval/held_out_accuracy")
    assert set(METRICS) <= set(curves)
    assert all(row[2] for one in report_samples.samples(groups) for row in one["rows"])
    assert all(row["outcome"] == row["outcome_now"] for row in regrade.regrade(run))
    setup, _ = reopen.rebuild(str(run))
    assert setup.settings.eval.measured_gain


def test_the_config_of_before_alone_is_opened(tmp_path):
    """Evaluation and export open a directory that was never resumed."""
    config = old_words(tiny_runs.config("bridge", **GIVEN).to_dict())
    (tmp_path / "config.json").write_text(json.dumps({"config": config, "facts": {}}))
    assert "cooperation" in config["eval"]
    assert reopen.recorded_config(str(tmp_path))["eval"]["measured_gain"]
    setup, _ = reopen.rebuild(str(tmp_path))
    assert setup.settings.eval.measured_gain
