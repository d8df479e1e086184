"""Blocks of the vocabulary: sizes, values, gradients and memory, on one device and on a mesh."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.distributed import sharding
from bridge_jax.distributed.sharding import MeshConfig
from bridge_jax.models import logprobs
from tests import toys
from tests.models.scored import B, D, T, example, full


@pytest.mark.parametrize(
    "V, chunk_tokens, size",
    [
        (1000, 105, 105),
        (1000, 128, 128),
        (1000, 130, 256),
        pytest.param(1000, 999, 1000, marks=pytest.mark.slow),
        (1000, 2000, 1000),
        (1000, 16, 16),
        (100, 350, 35),
    ],
)
def test_blocks_end_where_tiles_do(V, chunk_tokens, size):
    """1,000 positions: blocks of a multiple of 128 entries, unless they are fewer, or all; the last
    may begin within another. All are right.
    """
    rng = np.random.default_rng(1)
    hidden, tokens = (
        jnp.asarray(rng.standard_normal((5, 200, D)), jnp.float32),
        jnp.asarray(rng.integers(0, V, (5, 200))),
    )
    head, weights = (
        jnp.asarray(rng.standard_normal((V, D)), jnp.float32),
        jnp.asarray(rng.standard_normal((5, 200)), jnp.float32),
    )
    score = lambda *given: logprobs.token_logp(*given, tokens, 1.0, chunk_tokens)
    J = lambda score: lambda *given: jnp.sum(weights * score(*given)[0])
    assert f"f32[5,200,{size}]" in str(jax.make_jaxpr(score)(hidden, head))
    of_all = lambda *given: full(*given, tokens, 1.0)
    for ours, expected in zip(score(hidden, head), of_all(hidden, head)):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    for ours, expected in zip(*(jax.grad(J(f), (0, 1))(hidden, head) for f in (score, of_all))):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_logits_far_apart_in_any_order():
    """Blocks whose greatest logits rise, and fall, by more than exp can hold: nothing overflows,
    and nothing is lost.
    """
    hidden, tokens = jnp.ones((1, 2, 1)), jnp.asarray([[0, 9]])
    for slope in (-200.0, 200.0):
        head, flat = slope * jnp.arange(10.0)[:, None], jnp.zeros((10, 1))
        for each in (head, flat):
            ours, G = jax.value_and_grad(
                lambda h: logprobs.token_logp(hidden, h, tokens, 1.0, 1)[0].sum()
            )(each)
            expected, G_full = jax.value_and_grad(lambda h: full(hidden, h, tokens, 1.0)[0].sum())(
                each
            )
            np.testing.assert_allclose(ours, expected, rtol=1e-6)
            np.testing.assert_allclose(G, G_full, atol=1e-6)
        assert jnp.isfinite(logprobs.token_logp(hidden, head, tokens, 1.0, 1)[1]).all()


def test_the_entropys_gradient_is_computed_only_where_it_is_asked_for():
    """Without it the backward pass has not one operation more on a block of the logits."""
    hidden, head, tokens, _ = example()

    def multiplied(of_entropy):
        def J(h):
            logp, entropy = logprobs.token_logp(h, head, tokens, 1.0, 9)
            return logp.sum() + (entropy.sum() if of_entropy else 0.0)

        jaxpr = jax.make_jaxpr(jax.grad(J))(hidden).jaxpr
        return sum(
            equation.primitive.name == "mul" and equation.outvars[0].aval.shape == (B, T, 5)
            for equation in toys.equations(jaxpr)
        )

    assert multiplied(False) < multiplied(True)
    assert not jax.grad(lambda h: logprobs.token_logp(h, head, tokens)[1].sum() * 0.0)(hidden).any()


def test_head_gradient_is_summed_in_fp32():
    """bf16 head, 1024 positions of 1/2 each, in blocks of one entry: a bf16 running sum would stop
    at 128.
    """
    hidden, head = jnp.ones((1, 1024, 2), jnp.bfloat16), jnp.zeros((2, 2), jnp.bfloat16)
    tokens = jnp.zeros((1, 1024), jnp.int32)
    G = jax.grad(lambda head: logprobs.token_logp(hidden, head, tokens, 1.0, 1)[0].sum())(head)
    np.testing.assert_array_equal(np.asarray(G, np.float32), [[512, 512], [-512, -512]])


def temp_gib(function) -> float:
    """Temporary memory of value and gradient at B=8, T=2048, D=1024, V=151936 in bf16: compiled,
    never run.
    """
    shape = jax.ShapeDtypeStruct
    args = (
        shape((8, 2048, 1024), jnp.bfloat16),
        shape((151936, 1024), jnp.bfloat16),
        shape((8, 2048), jnp.int32),
    )
    compiled = jax.jit(jax.value_and_grad(function, argnums=(0, 1))).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**30


def test_memory_at_a_real_vocabulary():
    """Under 3 GiB, where full logits take over 15."""
    assert temp_gib(lambda h, head, tokens: logprobs.token_logp(h, head, tokens)[0].sum()) < 3
    assert temp_gib(lambda h, head, tokens: full(h, head, tokens, 1.0)[0].sum()) > 15


@pytest.mark.parametrize(
    "sizes", [dict(fsdp=8), dict(data=2, fsdp=2, tensor=2), dict(data=1, fsdp=2, tensor=4)]
)
@pytest.mark.parametrize("V, D", [(40, 16), (41, 16), (40, 17)])
def test_on_a_mesh(sizes, V, D):
    """Values and gradients of rows, head and vocabulary over eight devices are those of one; 41
    words do not divide over tensor, do not over fsdp. Some of the blocks are of 16 or fewer
    entries, and the last ones overlap.
    """
    rng, mesh = np.random.RandomState(0), sharding.make_mesh(MeshConfig(**sizes))
    hidden, head = (
        rng.standard_normal((8, 7, D)).astype(np.float32),
        rng.standard_normal((V, D)).astype(np.float32),
    )
    tokens, weight = rng.randint(0, V, (8, 7)), rng.standard_normal((8, 7)).astype(np.float32)

    def value(hidden, head, mesh):
        logp, entropy = logprobs.token_logp(hidden, head, tokens, 0.7, 16, mesh)
        return jnp.sum(weight * logp + 0.6 * weight[::-1] * entropy), (logp, entropy)

    of = lambda mesh: jax.jit(
        jax.value_and_grad(lambda *given: value(*given, mesh), (0, 1), has_aux=True)
    )
    axes = sharding.of_axes(mesh, ("vocab", "embed"), head.shape)
    placed = jax.device_put(hidden, sharding.of_rows(mesh, hidden)), jax.device_put(head, axes)
    for mine, theirs in zip(
        jax.tree.leaves(of(mesh)(*placed)), jax.tree.leaves(of(None)(hidden, head)), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_the_heads_gradient_is_reduced_in_fp32():
    """Over data and over fsdp, of a bf16 head: what the devices give to the sum is not rounded
    first.
    """
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=4, tensor=1))
    J = lambda head: logprobs.token_logp(
        jnp.ones((8, 7, 16), jnp.bfloat16), head, jnp.zeros((8, 7), int), 1.0, 2, mesh
    )[0].sum()
    text = str(jax.make_jaxpr(jax.grad(J))(jnp.zeros((40, 16), jnp.bfloat16)))
    sums = re.findall(
        r"(\w+)\[12,(\d+)\][^=\n]* = (psum\w*|reduce_scatter)", text
    )  # of blocks of 12 entries
    assert sums == [("f32", "16", "psum"), ("f32", "4", "reduce_scatter")]
