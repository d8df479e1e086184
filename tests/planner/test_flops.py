"""Counted FLOPs against the compiler's own count, where it is right: one layer, one chunk, one
micro-batch, nothing in a loop.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from bridge_jax import objectives
from bridge_jax.models import layers, logprobs, params, remat
from bridge_jax.optim import moments
from bridge_jax.planner import flops, phases
from bridge_jax.training import build, policy, programs
from bridge_jax.types import Sequences
from tests import tiny_runs, toys

CFG = toys.qwen3.Config(**{**toys.CFG.__dict__, "layers": 1, "width": 64, "mlp": 192, "vocab": 96})


def ints(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def compiled_flops(f, *shapes) -> float:
    return jax.jit(f).lower(*shapes).compile().cost_analysis()["flops"]


def test_a_matmul_by_hand():
    """What the compiler calls FLOPs: 2 for each of m n k products."""
    a, b = jax.ShapeDtypeStruct((32, 64), jnp.float32), jax.ShapeDtypeStruct((64, 128), jnp.float32)
    assert compiled_flops(jnp.dot, a, b) == 2 * 32 * 64 * 128


@pytest.mark.parametrize("samples", (1, pytest.param(4, marks=pytest.mark.slow)))
@pytest.mark.parametrize("policy_name", remat.REMAT)
def test_forward_and_backward_against_the_compiler(samples, policy_name):
    """2 prompts of 48 tokens, each with its samples of 64: shared prompts, recomputed layer and
    head, one chunk of logits. Compiled with two layers, of which the compiler counts one: in a loop
    of a single trip it would not compute the layer again.
    """
    P, S, B, T = 2, 48, 2 * samples, 64
    seqs = Sequences(ints(P, S), ints(P), ints(B, T), ints(B))
    two = dataclasses.replace(CFG, layers=2)
    theta = params.abstract(two)

    def J(theta, seqs):
        hidden = layers.forward(two, theta, seqs, policy_name)
        return logprobs.token_logp(
            hidden, layers.head_weights(CFG, theta), seqs.tokens_BT, 1.0, B * T
        )[0].sum()

    rows = flops.PassShape(P, B, S, T)
    ours = flops.forward_flops(CFG, rows) + flops.head_flops(CFG, B * T)
    assert ours == pytest.approx(compiled_flops(J, theta, seqs), rel=0.1)
    both = flops.forward_flops(
        CFG, rows, recomputed=flops.RECOMPUTED[policy_name], backward=True
    ) + flops.head_flops(CFG, B * T, True)
    assert both == pytest.approx(compiled_flops(jax.value_and_grad(J), theta, seqs), rel=0.1)


def test_the_head_in_chunks_against_the_compiler():
    """Four chunks: the loops of both passes are counted once each, so that four times that is what
    runs; one chunk of a single trip would be no test, the compiler then takes its recomputation for
    the same thing.
    """
    B, T, D, V, chunks = 4, 64, CFG.width, 4096, 4
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)

    def J(hidden, head, tokens):
        logp, entropy = logprobs.token_logp(hidden, head, tokens, 1.0, B * T // chunks)
        return logp.sum(), (logp, entropy)

    given = shape(B, T, D), shape(V, D), ints(B, T)
    cfg = toys.qwen3.Config(**{**CFG.__dict__, "vocab": V})
    assert flops.head_flops(cfg, B * T) == pytest.approx(
        chunks * compiled_flops(J, *given), rel=0.1
    )
    both = jax.value_and_grad(J, (0, 1), has_aux=True)
    assert flops.head_flops(cfg, B * T, True) == pytest.approx(
        chunks * compiled_flops(both, *given), rel=0.1
    )


def sketch(method: str, microbatch_rows: int = 8, **given):
    """A run of one layer whose step is one micro-batch of 8 samples, on one device."""
    config = tiny_runs.config(method, **given)
    config.mesh.fsdp = 1
    config.model.arch.update(
        dict(num_hidden_layers=1, hidden_size=64, intermediate_size=192, vocab_size=96)
    )
    config.model.logp_chunk = 10**6
    config.batch.update(
        dict(
            prompts_per_step=2,
            samples_per_prompt=4,
            demos_per_step=8,
            microbatch_rows=microbatch_rows,
        )
    )
    config.data.buckets, config.rollout.max_new, config.rollout.calls = (48,), 64, 1
    return build.make_setup(config, jax.devices()[:1])


@pytest.mark.parametrize(
    "method, passes",
    (
        ("grpo", (1, 0, 0)),
        pytest.param("bridge", (2, 1, 0), marks=pytest.mark.slow),
        pytest.param("cold_start", (0, 1, 0), marks=pytest.mark.slow),
    ),
)
def test_a_whole_update_against_the_compiler(method, passes):
    """What the method's own ledger says is passed, and the FLOPs that follow, optimizer left out,
    within 10%.
    """
    run = sketch(method)
    state = build.abstract_state(run)
    spec = run.method.step_kinds[0]
    traced = programs.trace_update(run, state, 48, spec)
    spent = flops.passes(traced, programs.abstract_batch(run, 48, spec), 48, 64)
    rollouts, demos, forward = passes
    assert spent["budget/gradient_tokens"] == 64 * 8 * (rollouts + demos)
    assert spent["budget/gradient_prompt_tokens"] == 48 * (2 * rollouts + 8 * demos)
    assert spent["budget/forward_tokens"] == forward
    ours = phases.update_work(run, state, 48, spec, traced).flops
    assert ours == pytest.approx(traced.lower().compile().cost_analysis()["flops"], rel=0.1)


def test_prompts_of_a_group_in_parts_are_counted_in_each():
    """Micro-batches of 2 of a group's 4 rows compute its prompt twice."""
    run = sketch("grpo")
    whole = flops.logp(run, 48).flops
    halves = run._replace(
        settings=run.settings._replace(batch=run.settings.batch.__class__(2, 4, 8, 2, 1))
    )
    prompt = flops.forward_flops(run.cfg, flops.PassShape(2, 0, 48, 0))
    assert flops.logp(halves, 48).flops == pytest.approx(whole + prompt)


@pytest.mark.parametrize(
    "devices, M, rows, prompts",
    [(8, 4, 1, 256), (8, 16, 1, 1024), (8, 4, 4, 64), (8, 8, 4, 128), (2, 4, 1, 256)],
)
def test_prompts_are_counted_as_they_are_computed(devices, M, rows, prompts):
    """64 prompts; where a micro-batch has fewer than there are devices a prompt is computed by each
    that has some of its rows. Against the shapes that the policy is given, micro-batch by
    micro-batch. Packed, a prompt comes with each of its rows.
    """
    config = tiny_runs.config("grpo")
    config.mesh.fsdp, config.rollout.calls = devices, 1
    config.batch.update(dict(prompts_per_step=64, samples_per_prompt=M, microbatch_rows=rows))
    run = build.make_setup(config, jax.devices()[:devices])
    batch = run.settings.batch
    seqs = programs.abstract_rows(64, 48, 64, batch.rollout_rows)
    n = objectives.micro_count(batch.rollout_rows, batch.microbatch)
    one = jax.eval_shape(
        lambda seqs: jax.tree.map(lambda x: x[0], objectives.micro_split(seqs, {}, n)[0]), seqs
    )
    computed = (
        n
        * jax.eval_shape(
            lambda seqs: policy.repeat_prompts(seqs, run.mesh), one
        ).prompt_len_P.shape[0]
    )
    assert flops.prompts_of(run, batch.rollout_rows) == computed == prompts
    config.batch.pack = M
    packed = build.make_setup(config, jax.devices()[:devices])
    assert flops.prompts_of(packed, batch.rollout_rows) == batch.rollout_rows


def test_a_kernel_skips_what_is_masked_and_computes_scores_again():
    """A kernel skips masked scores and recomputes them in the backward pass."""
    rows, cfg = flops.PassShape(0, 1, 0, 1000), CFG
    attention = lambda kernel, **how: (
        flops.forward_flops(cfg, rows, flops.KERNELS[kernel], **how)
        - flops.forward_flops(cfg, rows._replace(rows=0), flops.KERNELS[kernel], **how)
    )
    weights = 2 * 1000 * (flops.budget.matrix_weights(cfg) - flops.budget.head_weights(cfg))
    full = 4 * cfg.heads * cfg.head_dim * 1000**2
    assert attention("xla") == weights + full
    assert attention("splash") == weights + full / 2
    assert attention("splash", backward=True) == 3 * weights + 4.5 * full / 2
    assert attention("cudnn") == weights + full / 2
    assert attention("cudnn, masked") == weights + full


def test_cudnn_skips_nothing_in_packed_rows():
    """Rows of several sequences take its masked form."""
    config = tiny_runs.config("grpo", model__attention="cudnn", model__dtype="bfloat16")
    run = build.make_setup(config, jax.devices()[:1])
    assert flops.kernel_of(run) == flops.KERNELS["cudnn"]
    assert flops.kernel_of(run, packed=True) == flops.KERNELS["cudnn, masked"]


def test_a_prefill_against_the_compiler():
    """The program of the plan's phase, one layer of it."""
    run = sketch("grpo")
    traced = phases.trace_prefill(run, programs.abstract_phi(run, build.abstract_state(run)), 48, 2)
    assert flops.prefill(run, 48, 2).flops == pytest.approx(
        traced.lower().compile().cost_analysis()["flops"], rel=0.1
    )


def test_a_token_against_the_compiler():
    """One step of decoding, the head with it: of max_new of them the plan's phase is made."""
    run = sketch("grpo")
    cfg, (P, M, S, T) = run.cfg, (2, 4, 48, 64)
    cache = jax.eval_shape(lambda: layers.empty_cache(cfg, P * M, T, jnp.float32))
    prompts = jnp.zeros((1, P, cfg.kv_heads, S, cfg.head_dim))

    def step(phi, token_B, t, prompt_len_P, prompt_cache, cache):
        hidden, cache = layers.decode(cfg, phi, token_B, t, prompt_len_P, prompt_cache, cache)
        return logprobs.logits_of(hidden, layers.head_weights(cfg, phi)), cache

    found = compiled_flops(
        step, params.abstract(cfg), ints(P * M), ints(), ints(P), (prompts, prompts), cache
    )
    assert flops.decode(run, S, P).flops == pytest.approx(T * found, rel=0.1)


@pytest.mark.slow
def test_weights_are_read_once_per_micro_batch_of_demos():
    """Four parts instead of one: their weights are read, and their gradients added, four times."""
    moved = {}
    for parts in (0, 4):
        run = sketch("bridge", method__bridge__sft_microbatches=parts)
        state, spec = build.abstract_state(run), run.method.step_kinds[0]
        moved[parts] = phases.update_work(
            run, state, 48, spec, programs.trace_update(run, state, 48, spec)
        ).bytes
    rows = flops.PassShape(8, 8, 48, 64)
    assert (
        moved[4] - moved[0]
        == flops.pass_bytes(run, rows, 4, True) - flops.pass_bytes(run, rows, 1, True)
        > 0
    )


def test_decoding_by_hand():
    """Per token: each device reads its share of the weights once, and all of the cache, where it is
    not cut.
    """
    run = sketch("grpo", rollout__cache_segments=1)
    P, M, S, T, W = 2, 4, 48, 64, flops.budget.matrix_weights(run.cfg)
    work = flops.decode(run, S, P)
    per_token = 2 * W + 4 * run.cfg.heads * run.cfg.head_dim * (S + T)
    assert work.flops == P * M * T * per_token
    cache = 2 * run.cfg.kv_heads * run.cfg.head_dim * 4 * (P * M * T + P * S)
    assert work.bytes == T * (4 * W + cache + P * M * run.cfg.vocab * flops.LOGIT_BYTES)


def test_decoding_in_cache_segments_by_hand():
    """200 tokens on two devices: 128 steps read 128 positions of each row, and 72 read 200. On one,
    64 steps read 64, 64 read 128, 32 read 160 and 40 all.
    """
    config = tiny_runs.config("grpo")
    config.rollout.update(dict(max_new=200, cache_segments=4))
    assert flops.loops(build.make_setup(config, jax.devices()[:1])) == ((64, 128, 160, 200),)
    config.batch.microbatch_rows, config.rollout.calls = 4, 1
    run = build.make_setup(config, jax.devices()[:2])
    assert flops.loops(run) == ((128,), (200,))
    whole = flops.decode(
        run._replace(
            settings=run.settings._replace(
                rollout=dataclasses.replace(run.settings.rollout, cache_segments=1)
            )
        ),
        48,
        2,
    )
    work, rows = flops.decode(run, 48, 2), 2 * run.settings.batch.samples_per_prompt
    saved = rows * (200 * 200 - 128 * 128 - 72 * 200)  # positions
    assert whole.bytes - work.bytes == pytest.approx(saved * flops.token_cache(run))
    assert whole.flops - work.flops == pytest.approx(
        saved * 4 * run.cfg.layers * run.cfg.heads * run.cfg.head_dim
    )


def test_bytes_of_a_device_by_hand():
    """Argument bytes of an update are the state's over the devices: moments twice, what 8 does not
    divide whole.
    """
    config = tiny_runs.config("grpo")
    config.mesh.fsdp = 8
    config.batch.update(dict(prompts_per_step=16, samples_per_prompt=2, microbatch_rows=2))
    run = build.make_setup(config, jax.devices()[:8])
    state = build.abstract_state(run)
    weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    head_norms = 2 * run.cfg.layers * run.cfg.head_dim  # of q and k: their axis is not width
    mine = (weights - head_norms) // 8 + head_norms
    scalars = sum(leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if not leaf.ndim)
    assert flops.chip_bytes(state) == 3 * 4 * mine + scalars
    assert (
        phases.state_bytes(run, 8) == flops.chip_bytes(state)
        and phases.state_bytes(run, 8, on_host=True) == 0
    )


def test_factored_moments_are_counted_by_the_sides_of_each_matrix(monkeypatch):
    """Of every matrix, o with its heads as rows among them: a first moment in bfloat16 and two rows
    of means; norms whole.
    """
    monkeypatch.setattr(moments, "FACTORED_FROM", 8)
    config = tiny_runs.config("grpo")
    config.optim.base.moments = "factored"
    run = build.make_setup(config, jax.devices()[:1])
    cfg, D, F, V = run.cfg, run.cfg.width, run.cfg.mlp, run.cfg.vocab
    q, kv = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    sides = cfg.layers * [(D, q), (D, kv), (D, kv), (q, D), (D, F), (D, F), (F, D)] + [(V, D)]
    norms = cfg.layers * (2 * D + 2 * cfg.head_dim) + D
    weights = norms + sum(rows * columns for rows, columns in sides)
    state = build.abstract_state(run)
    scalars = sum(leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if not leaf.ndim)
    second = norms + sum(rows + columns for rows, columns in sides)
    assert flops.chip_bytes(state) == 4 * weights + 2 * weights + 4 * second + scalars


def test_what_lies_in_the_hosts_memory_is_counted_apart():
    """The shadow and its two moments: three times the weights, scalars stay on the device."""
    sizes = {}
    for offload in (False, True):
        config = tiny_runs.config("bridge")
        config.method.bridge.shadow.offload = offload
        run = build.make_setup(config, jax.devices()[:1])
        sizes[offload] = [phases.state_bytes(run, 4, on_host) for on_host in (False, True)]
    weights = sum(leaf.size for leaf in jax.tree.leaves(build.abstract_state(run).params.theta_hat))
    assert sizes[False][1] == 0 and sum(sizes[True]) == sizes[False][0]
    assert 3 * 4 * weights // 4 <= sizes[True][1] < 3 * 4 * weights


@pytest.mark.slow
def test_a_cheaper_shadow_costs_its_part():
    """Half of the groups cost half of theta_hat's pass; in every fourth step, a quarter of it."""

    def flops_of(**given) -> float:
        given = {f"method__bridge__shadow__{key}": value for key, value in given.items()}
        run = sketch("bridge", 4, **given)
        state, spec = build.abstract_state(run), run.method.step_kinds[0]
        traced = programs.trace_update(run, state, 48, spec)
        return phases.update_work(run, state, 48, spec, traced).flops

    whole = flops_of()
    half, fourth = whole - flops_of(share=0.5), whole - flops_of(every=4)
    assert whole > half > 0 and fourth == pytest.approx(1.5 * half, rel=1e-6)
    both = whole - flops_of(share=0.5, every=4)
    assert both == pytest.approx(1.75 * half, rel=1e-6)
