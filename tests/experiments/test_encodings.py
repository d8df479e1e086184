"""Every text file that the commands read: in UTF-16 it is refused by its name, with the way out,
and stays as it is.
"""

from __future__ import annotations

import json

import pytest

from bridge_jax.data import datasets, traces
from bridge_jax.evaluation import comparison, regrade, report_samples, transcripts
from bridge_jax.filesystem import hf_folder
from bridge_jax.rundir import logbook, run_config
from bridge_jax.training import reopen
from experiments import plan
from experiments.study import results
from experiments.sweep import results as sweep_results
from tests import errors

CONFIG = json.dumps({"config": {"steps": 1, "task": {"name": "arithmetic"}}})
LINE = json.dumps({"step": 1, "reward/mean": 0.5}) + "\n"
ROW = json.dumps({"id": 1, "sample": 0}) + "\n"


def rerun(folder):
    """A run that goes on in the directory."""
    run_config.check_run(str(folder), {"steps": 1}, {})


def go_on(folder):
    """What a run does with its own record when it resumes at step 0."""
    logbook.Logbook(str(folder), 0)


def samples(folder):
    """The report's page of samples."""
    run = comparison.Run(str(folder), {}, [], {})
    return report_samples.samples({"a": [run]})


@pytest.mark.parametrize(
    "name, text, read",
    [
        ("config.json", CONFIG, lambda folder: rerun(folder)),
        ("config.json", CONFIG, lambda folder: comparison.load(str(folder))),
        ("config.json", CONFIG, lambda folder: reopen.rebuild(str(folder))),
        ("config.json", CONFIG, lambda folder: regrade.task_of(folder)),
        ("config.json", CONFIG, lambda folder: reopen.recorded_config(str(folder))),
        ("config.json", '{"model_type": "qwen3"}', lambda folder: hf_folder.hf_json(folder)),
        ("metrics.jsonl", LINE, lambda folder: logbook.read(str(folder))),
        ("metrics.jsonl", LINE, lambda folder: go_on(folder)),
        ("solved.jsonl", LINE, lambda folder: logbook.read_solved(str(folder))),
        ("rollouts/step_000001.jsonl", ROW, lambda folder: samples(folder)),
        ("manifest.json", "{}", lambda folder: transcripts.open_folder(folder, {})),
        ("math500.jsonl", ROW, lambda folder: transcripts.Transcripts(folder / "math500.jsonl")),
        ("results.jsonl", ROW, lambda folder: sweep_results.done(str(folder / "results.jsonl"))),
        ("results.jsonl", ROW, lambda folder: results.read(folder)),
        ("plans.jsonl", ROW, lambda folder: plan.earlier(str(folder / "plans.jsonl"))),
        ("limr.jsonl", ROW, lambda folder: datasets.jsonl(folder / "limr.jsonl")),
        ("traces.jsonl", ROW, lambda folder: traces.read_traces(str(folder / "traces.jsonl"))),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_file_in_another_encoding(tmp_path, name, text, read, encoding):
    """A file in UTF-16 is refused with its name and stays unchanged."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    path.write_bytes((mark + text).encode(encoding))
    # a run that has begun
    (tmp_path / "checkpoints" / "step_000001").mkdir(parents=True)
    before = path.read_bytes()
    with errors.raises(ValueError, name, "iconv -f UTF-16"):
        read(tmp_path)
    assert path.read_bytes() == before


def test_a_mark_of_utf8_is_read(tmp_path):
    """As some editors write it."""
    (tmp_path / "config.json").write_bytes(CONFIG.encode("utf-8-sig"))
    assert comparison.load(str(tmp_path)).config == json.loads(CONFIG)["config"]
    assert hf_folder.hf_json(tmp_path) == json.loads(CONFIG)
