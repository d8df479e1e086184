"""Where the rows of a micro-batch lie: on every device its share, in the compiled update of eight simulated devices."""
from __future__ import annotations

import re

import jax
import pytest

from bridge_jax import programs, setup, sharding
from tests import tiny_runs


@pytest.mark.parametrize("axis", ("data", "fsdp"))
def test_each_device_computes_its_share_of_a_micro_batch(axis):
    config = tiny_runs.config("grpo")
    config.mesh = type(config.mesh)(dict(dict(data=1, fsdp=1, tensor=1), **{axis: 8}))
    config.batch.update(dict(prompts_per_step=16, samples_per_prompt=2, microbatch_rows=2))
    config.rollout.calls = 1
    run = setup.build(config, jax.devices()[:8])
    state = setup.abstract_state(run)
    abstract = programs.abstract_batch(run, run.buckets[0], run.method.reads(0))
    place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    batch = jax.tree.map(place, abstract, sharding.of_rows(run.mesh, abstract))
    compiled = jax.jit(run.method.update).lower(state, batch).compile().as_text()
    T, F = run.settings.rollout.max_new, run.cfg.mlp
    rows = {int(n) for n in re.findall(rf"f32\[(\d+),{T},{F}\]", compiled)}
    assert rows == {2}, f"mlp activations of {rows} rows on a device; a micro-batch gives each 2 of its 16"
