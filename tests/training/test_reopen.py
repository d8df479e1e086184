"""A run directory opened again: its config, its weights without the rest, its defaults."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from bridge_jax.models import lora
from bridge_jax.models.precision import dtype_of
from bridge_jax.rundir import checkpoint
from bridge_jax.tasks import custom
from bridge_jax.training import reopen
from tests import errors, tiny_runs
from tests.tiny_runs import quick, unbroken  # noqa: F401 (fixtures)


@pytest.mark.parametrize(
    "text", [None, "{", "[1]", '{"model_type": "llama", "config": {"a": 1}}', '{"config": 3}', "{}"]
)
def test_what_is_no_run_has_no_config(tmp_path, text):
    """No file, no JSON, the config of a model folder, a record without a config."""
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert reopen.recorded_config(str(tmp_path)) == {}


@pytest.mark.parametrize("text", [None, "{", "{}", '{"config": 3}'])
def test_what_is_no_run_is_not_rebuilt(tmp_path, text):
    """The error names the place."""
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with errors.raises(ValueError, str(tmp_path), "config.json"):
        reopen.rebuild(str(tmp_path))


def test_a_config_is_read_on_any_devices(tmp_path):
    """A run of bfloat16 on another mesh and batch: rebuilt in fp32, with what fits here."""
    config = tiny_runs.config("grpo", model__dtype="bfloat16", mesh__fsdp=64)
    config.batch.prompts_per_step = 64
    (tmp_path / "config.json").write_text(json.dumps({"config": config.to_dict()}))
    setup, data = reopen.rebuild(str(tmp_path))
    assert setup.settings.model.dtype == "float32" and setup.settings.method_name == "grpo"
    assert setup.mesh.size == jax.device_count()
    assert setup.settings.task_name == data.task.name == "arithmetic"
    assert reopen.recorded_config(str(tmp_path))["model"]["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="checkpoint.every"):
        reopen.restore_params(setup, str(tmp_path))


def test_defaults_of_an_evaluation():
    """On the run's own task they are those of its evaluations; on others the model's alone."""
    setup, _ = tiny_runs.build.build(tiny_runs.config(eval__limit=5), jax.devices()[:1])
    own, other = (reopen.eval_defaults(setup.settings, own) for own in (True, False))
    assert (own.limit, own.buckets, own.max_new) == (5, (6,), 15)
    fresh = reopen.Defaults(dtype=other.dtype)
    assert other._replace(prompt=fresh.prompt, stop=fresh.stop, task_stop=fresh.task_stop) == fresh
    assert (own.dtype, own.stop, own.task_stop) == (other.dtype, other.stop, other.task_stop)


def test_columns_of_solutions_are_no_default_of_an_evaluation():
    """A file of questions and answers has none."""
    task = custom.Config("x", columns="problem:q,solution:s,answer:a", reward="exact")
    found = reopen.own_benchmark(task)
    assert (found["columns"], found["reward"]) == ("problem:q,answer:a", "exact")


def test_the_shadow_and_the_optimizer_are_not_read(quick, unbroken):
    """Their part of the checkpoint is the larger one, and no evaluation needs it."""
    workdir = str(unbroken("bridge"))
    setup, _ = reopen.rebuild(workdir)
    parts, step = reopen.restore_params(setup, workdir)
    assert step == tiny_runs.STEPS and parts.theta_hat is checkpoint.UNREAD
    saved = tiny_runs.state(unbroken("bridge"))
    np.testing.assert_array_equal(parts.theta["embed"], saved[".params.theta['embed']"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_of_a_run_are_its_merged_policy(unbroken, dtype):
    """theta + w, cast behind the sum as in training, bit for bit; w matters."""
    (setup, _), dtype = reopen.rebuild(str(unbroken("bridge"))), dtype_of("dtype", dtype)
    parts, _ = reopen.restore_params(setup, str(unbroken("bridge")))
    loaded, at_step = reopen.open_run(str(unbroken("bridge")), own_task=True).load(
        setup.mesh, dtype
    )
    assert at_step == f", step {tiny_runs.STEPS}"
    merge = jax.jit(lambda theta, w: lora.merge(setup.lora, theta, w, dtype))
    same = lambda one, other: all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other))
    )
    assert same(loaded, merge(parts.theta, parts.w)) and not same(loaded, merge(parts.theta, None))
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(dtype)}
