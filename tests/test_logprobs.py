"""Chunked log-probabilities and entropies against the full softmax, and the memory that the chunks are for."""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax import logprobs, sharding
from bridge_jax.sharding import MeshConfig

B, T, D, V = 3, 7, 5, 11


def example(dtype=jnp.float32):
    """Hidden states, a head, tokens, and weights for the outputs."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
    return draw(B, T, D), draw(V, D), jnp.asarray(rng.integers(0, V, (B, T))), draw(B, T).astype(jnp.float32)


def full(hidden_BTD, head_VD, tokens_BT, temperature):
    """The same with all logits at once."""
    logp_BTV = jax.nn.log_softmax(jnp.einsum("BTD,VD->BTV", hidden_BTD, head_VD) / temperature)
    entropy_BT = -jnp.sum(jnp.exp(logp_BTV) * logp_BTV, axis=-1)
    return jnp.take_along_axis(logp_BTV, tokens_BT[..., None], axis=-1)[..., 0], entropy_BT


@pytest.mark.parametrize("chunk_tokens", [1, 6, 9, 21, 1024])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_equals_the_full_softmax(chunk_tokens, temperature):
    """Values, entropies and both gradients; chunks of 1, 2, 3 (ragged: 7 positions), 7 and more positions per row."""
    hidden, head, tokens, weights = example()

    def scored(function, *settings):
        def J(hidden, head):
            logp, entropy = function(hidden, head, tokens, temperature, *settings)
            return jnp.sum(weights * logp), (logp, entropy)
        (_, outputs), gradients = jax.value_and_grad(J, argnums=(0, 1), has_aux=True)(hidden, head)
        return outputs, gradients

    ours, expected = scored(logprobs.token_logp, chunk_tokens), scored(full)
    assert ours[0][0].shape == ours[0][1].shape == (B, T)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_tokens, width", [(5 * 102, 96), (5 * 16, 16), (5 * 9, 9), (5 * 300, 200), (5 * 199, 192)])
def test_chunks_end_where_tiles_do(chunk_tokens, width):
    """5 rows of 200 tokens, 11 in the vocabulary: chunks of a multiple of 16 positions, unless they are less, or all; and right."""
    rng = np.random.default_rng(1)
    hidden, tokens = jnp.asarray(rng.standard_normal((5, 200, D)), jnp.float32), jnp.asarray(rng.integers(0, V, (5, 200)))
    head = jnp.asarray(rng.standard_normal((V, D)), jnp.float32)
    score = lambda *given: logprobs.token_logp(*given, 1.0, chunk_tokens)
    assert f"f32[5,{width},{V}]" in str(jax.make_jaxpr(score)(hidden, head, tokens))
    for ours, expected in zip(score(hidden, head, tokens), full(hidden, head, tokens, 1.0)):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_no_gradient_through_the_entropy():
    """The entropy is reported, never optimised by accident."""
    hidden, head, tokens, _ = example()
    assert not jax.grad(lambda h: logprobs.token_logp(h, head, tokens)[1].sum())(hidden).any()
    assert jax.grad(lambda h: full(h, head, tokens, 1.0)[1].sum())(hidden).any()


def test_bf16_hidden_states_give_fp32_logits():
    """Products of bf16 inputs are summed in fp32: equal to an fp32 product of the rounded inputs, not a rounded one."""
    hidden, head, tokens, _ = example(jnp.bfloat16)
    logp, entropy = logprobs.token_logp(hidden, head, tokens)
    expected = full(hidden.astype(jnp.float32), head.astype(jnp.float32), tokens, 1.0)
    assert logp.dtype == entropy.dtype == jnp.float32
    np.testing.assert_allclose((logp, entropy), expected, atol=1e-5)


def test_head_gradient_is_summed_in_fp32():
    """bf16 head, 1024 chunks of one position, 1/2 each: a bf16 running sum would stop at 128."""
    hidden, head = jnp.ones((1, 1024, 2), jnp.bfloat16), jnp.zeros((2, 2), jnp.bfloat16)
    tokens = jnp.zeros((1, 1024), jnp.int32)
    G = jax.grad(lambda head: logprobs.token_logp(hidden, head, tokens, 1.0, 1)[0].sum())(head)
    np.testing.assert_array_equal(np.asarray(G, np.float32), [[512, 512], [-512, -512]])


def temp_gib(function) -> float:
    """Temporary memory of value and gradient at B=8, T=2048, D=1024, V=151936 in bf16: compiled, never run."""
    shape = jax.ShapeDtypeStruct
    args = shape((8, 2048, 1024), jnp.bfloat16), shape((151936, 1024), jnp.bfloat16), shape((8, 2048), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(function, argnums=(0, 1))).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**30


def test_memory_at_a_real_vocabulary():
    """Under 3 GiB, where full logits take over 15."""
    assert temp_gib(lambda h, head, tokens: logprobs.token_logp(h, head, tokens)[0].sum()) < 3
    assert temp_gib(lambda h, head, tokens: full(h, head, tokens, 1.0)[0].sum()) > 15


@pytest.mark.parametrize("sizes", [dict(fsdp=8), dict(data=2, fsdp=2, tensor=2), dict(data=1, fsdp=2, tensor=4)])
@pytest.mark.parametrize("V", [40, 41])
def test_on_a_mesh(sizes, V):
    """Values and gradients of rows, head and vocabulary over eight devices are those of one; 41 words do not divide over tensor."""
    rng, mesh = np.random.RandomState(0), sharding.make_mesh(MeshConfig(**sizes))
    hidden, head = rng.standard_normal((8, 7, 16)).astype(np.float32), rng.standard_normal((V, 16)).astype(np.float32)
    tokens, weight = rng.randint(0, V, (8, 7)), rng.standard_normal((8, 7)).astype(np.float32)

    def value(hidden, head, mesh):
        logp, entropy = logprobs.token_logp(hidden, head, tokens, 0.7, 16, mesh)
        return jnp.sum(weight * logp), (logp, entropy)

    of = lambda mesh: jax.jit(jax.value_and_grad(lambda *given: value(*given, mesh), (0, 1), has_aux=True))
    axes = sharding.of_axes(mesh, ("vocab", "embed"), head.shape)
    placed = jax.device_put(hidden, sharding.of_rows(mesh, hidden)), jax.device_put(head, axes)
    for mine, theirs in zip(jax.tree.leaves(of(mesh)(*placed)), jax.tree.leaves(of(None)(hidden, head)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
