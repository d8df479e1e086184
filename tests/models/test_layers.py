"""The decoder's own promises: what a position may see, that padding is nothing, that sampler and
trainer agree.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.models import layers, params
from tests.models import tiny


@pytest.mark.slow
def test_what_the_backward_pass_keeps_of_a_layer():
    """Of the mlp's width its two projections and what the last is multiplied by, nothing in
    between; of norms their input.
    """
    cfg = params.read_config(tiny.CASES["llama"])
    phi, seqs = params.init(cfg, jax.random.key(0)), tiny.rows(P=1, M=1, S=11, T=2)
    kept = jax.tree.leaves(jax.vjp(lambda phi: layers.forward(cfg, phi, seqs), phi)[1])
    stacks = lambda width: sum(leaf.shape == (cfg.layers, 1, 13, width) for leaf in kept)
    assert (
        stacks(cfg.mlp) == 3 and stacks(1) == 0 and stacks(cfg.width) == 4
    )  # x before and behind attention, and both normed


# ---- what a position may see


def test_causality_by_gradient(build):
    """d hidden_t / d embedding of a token is exactly 0, but for tokens of the row's prompt and
    those before t.
    """
    cfg, phi = build("qwen3")
    P, M, S, T = 2, 2, 5, 4
    ids = (
        np.random.RandomState(3).permutation(cfg.vocab).astype(np.int32)
    )  # every place in the batch has its own token
    seqs = tiny.Sequences(
        ids[: P * S].reshape(P, S),
        np.array([S, 3], np.int32),
        ids[P * S : P * S + P * M * T].reshape(P * M, T),
        np.full(P * M, T, np.int32),
    )
    direction = np.random.RandomState(4).standard_normal(cfg.width).astype(np.float32)
    pulls = np.einsum("bx,ty,D->btxyD", np.eye(P * M), np.eye(T), direction).reshape(
        -1, P * M, T, cfg.width
    )

    @jax.jit
    def embedding_gradients(pulls):
        _, pull_back = jax.vjp(
            lambda embed: layers.forward(cfg, phi | {"embed": embed}, seqs), phi["embed"]
        )
        return jax.vmap(lambda pull: pull_back(pull)[0])(pulls)

    gradient = np.asarray(embedding_gradients(pulls.astype(np.float32))).reshape(
        P * M, T, cfg.vocab, cfg.width
    )
    felt = np.abs(gradient).max(-1) > 0
    for b in range(P * M):
        for t in range(T):
            allowed = {
                *seqs.prompt_PS[b // M, : seqs.prompt_len_P[b // M]].tolist(),
                *seqs.tokens_BT[b, :t].tolist(),
            }
            assert set(np.flatnonzero(felt[b, t])) == allowed, (b, t)


@pytest.mark.parametrize("M", (1, 3))
def test_a_prompt_and_its_rows_take_one_matmul_of_each_weight(build, M):
    """Of 2 prompts of 9 tokens with M rows of 6 behind each; the head's is not among them."""
    cfg, phi = build("llama")
    traced = str(
        jax.make_jaxpr(lambda phi, seqs: layers.forward(cfg, phi, seqs))(phi, tiny.rows(M=M))
    )
    of_mlp = re.findall(rf"f32\[(\d+,\d+),{cfg.mlp}\] = dot_general", traced)
    assert of_mlp == [f"2,{9 + 6 * M}"] * 2  # gate and up


@jax.jit
def loss_and_gradient(phi, seqs, pull_BTD):
    """sum of <hidden, pull> over the completion tokens that count, and its gradient in every
    parameter (llama).
    """
    mask_BT = jnp.arange(seqs.tokens_BT.shape[1]) < seqs.length_B[:, None]
    cfg = params.read_config(tiny.CASES["llama"])
    return jax.value_and_grad(
        lambda phi: jnp.sum(layers.forward(cfg, phi, seqs) * pull_BTD * mask_BT[..., None])
    )(phi)


def repadded(seqs, prompt_pad, completion_pad, extra=0):
    """The same rows with other ids beyond the lengths and `extra` more padding positions in the
    prompt.
    """
    prompt_PS = np.pad(seqs.prompt_PS, ((0, 0), (0, extra)))
    prompt_PS[np.arange(prompt_PS.shape[1]) >= seqs.prompt_len_P[:, None]] = prompt_pad
    return seqs.replace(
        prompt_PS=prompt_PS, tokens_BT=np.where(tiny.inside(seqs), seqs.tokens_BT, completion_pad)
    )


def test_padding_is_nothing(build):
    """Any pad id, even one outside the vocabulary: bit-equal loss and gradient. Any pad amount:
    equal to rounding, of which 1.2e-6 of the largest entry was measured (AVX-512); one padding
    position that is seen makes it 0.2.
    """
    cfg, phi = build("llama")
    seqs = tiny.rows()
    assert (seqs.prompt_len_P < seqs.prompt_PS.shape[1]).any() and not tiny.inside(seqs).all()
    pull = (
        np.random.RandomState(5)
        .standard_normal((*seqs.tokens_BT.shape, cfg.width))
        .astype(np.float32)
    )
    reference = loss_and_gradient(phi, seqs, pull)
    for pads in ((0, 0), (2, 7), (-100, -100), (10**6, 10**6)):
        jax.tree.map(
            np.testing.assert_array_equal,
            loss_and_gradient(phi, repadded(seqs, *pads), pull),
            reference,
        )
    wider = loss_and_gradient(phi, repadded(seqs, 7, 7, extra=5), pull)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(reference))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=4e-6 * scale), wider, reference
    )


def test_padding_is_nothing_to_the_sampler(build):
    """Prefill and decode read no pad either."""
    cfg, phi = build("llama")
    seqs = tiny.rows()
    reference = np.asarray(tiny.decoded(cfg, phi, seqs))[tiny.inside(seqs)]
    for pads in ((0, 0), (-100, 10**6)):
        other = np.asarray(tiny.decoded(cfg, phi, repadded(seqs, *pads)))
        np.testing.assert_array_equal(other[tiny.inside(seqs)], reference)


def test_a_padding_row_is_finite_and_moves_nothing(build):
    """length 0: finite hidden states, and the gradient is that of the other rows."""
    cfg, phi = build("llama")
    seqs = tiny.rows()
    pull = (
        np.random.RandomState(5)
        .standard_normal((*seqs.tokens_BT.shape, cfg.width))
        .astype(np.float32)
    )
    emptied = seqs.replace(length_B=seqs.length_B * [1, 1, 0, 1])
    assert np.isfinite(tiny.forward(cfg, phi, emptied)).all()
    silent = pull * np.array([1, 1, 0, 1], np.float32)[:, None, None]
    jax.tree.map(
        np.testing.assert_array_equal,
        loss_and_gradient(phi, emptied, pull),
        loss_and_gradient(phi, seqs, silent),
    )


# ---- one model for sampling and training


def test_a_shared_prompt_equals_one_prompt_per_row(build):
    """Rows behind a shared prompt (M = 2) compute what they compute behind a prompt of their own (M
    = 1).
    """
    cfg, phi = build("llama")
    seqs = tiny.rows()
    alone = seqs.replace(
        prompt_PS=np.repeat(seqs.prompt_PS, 2, 0), prompt_len_P=np.repeat(seqs.prompt_len_P, 2)
    )
    np.testing.assert_allclose(
        tiny.forward(cfg, phi, alone), tiny.forward(cfg, phi, seqs), rtol=0, atol=1e-5
    )


def test_bf16_is_near_fp32_and_decoding_near_forward(build):
    """Hidden states in bf16, of size about 1: within 0.2 (rms 0.04) of fp32, and the two paths
    within 0.02 (rms).
    """
    cfg, phi = build("llama")
    seqs = tiny.rows()
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), phi)
    trained, sampled = tiny.forward(cfg, half, seqs), tiny.decoded(cfg, half, seqs, jnp.bfloat16)
    assert trained.dtype == sampled.dtype == jnp.bfloat16
    rms = lambda x: np.sqrt(np.mean(np.square(x)))
    error = np.asarray(trained, np.float32) - np.asarray(tiny.forward(cfg, phi, seqs))
    assert np.abs(error).max() < 0.2 and rms(error) < 0.04
    assert rms(np.asarray(trained, np.float32) - np.asarray(sampled, np.float32)) < 0.02
