"""The run of all checks: errors become FAILs, other hosts' records are heard, the subject is
valid.
"""

from __future__ import annotations

import json

import jax
import pytest

from bridge_jax import methods
from bridge_jax.distributed import multihost
from bridge_jax.grading import selftest
from bridge_jax.preflight import checks, machine, subject
from bridge_jax.preflight.record import FAIL, NOTE, OK, Record
from bridge_jax.training import trainer
from tests import tiny_runs
from tests.preflight import subjects


def test_an_error_is_a_fail():
    """With its type and text on one line; memory has a way out of its own."""

    def check(_):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of\nmemory")

    (record,) = checks.perform("update", check, None)
    assert record.grade == FAIL and "RuntimeError" in record.text and "\n" not in record.line()
    assert "batch.microbatch_rows" in record.way_out


def test_the_loss_of_a_host_ends_the_checks():
    """It is no finding about these devices."""

    def check(_):
        raise multihost.Lost("host 1 is gone")

    with pytest.raises(multihost.Lost):
        checks.perform("hosts", check, None)


def test_the_worst_of_all_hosts(monkeypatch):
    """A FAIL of another host is printed in place of an ok here, with the host's name."""
    mine, theirs = [Record("copy", OK, "fast")], [Record("copy", FAIL, "slow", "mend it")]
    monkeypatch.setattr(multihost, "count", lambda: 2)
    monkeypatch.setattr(multihost, "name", lambda i: f"host {i}")
    texts = [json.dumps(mine), json.dumps(theirs)]
    monkeypatch.setattr(multihost, "gather", lambda *given, **how: texts)
    assert checks.agreed("copy", mine) == [Record("copy", FAIL, "host 1: slow", "mend it")]


@pytest.mark.parametrize("method", methods.names())
def test_the_tiny_model_takes_every_method(method):
    """On one device and on eight, with the same batch."""
    one = subjects.make(method=method)
    eight = subjects.make(devices=8, method=method, batch__prompts_per_step=16)
    alone = subject.on_one(eight, jax.devices()[0])
    assert eight.tiny().settings.batch.rollout_rows == alone.settings.batch.rollout_rows
    assert eight.tiny().settings.batch.demo_padding == alone.settings.batch.demo_padding == 0
    assert one.tiny().settings.method_name == method


def test_the_tiny_model_has_a_batch_of_its_own():
    """Whatever parts the run divides its own into."""
    parts = dict(method__bridge__shadow__share=0.2, method__bridge__sft_microbatches=5)
    sizes = dict(batch__prompts_per_step=10, batch__demos_per_step=5, rollout__calls=5)
    made = subjects.make(method="bridge", **parts, **sizes)
    assert made.tiny().settings.batch.prompts_per_step == 4


@pytest.mark.parametrize("name", ["qwen25_3b", "llama32_3b", "qwen3_8b"])
def test_the_tiny_model_is_of_the_runs_family(name):
    """Heads, dtypes and family stay, also of the paper's models, without a model hub."""
    config = __import__(f"configs.{name}", fromlist=["get_config"]).get_config("bridge")
    made = subject.make(config, "", jax.devices()[:8])
    small = made.tiny()
    for key in ("family", "heads", "kv_heads"):
        assert getattr(small.cfg, key) == getattr(made.setup.cfg, key)
    assert small.settings.model.dtype == "bfloat16" and small.cfg.width == subject.WIDTH


def test_memory_that_does_not_suffice(monkeypatch):
    """The state, the sampler's weights and the cache, against the pool of a device."""
    made = subjects.make(method="bridge")
    need = machine.least(made.setup)
    grades = []
    for pool in (0.9 * need, 1.1 * need, 10 * need):
        monkeypatch.setattr(machine, "pool_of", lambda device, count, pool=pool: pool)
        grades.append(machine.memory(made).grade)
    assert grades == [FAIL, NOTE, OK]


def test_a_broken_grader(monkeypatch):
    """Its first line says how many pairs; a task without workers needs none."""
    made = subjects.make()
    assert machine.grader(made).grade == OK

    def broken(config):
        raise selftest.GraderBroken("3 of 72 known pairs are graded wrongly\ngold")

    monkeypatch.setattr(trainer, "grader", broken)
    record = machine.grader(made)
    assert record.grade == FAIL and record.text == "3 of 72 known pairs are graded wrongly"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "bridge"])
def test_the_real_programs(tmp_path, method):
    """Those of the tiny run: memory, tokens a second, seconds of an update, time of the run."""
    made = subjects.make(tmp_path, method=method)
    records = {record.name: record for record in checks.perform("real", checks.real.check, made)}
    sampled = ["sampling"] if method == "bridge" else []
    assert list(records) == ["memory, real", *sampled, "update", "the run"]
    assert all(record.grade == OK for record in records.values())
    assert f"for {tiny_runs.STEPS} steps" in records["the run"].text
