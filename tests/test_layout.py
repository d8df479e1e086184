"""What the compiled update of eight simulated devices does: a device computes its share of the rows, weights travel as designed."""
from __future__ import annotations

import importlib.util
import re

import jax
import pytest

from bridge_jax import programs, setup, sharding
from bridge_jax.flight import chips, hlo
from tests import tiny_runs


def compiled(method: str, axis: str, own=(), **batch):
    """The run, and the text of its first step's update, all eight devices along one axis."""
    config = tiny_runs.config(method)
    config.mesh = type(config.mesh)(dict(dict(data=1, fsdp=1, tensor=1), **{axis: 8}))
    config.batch.update(dict(prompts_per_step=16, samples_per_prompt=2, demos_per_step=16) | batch)
    config.rollout.calls, config.model.remat = 1, "full"
    config.method.update(dict(own))
    run = setup.build(config, jax.devices()[:8])
    state, abstract = setup.abstract_state(run), programs.abstract_batch(run, run.buckets[0], run.method.reads(0))
    place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    batch, layout = jax.tree.map(place, abstract, sharding.of_rows(run.mesh, abstract)), jax.tree.map(lambda x: x.sharding, state)
    update = jax.jit(run.method.update, out_shardings=(layout, None), donate_argnums=0)
    return run, update.lower(state, batch).compile().as_text()


@pytest.mark.parametrize("axis", ("data", "fsdp"))
def test_each_device_computes_its_share_of_a_micro_batch(axis):
    run, text = compiled("grpo", axis, microbatch_rows=2)
    T, F = run.settings.rollout.max_new, run.cfg.mlp
    rows = {int(n) for n in re.findall(rf"f32\[(\d+),{T},{F}\]", text)}
    assert rows == {2}, f"mlp activations of {rows} rows on a device; a micro-batch gives each 2 of its 16"


@pytest.mark.parametrize("parts, at_once", [(0, {2}), (2, {2, 1})])
def test_bridges_experts_are_cut_finer_where_asked(parts, at_once):
    """16 experts over 8 devices: 2 on each, or 1 in each of two micro-batches."""
    run, text = compiled("bridge", "fsdp", {"sft_microbatches": parts}, microbatch_rows=2)
    assert {int(n) for n in re.findall(rf"f32\[(\d+),{run.settings.rollout.max_new},{run.cfg.mlp}\]", text)} == at_once


@pytest.mark.parametrize("method, passes", [("grpo", 2), ("bridge", 5)])
def test_weights_are_gathered_twice_for_each_micro_batch(method, passes):
    """Once for the forward pass and once for the backward pass; gradients are reduced at most once for each use of a weight
    (prompts, completions). grpo: two micro-batches of rollouts; bridge: two, theta_hat's two, one of demonstrations."""
    run, text = compiled(method, "fsdp", microbatch_rows=2)
    state = setup.abstract_state(run)
    moves = hlo.collectives(hlo.parse(text))
    assert not any(move.unknown for move in moves)
    # activations move too, but never a whole matrix of a layer: D F 4 bytes, of which a device lacks 7/8
    size, L = lambda tree: sum(x.size * 4 for x in jax.tree.leaves(tree)), run.cfg.layers
    matrices = {x.size // L * 4 * 7 / 8 for x in jax.tree.leaves(state.params.theta["layers"]) if x.ndim > 2}
    in_layers = [move for move in moves if move.times > 1]  # the adapter's parts may be as large, outside the loops
    gathered = sum(move.bytes * move.times for move in in_layers if move.kind == "all-gather" and move.bytes in matrices)
    layers = size({name: x for name, x in state.params.theta["layers"].items() if x.ndim > 2}) * 7 / 8
    assert gathered == pytest.approx(2 * passes * layers, rel=0.02)
    reduced = sum(move.bytes * move.times / (2 if move.kind == "all-reduce" else 1) for move in moves if "reduce" in move.kind)
    assert passes * layers < reduced < 2.4 * passes * layers
    assert not any("D,VD->" in move.origin for move in moves)  # nothing within the chunks of log-probabilities


@pytest.mark.tpu_compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("method, passes", [("grpo", 1), ("bridge", 3)])
def test_the_tpus_compiler_gathers_each_matrix_of_a_layer_twice(method, passes):
    """In the loop over the layers of each pass (bridge: theta's, theta_hat's, demonstrations), forward and backward: seven."""
    config = tiny_runs.config(method)
    config.mesh.fsdp, config.model.arch.head_dim, config.model.remat, config.rollout.calls = 8, 128, "full", 1
    config.batch.update(dict(prompts_per_step=16, samples_per_prompt=2, demos_per_step=16, microbatch_rows=2))
    run = setup.sketch(config, chips.devices(chips.parse("v5e:2x4")))
    state = setup.abstract_state(run)
    traced = programs.trace_update(run, state, run.buckets[-1], run.method.reads(0))
    moves = hlo.collectives(hlo.parse(traced.lower().compile().as_text()))
    # the head and the embedding lie outside those loops; of the adapter's gathers none is in a loop
    matrices = {x.size // run.cfg.layers * 4 * 7 / 8 for x in jax.tree.leaves(state.params.theta["layers"]) if x.ndim > 2}
    gathers = [move for move in moves if move.kind == "all-gather" and move.times > 1 and move.bytes in matrices
               and "shard_map" not in move.origin]
    assert len(gathers) == 2 * 7 * passes


@pytest.mark.parametrize("kind, kernels", [("splash", True), ("xla", False)])
def test_sampler_and_update_attend_as_the_config_says(kind, kernels):
    """The prefill of the sampler and both passes of the update: by the kernel, or without one."""
    run = setup.build(tiny_runs.config("grpo", model__attention=kind), jax.devices()[:1])
    state, bucket = setup.abstract_state(run), run.buckets[0]
    for traced in (programs.trace_sampler(run, programs.abstract_phi(run, state), bucket, 2, 4),
                   programs.trace_update(run, state, bucket, run.method.reads(0))):
        assert ("pallas_call" in str(traced.jaxpr)) == kernels
