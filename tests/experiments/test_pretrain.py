"""The base model of a study: trained, exported, and not made twice."""

from __future__ import annotations

import os
import sys

import jax
import pytest

from bridge_jax.filesystem import hf_folder
from experiments import pretrain
from tests import tiny_runs


@pytest.mark.slow
def test_pretrain(tmp_path):
    """A base model is trained and exported once, and not again."""
    config = tiny_runs.config("sft", steps=2)
    last = pretrain.pretrain(config, tmp_path, jax.devices()[:1])
    assert last["step"] == 2 and "eval/held_out_accuracy" in last
    assert hf_folder.hf_json(tmp_path / "model")["model_type"] == "qwen3"
    stamp = (tmp_path / "model" / "config.json").stat().st_mtime_ns
    assert pretrain.pretrain(config, tmp_path, jax.devices()[:1])["step"] == 2
    assert (tmp_path / "model" / "config.json").stat().st_mtime_ns == stamp


def test_nothing_is_exported_of_a_run_that_was_stopped(tmp_path, monkeypatch):
    """A run that was stopped exports no model and is no error."""
    monkeypatch.setattr(pretrain.trainer, "train", lambda *_, **__: {"stopped": True})
    monkeypatch.setattr(pretrain, "leave", sys.exit)
    with pytest.raises(SystemExit) as end:
        pretrain.pretrain(tiny_runs.config("sft", steps=2), tmp_path)
    assert not end.value.code and not (tmp_path / "model").exists()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are chosen on Linux alone")
def test_cores():
    """One core, before XLA counts them; 0 leaves all."""
    before = os.sched_getaffinity(0)
    try:
        pretrain.use_cores(0)
        assert os.sched_getaffinity(0) == before
        pretrain.use_cores(1)
        assert os.sched_getaffinity(0) == {max(before)}
    finally:
        os.sched_setaffinity(0, before)
