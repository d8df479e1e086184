"""Attention as two calls joined by their log-sum-exps: outputs and gradients beside the einsums,
and what of it reaches cuDNN.
"""

from __future__ import annotations

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.models import attention
from bridge_jax.models.attention import cudnn, cudnn_calls, parts

NAMES = ("q", "k", "v", "prompt k", "prompt v")


def draw(lengths, S: int, M: int, T: int, K: int = 2, G: int = 3, H: int = 8, dtype=jnp.float32):
    """q [B,T,N,H], k and v [B,K,T,H], prompt k and v [P,K,S,H], mask [P,S]; scores are far
    apart.
    """
    P, B = len(lengths), len(lengths) * M
    shapes = (B, T, K * G, H), (B, K, T, H), (B, K, T, H), (P, K, S, H), (P, K, S, H)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    q, *rest = (jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes))
    return (3 * q, *rest), jnp.arange(S) < jnp.asarray(lengths)[:, None]


def outputs_and_gradients(form, arrays, mask_PS):
    """[out, dq, dk, dv, prompt's dk, prompt's dv] of a weighted sum of the outputs."""
    weight = jax.random.normal(jax.random.key(1), arrays[0].shape)

    def value(arrays):
        q, k, v, k_prompt, v_prompt = arrays
        out = form(q, k, v, (k_prompt, v_prompt, mask_PS))
        return jnp.sum(weight * out), out

    (_, out), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(arrays)
    return [out, *gradients]


@pytest.mark.parametrize("rematerialized", [False, True])
@pytest.mark.parametrize(
    "lengths, S, M, T, K, G",
    [
        # prompts of different lengths, odd sizes, heads that share keys
        ((7, 4), 7, 3, 5, 2, 3),
        # a prompt of one position, and one without any
        ((1, 0, 6), 6, 2, 4, 1, 2),
        # one row a prompt, and no heads that share keys
        ((3, 2), 3, 1, 3, 2, 1),
    ],
)
def test_parity_with_einsums(lengths, S, M, T, K, G, rematerialized):
    """Outputs and all gradients within 1e-5, also where the forward pass is computed again."""
    arrays, mask_PS = draw(lengths, S, M, T, K, G)
    form = functools.partial(cudnn.causal, implementation="xla")
    found = outputs_and_gradients(jax.checkpoint(form) if rematerialized else form, arrays, mask_PS)
    wanted = outputs_and_gradients(attention.causal, arrays, mask_PS)
    for name, mine, theirs in zip(("out", *NAMES), found, wanted):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5, err_msg=name)
        assert np.abs(theirs).max() > 0.01, name


def unwritten(kernel: parts.Kernel) -> parts.Kernel:
    """A kernel that writes no gradients of the keys that are not seen, as cuDNN's may do."""

    def backward(q, k, v, seen_B, *rest):
        dq, *d_kv = kernel.backward(q, k, v, seen_B, *rest)
        if seen_B is None:
            return dq, *d_kv
        seen = (jnp.arange(k.shape[1]) < seen_B[:, None])[..., None, None]
        return dq, *(jnp.where(seen, x, jnp.nan) for x in d_kv)

    return parts.Kernel(kernel.forward, backward)


def test_keys_that_are_not_seen_have_no_gradient(monkeypatch):
    """Zero, whatever the kernel leaves there."""
    arrays, mask_PS = draw((7, 4, 0), 7, 2, 5)
    monkeypatch.setattr(parts, "PLAIN", unwritten(parts.PLAIN))
    form = functools.partial(cudnn.causal, implementation="xla")
    *_, dk, dv = outputs_and_gradients(form, arrays, mask_PS)
    for found in (dk, dv):
        of_unseen = np.asarray(found)[np.broadcast_to(~mask_PS[:, None, :], found.shape[:3])]
        assert np.isfinite(found).all() and not of_unseen.any()


def test_bfloat16_is_as_near_as_the_einsums():
    """Both are compared with fp32; the parts are summed in fp32."""
    arrays, mask_PS = draw((16, 9), 16, 2, 32)
    exact = outputs_and_gradients(attention.causal, arrays, mask_PS)
    rounded = tuple(x.astype(jnp.bfloat16) for x in arrays)
    form = functools.partial(cudnn.causal, implementation="xla")
    found = outputs_and_gradients(form, rounded, mask_PS)
    wanted = outputs_and_gradients(attention.causal, rounded, mask_PS)
    for name, truth, mine, theirs in zip(("out", *NAMES), exact, found, wanted):
        error = lambda x: np.abs(np.asarray(x, np.float32) - truth).mean()
        assert mine.dtype == jnp.bfloat16 and error(mine) < 1.2 * error(theirs), name


def test_what_is_private_in_jax_is_there():
    """Should a version of jax lack it, cudnn_calls is the one place to change."""
    assert cudnn_calls.missing() == ""


@pytest.fixture
def traced(monkeypatch):
    """Function -> the traced forward and backward pass by cuDNN."""
    private = pytest.importorskip(cudnn_calls.MODULE)
    # all else it asks is about the arrays
    monkeypatch.setattr(private, "check_cudnn_version", lambda: 91200)

    def trace(T: int = 5, **given) -> jax.stages.Traced:
        arrays, mask_PS = draw((7, 2), 7, 3, T, dtype=jnp.bfloat16)
        form = functools.partial(cudnn.causal, **given)

        def value(q, k, v, *prompt):
            return form(q, k, v, (*prompt, mask_PS)).sum()

        return jax.jit(jax.grad(value, argnums=range(5))).trace(*arrays)

    return trace


def test_cudnn_computes_no_bias(traced):
    """Two calls forward and two backward: causal, and of the prompts' lengths; odd sizes too."""
    text = str(traced().jaxpr)
    assert text.count("variadic_args=(False, False)") == 4
    assert "variadic_args=(True" not in text
    assert text.count("mask_type=MaskType.CAUSAL") == text.count("mask_type=MaskType.PADDING") == 2
    # the queries of a prompt's three rows are one row, and its keys are not repeated
    assert "bf16[2,15,6,8]" in text and "bf16[6,7,2,8]" not in text


def test_calls_of_the_lowered_program(traced):
    """What XLA is given for a GPU: neither call has a bias, and each has its mask."""
    text = traced().lower(lowering_platforms=("cuda",)).as_text()
    kinds = collections.Counter(re.findall(r"@__cudnn\$(\w+)", text))
    assert kinds == {"fmhaSoftmax": 2, "fmhaSoftmaxBackward": 2}
    masks = collections.Counter(re.findall(r"mask_type\\22: \\22(\w+?)\\22", text))
    assert masks == {"CAUSAL": 2, "PADDING": 2}


@pytest.mark.parametrize("given", [dict(window=3), dict(T=1)])
def test_where_the_mask_stays(traced, given):
    """A window is neither causal nor a length; cuDNN refuses a single query with a single key."""
    text = str(traced(**given).jaxpr)
    assert text.count("variadic_args=(True, True)") == 2 and "MaskType.CAUSAL" not in text


def test_without_the_private_names_the_mask_is_used(traced, monkeypatch):
    """The public call, with its bias."""
    monkeypatch.setattr(cudnn_calls, "present", lambda: False)
    text = str(traced().jaxpr)
    assert text.count("variadic_args=(True, True)") == 2 and "MaskType.CAUSAL" not in text


@pytest.mark.parametrize("gone", ["MaskType", "_dot_product_attention_bwd_p_wrapper"])
def test_a_missing_name_is_noticed(monkeypatch, gone):
    """Another version of jax: the name is told, nothing is raised."""
    private = pytest.importorskip(cudnn_calls.MODULE)
    monkeypatch.delattr(private, gone)
    cudnn_calls.missing.cache_clear()
    try:
        assert gone in cudnn_calls.missing() and not cudnn_calls.present()
    finally:
        cudnn_calls.missing.cache_clear()
