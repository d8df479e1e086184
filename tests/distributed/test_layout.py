"""What the compiled update of eight simulated devices does: a device computes its share of the
rows, weights travel as designed.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import pytest

from bridge_jax.planner import chips, flops, hlo
from bridge_jax.training import build, programs
from tests import tiny_runs, toys


def compiled(method: str, sizes: dict, own=(), arch=(), rank: int = 16, **batch):
    """The run on as many devices as the mesh has, its abstract state, and the text of its first
    step's update.
    """
    config = tiny_runs.config(method)
    config.mesh = type(config.mesh)(dict(data=1, fsdp=1, tensor=1) | sizes)
    config.batch.update(dict(prompts_per_step=16, samples_per_prompt=2, demos_per_step=16) | batch)
    config.rollout.calls, config.model.remat, config.model.lora_rank, config.model.logp_chunk = (
        1,
        "full",
        rank,
        6,
    )
    config.method[method].update_from_flattened_dict(dict(own))
    config.model.arch.update(dict(arch))
    run, _ = build.build(config, jax.devices()[: math.prod(sizes.values())])
    state = build.abstract_state(run)
    return (
        run,
        state,
        programs.trace_update(run, state, run.buckets[0], run.method.batch_spec(0))
        .lower()
        .compile()
        .as_text(),
    )


def mlp_rows(run, text: str, M: int) -> set[int]:
    """Prompts, with M completions each, that a device passes through an mlp at once: one row of S +
    M T positions each.
    """
    W = run.buckets[0] + M * run.settings.rollout.max_new
    return {int(n) for n in re.findall(rf"f32\[(\d+),{W},{run.cfg.mlp}\]", text)}


@pytest.mark.parametrize("axis", [pytest.param("data", marks=pytest.mark.slow), "fsdp"])
def test_each_device_computes_its_share_of_a_micro_batch(axis):
    """Rows of a micro-batch are divided among the devices."""
    run, _, text = compiled("grpo", {axis: 8}, prompts_per_step=32, microbatch_rows=4)
    assert mlp_rows(run, text, M=2) == {2}, (
        "a micro-batch gives each device 2 of its 16 prompts, with 2 completions each"
    )


@pytest.mark.slow
def test_a_group_is_shared_by_devices_that_are_more():
    """Two groups of 4 in a micro-batch of 8 rows: each device takes one completion, with its
    prompt.
    """
    run, _, text = compiled("grpo", {"fsdp": 8}, samples_per_prompt=4, microbatch_rows=1)
    assert mlp_rows(run, text, M=1) == {1} and not mlp_rows(run, text, M=4)


@pytest.mark.slow
@pytest.mark.parametrize("parts, at_once", [pytest.param(0, {4}, marks=pytest.mark.slow), (2, {2})])
def test_demos_of_bridge_in_more_micro_batches(parts, at_once):
    """32 demos over 8 devices: 4 on each, or 2 in each of two micro-batches."""
    run, _, text = compiled(
        "bridge", {"fsdp": 8}, {"sft_microbatches": parts}, demos_per_step=32, microbatch_rows=4
    )
    assert mlp_rows(run, text, M=1) == at_once


ALONE, ALL_THREE = dict(fsdp=8), dict(data=2, fsdp=2, tensor=2)
# five layers and rank three: numbers that no other dimension has
SHAPES = dict(arch=dict(num_hidden_layers=5, num_key_value_heads=2), rank=3, microbatch_rows=2)
by_mesh = pytest.mark.parametrize(
    "method, sizes, passes",
    [
        ("grpo", ALONE, 2),
        ("bridge", ALONE, 5),
        pytest.param("bridge", ALL_THREE, 10, marks=pytest.mark.slow),
    ],
    ids=["grpo 1x8x1", "bridge 1x8x1", "bridge 2x2x2"],
)


@functools.cache
def of_five_layers(method: str, sizes: tuple):
    """`compiled` of these shapes, once for all tests; sizes: items of the mesh's."""
    return compiled(method, dict(sizes), **SHAPES)


def size(tree) -> int:
    """Bytes of fp32 arrays."""
    return sum(x.size * 4 for x in jax.tree.leaves(tree))


def lacking(state, tensor: int, fsdp: int):
    """Of theta, the bytes that a device receives when it gathers each array over fsdp once; its
    part over tensor it keeps.
    """

    def of_leaf(x):
        axes = [axis for axis in x.sharding.spec if axis]
        return (
            x.size * 4 / (tensor if "tensor" in axes else 1) * (fsdp - 1) / fsdp
            if "fsdp" in axes
            else 0.0
        )

    return jax.tree.map(of_leaf, state.params.theta)


def stacks_gathered(text: str) -> list[tuple]:
    """Shapes of gathered arrays with a layer axis, the adapter's left out."""
    gathers = [
        visit.instruction
        for visit in hlo.visits(hlo.parse(text))
        if "all-gather" in visit.instruction.opcode
    ]
    shapes = [array.shape for gather in gathers for array in gather.arrays[gather.outputs]]
    return [shape for shape in shapes if 5 in shape and 3 not in shape]


@pytest.mark.slow
@by_mesh
def test_weights_are_gathered_twice_for_each_micro_batch(method, sizes, passes):
    """Once for the forward pass and once for the backward pass.

    A layer's gradient is reduced once for each micro-batch: here as an all-reduce, of which a
    device keeps its part, and which moves twice what it needs. grpo: two micro-batches of rollouts;
    bridge: two, theta_hat's two, one of demonstrations; twice as many where half of the devices
    share the rows.
    """
    run, state, text = of_five_layers(method, tuple(sizes.items()))
    moves, L, tensor = hlo.collectives(hlo.parse(text)), run.cfg.layers, run.mesh.shape["tensor"]
    assert not any(move.unknown for move in moves)
    each = lacking(state, tensor, run.mesh.shape["fsdp"])
    # activations move too, but never as many bytes as a whole matrix of a layer lacks
    matrices = {
        each["layers"][name] / L for name, x in state.params.theta["layers"].items() if x.ndim > 2
    }
    layers, norms = (
        sum(jax.tree.leaves(each["layers"])),
        each["layers"]["attn_norm"] + each["layers"]["mlp_norm"],
    )
    gathered = sum(
        move.bytes * move.times
        for move in moves
        if move.kind == "all-gather" and move.times > 1 and move.bytes in matrices
    )
    assert gathered == pytest.approx(2 * passes * (layers - norms), rel=0.02)
    reduced = sum(
        move.bytes * move.times / (2 if move.kind == "all-reduce" else 1)
        for move in moves
        if "reduce" in move.kind
    )
    # the embedding's gradient and the adapter's are no more than 6% of it; over tensor activations
    # are reduced too
    assert tensor > 1 or passes * layers < reduced < 1.06 * passes * layers


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, passes", [("grpo", 2), pytest.param("bridge", 5, marks=pytest.mark.slow)]
)
def test_rows_alone_over_the_devices_gather_nothing(method, passes):
    """8x1x1: weights are where they are needed, and a layer's gradient is summed over the devices
    once for each micro-batch.
    """
    run, state, text = of_five_layers(method, (("data", 8),))
    moves, theta = hlo.collectives(hlo.parse(text)), size(state.params.theta["layers"])
    assert not [
        move
        for move in moves
        if move.kind not in ("all-reduce", "reduce-scatter") and move.bytes > 1000
    ]
    reduced = sum(move.bytes * move.times for move in moves)
    assert reduced / (2 * theta * 7 / 8) == pytest.approx(passes, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", pytest.param("bridge", marks=pytest.mark.slow)])
def test_heads_alone_over_the_devices_move_activations(method):
    """1x1x2: no matrix of a layer, nor its gradient, travels."""
    run, state, text = of_five_layers(method, (("tensor", 2),))
    shapes = {x.shape[1:] for x in jax.tree.leaves(state.params.theta["layers"]) if x.ndim > 2}
    parts = {
        tuple(n // 2 if i == axis else n for i, n in enumerate(shape))
        for shape in shapes
        for axis in range(len(shape))
    }
    moved = [
        visit.instruction
        for visit in hlo.visits(hlo.parse(text))
        if re.match("all-|reduce-scatter|collective", visit.instruction.opcode)
    ]
    found = {array.shape for one in moved for array in one.arrays}
    assert not {
        shape for shape in found if shape[-3:] in shapes | parts or shape[-2:] in shapes | parts
    }


@pytest.mark.slow
@by_mesh
def test_nothing_else_is_gathered_whole(method, sizes, passes):
    """Never more than a layer at a time; the embedding once for each pass, the head twice, in
    blocks.
    """
    run, state, text = of_five_layers(method, tuple(sizes.items()))
    assert stacks_gathered(text) == []
    each, tensor = (
        lacking(state, run.mesh.shape["tensor"], run.mesh.shape["fsdp"]),
        run.mesh.shape["tensor"],
    )
    # everything: the embedding is the head too; merge and pull fetch the adapter, for theta and for
    # theta_hat; over tensor the
    # embeddings that were looked up are brought together, of at most 2 rows and their prompts
    looked_up = (
        (tensor > 1) * 2 * (run.buckets[0] + run.settings.rollout.max_new) * run.cfg.width * 4
    )
    outside = passes * (3 * each["embed"] + 2 * each["final_norm"] + looked_up) + 3 * size(
        state.params.w
    )
    gathered = sum(
        move.bytes * move.times
        for move in hlo.collectives(hlo.parse(text))
        if move.kind == "all-gather"
    )
    assert gathered <= 2 * passes * sum(jax.tree.leaves(each["layers"])) + outside


@by_mesh
def test_the_samplers_weights_are_gathered_once(method, sizes, passes):
    """From the layout of training to that of sampling: no array twice, all of them no more than a
    device holds in the end.
    """
    config = tiny_runs.config(method)
    config.mesh, config.model.lora_rank, config.rollout.calls = (
        type(config.mesh)(dict(data=1, fsdp=1, tensor=1) | sizes),
        3,
        1,
    )
    config.model.arch.update(SHAPES["arch"])
    config.batch.update(dict(prompts_per_step=16, samples_per_prompt=2, microbatch_rows=2))
    run = build.make_setup(config, jax.devices()[:8])
    state = build.abstract_state(run)
    text = programs.trace_policy(run, state, "theta").lower().compile().as_text()
    moves = hlo.collectives(hlo.parse(text))
    spread = [x for x in jax.tree.leaves(state.params.theta["layers"]) if "fsdp" in x.sharding.spec]
    assert 0 < len(stacks_gathered(text)) <= len(spread) and all(
        move.times == 1 and not move.unknown for move in moves
    )
    held = flops.chip_bytes(programs.abstract_phi(run, state))
    assert sum(move.bytes for move in moves) <= held + size(state.params.w)


@pytest.mark.tpu_compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("method, passes", [("grpo", 1), ("bridge", 3)])
def test_the_tpus_compiler_gathers_each_matrix_of_a_layer_twice(method, passes):
    """In the loop over the layers of each pass (bridge: theta's, theta_hat's, demonstrations),
    forward and backward: seven.
    """
    config = tiny_runs.config(method)
    config.mesh.fsdp, config.model.arch.head_dim, config.model.remat, config.rollout.calls = (
        8,
        128,
        "full",
        1,
    )
    config.batch.update(
        dict(prompts_per_step=16, samples_per_prompt=2, demos_per_step=16, microbatch_rows=2)
    )
    run = build.make_setup(config, chips.devices(chips.parse("v5e:2x4")))
    state = build.abstract_state(run)
    traced = programs.trace_update(run, state, run.buckets[-1], run.method.batch_spec(0))
    moves = hlo.collectives(hlo.parse(traced.lower().compile().as_text()))
    # what is fetched from a stack within its loop; the head and the embedding, as large in tiles,
    # lie outside
    matrices = {
        x.size // run.cfg.layers * 4 * 7 / 8
        for x in jax.tree.leaves(state.params.theta["layers"])
        if x.ndim > 2
    }
    gathers = [
        move
        for move in moves
        if move.kind == "all-gather"
        and move.times > 1
        and move.bytes in matrices
        and "dynamic_index_in_dim" in move.origin
    ]
    assert len(gathers) == 2 * 7 * passes


@pytest.mark.tpu_compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("decode_tensor", [4, 8])
def test_the_tpus_compiler_decodes_with_two_sums_a_layer(decode_tensor):
    """Of what attention and the mlp give, where the devices share the heads, and 2 kv heads for 4
    or 8 devices.
    """
    config = tiny_runs.config("grpo")
    config.mesh.decode_tensor, config.model.dtype, config.rollout.calls = (
        decode_tensor,
        "bfloat16",
        1,
    )
    config.model.arch.update(
        dict(num_hidden_layers=5, num_attention_heads=8, num_key_value_heads=2, head_dim=128)
    )
    config.batch.update(dict(prompts_per_step=16, samples_per_prompt=2, microbatch_rows=2))
    run = build.make_setup(config, chips.devices(chips.parse("v5e:2x4")))
    phi = programs.abstract_phi(run, build.abstract_state(run))
    moves = hlo.collectives(
        hlo.parse(
            programs.trace_sampler(run, phi, run.buckets[-1], 16, 2).lower().compile().as_text()
        )
    )
    of_layers = [(move.kind, move.unknown) for move in moves if move.times == run.cfg.layers]
    assert of_layers == [("all-reduce", 0)] * 2 + [("all-reduce", 1)] * 2, (
        "the prefill's, and those of each token"
    )


@pytest.mark.tpu_compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_tpus_compiler_keeps_the_shadow_on_the_host():
    """theta_hat and its moments come from the host's memory and go back there: they are no part of
    what a chip holds between.
    """
    memory, states = {}, {}
    for offload in (False, True):
        config = tiny_runs.config("bridge")
        config.mesh.fsdp, config.rollout.calls, config.method.bridge.shadow.offload = 8, 1, offload
        config.model.arch.update(
            dict(hidden_size=1024, intermediate_size=1024, head_dim=128)
        )  # whole tiles on each chip
        config.batch.update(
            dict(prompts_per_step=16, samples_per_prompt=2, demos_per_step=16, microbatch_rows=2)
        )
        run = build.make_setup(config, chips.devices(chips.parse("v5e:2x4")))
        states[offload] = build.abstract_state(run)
        traced = programs.trace_update(
            run, states[offload], run.buckets[-1], run.method.batch_spec(0)
        )
        memory[offload] = traced.lower().compile().memory_analysis()
    shadow = states[True].params.theta_hat, states[True].opt_state.inner_states["shadow"]
    held = sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(shadow)
        if x.ndim
    )
    assert memory[False].host_argument_size_in_bytes == 0
    assert held <= memory[True].host_argument_size_in_bytes < 1.5 * held  # in whole tiles
    assert held <= memory[True].host_output_size_in_bytes < 1.5 * held
    assert memory[False].argument_size_in_bytes - memory[True].argument_size_in_bytes >= held


@pytest.mark.slow
@pytest.mark.parametrize("kind, kernels", [("splash", True), ("xla", False)])
def test_sampler_and_update_attend_as_the_config_says(kind, kernels):
    """The prefill of the sampler and both passes of the update: by the kernel, or without one."""
    run, _ = build.build(tiny_runs.config("grpo", model__attention=kind), jax.devices()[:1])
    state, bucket = build.abstract_state(run), run.buckets[0]
    for traced in (
        programs.trace_sampler(run, programs.abstract_phi(run, state), bucket, 2, 4),
        programs.trace_update(run, state, bucket, run.method.batch_spec(0)),
    ):
        assert ("pallas_call" in str(traced.jaxpr)) == kernels


@pytest.mark.parametrize("kind", [pytest.param("splash", marks=pytest.mark.slow), "xla"])
def test_an_fp32_update_multiplies_fp32_throughout(kind):
    """Forward and backward, in the kernels too: left to itself an accelerator rounds fp32 factors
    to fewer bits.
    """
    run, _ = build.build(tiny_runs.config("bridge", model__attention=kind), jax.devices()[:1])
    traced = programs.trace_update(
        run, build.abstract_state(run), run.buckets[0], run.method.batch_spec(0)
    )
    of_dots = [
        equation.params["precision"]
        for equation in toys.equations(traced.jaxpr.jaxpr)
        if equation.primitive.name == "dot_general" and equation.invars[0].aval.dtype == jnp.float32
    ]
    assert len(of_dots) > 50 and set(of_dots) == {(jax.lax.Precision.HIGHEST,) * 2}
