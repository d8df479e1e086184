"""Attention over two parts, a row's own past and its prompt, as two calls of a kernel.

A kernel returns the output O_i and the log-sum-exp LSE_i of the scores of one part. Softmax over
both parts is

    LSE = log(exp(LSE_own) + exp(LSE_prompt)),    O = sum_i exp(LSE_i - LSE) O_i.

The backward pass of a kernel has P = exp(scores - LSE) and dS = P (dP - rowsum(dO * O)). With the
LSE and the O of both parts it gives each part's exact dK and dV, and its share of dQ. So neither a
mask nor joined keys exist, and a kernel may skip what a causal mask hides.

Prompts are right-padded: a part is either causal or a number of keys that all queries see. The
queries of the rows of a prompt are one long row of queries, so that its keys are not repeated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Kernel(NamedTuple):
    """Attention over the keys of one part; k and v are [B,S,K,H], lse is fp32.

    seen_B: int32, at least 1: each query sees the first seen_B keys; None: the keys up to its own.
    """

    # (q_BTNH, k, v, seen_B) -> (out_BTNH, lse_BNT)
    forward: Callable
    # (q_BTNH, k, v, seen_B, out_BTNH, lse_BNT, d_out_BTNH) -> (dq, dk, dv)
    backward: Callable


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def causal_after_prompt(kernel: Kernel, q_BTNH, own, prompt):
    """Attention to a row's own past and all of its prompt, [B,T,N,H].

    own: (k_BTKH, v_BTKH). prompt: (k_PSKH, v_PSKH, length_P), with P dividing B.
    """
    return _forward(kernel, q_BTNH, own, prompt)[0]


def _forward(kernel: Kernel, q_BTNH, own, prompt):
    k_PSKH, v_PSKH, length_P = prompt
    P, B = len(length_P), len(q_BTNH)
    out_own, lse_own = kernel.forward(q_BTNH, *own, None)
    out_prompt, lse_prompt = kernel.forward(
        fold(q_BTNH, P), k_PSKH, v_PSKH, jnp.maximum(length_P, 1)
    )
    lse_prompt = jnp.where((length_P > 0)[:, None, None], lse_prompt, -jnp.inf)
    lse_prompt = unfold_lse(lse_prompt, B)
    lse_BNT = jnp.logaddexp(lse_own, lse_prompt)
    out_BTNH = scale(out_own, lse_own - lse_BNT) + scale(
        unfold(out_prompt, B), lse_prompt - lse_BNT
    )
    out_BTNH = out_BTNH.astype(q_BTNH.dtype)
    return out_BTNH, (q_BTNH, own, prompt, out_BTNH, lse_BNT)


def _backward(kernel: Kernel, stored, d_out_BTNH):
    q_BTNH, own, (k_PSKH, v_PSKH, length_P), out_BTNH, lse_BNT = stored
    P, B = len(length_P), len(q_BTNH)
    dq_own, *d_own = kernel.backward(q_BTNH, *own, None, out_BTNH, lse_BNT, d_out_BTNH)
    dq_prompt, *d_prompt = kernel.backward(
        fold(q_BTNH, P),
        k_PSKH,
        v_PSKH,
        jnp.maximum(length_P, 1),
        fold(out_BTNH, P),
        fold_lse(lse_BNT, P),
        fold(d_out_BTNH, P),
    )
    # A kernel need not write the gradients of keys that no query sees.
    seen = (jnp.arange(k_PSKH.shape[1]) < length_P[:, None])[..., None, None]
    dk_PSKH, dv_PSKH = (jnp.where(seen, x, 0) for x in d_prompt)
    dq_prompt = jnp.where((length_P > 0)[:, None, None, None], dq_prompt, 0)
    return dq_own + unfold(dq_prompt, B), tuple(d_own), (dk_PSKH, dv_PSKH, None)


causal_after_prompt.defvjp(_forward, _backward)


def scale(out_BTNH, log_BNT):
    """exp(log) times the output of a part, in fp32."""
    return jnp.exp(jnp.swapaxes(log_BNT, 1, 2))[..., None] * out_BTNH.astype(jnp.float32)


def fold(x_BTNH, P: int):
    """[B,T,..] -> [P,(B/P) T,..]: the rows of a prompt as one row."""
    return x_BTNH.reshape(P, -1, *x_BTNH.shape[2:])


def unfold(x, B: int):
    """The inverse of fold."""
    return x.reshape(B, -1, *x.shape[2:])


def fold_lse(lse_BNT, P: int):
    """[B,N,T] -> [P,N,(B/P) T]."""
    B, N, T = lse_BNT.shape
    return jnp.swapaxes(lse_BNT.reshape(P, B // P, N, T), 1, 2).reshape(P, N, -1)


def unfold_lse(lse, B: int):
    """The inverse of fold_lse."""
    P, N = lse.shape[:2]
    return jnp.swapaxes(lse.reshape(P, N, B // P, -1), 1, 2).reshape(B, N, -1)


def plain_forward(q_BTNH, k_BSKH, v_BSKH, seen_B):
    """Kernel.forward by einsums."""
    scores = _scores(q_BTNH, k_BSKH, seen_B)
    lse_BKGT = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.exp(scores - lse_BKGT[..., None])
    out = jnp.einsum("BKGTS,BSKH->BTKGH", weights, v_BSKH.astype(jnp.float32))
    return out.reshape(q_BTNH.shape).astype(q_BTNH.dtype), _by_query_head(lse_BKGT)


def plain_backward(q_BTNH, k_BSKH, v_BSKH, seen_B, out_BTNH, lse_BNT, d_out_BTNH):
    """Kernel.backward by einsums."""
    K = k_BSKH.shape[2]
    q, out, d_out = (_by_group(x, K) for x in (q_BTNH, out_BTNH, d_out_BTNH))
    k, v = k_BSKH.astype(jnp.float32), v_BSKH.astype(jnp.float32)
    lse_BKGT = lse_BNT.reshape(lse_BNT.shape[0], K, -1, lse_BNT.shape[2])
    weights = jnp.exp(_scores(q_BTNH, k_BSKH, seen_B) - lse_BKGT[..., None])
    d_weights = jnp.einsum("BTKGH,BSKH->BKGTS", d_out, v)
    common = jnp.einsum("BTKGH,BTKGH->BKGT", d_out, out)[..., None]
    d_scores = weights * (d_weights - common) * q_BTNH.shape[-1] ** -0.5
    dq = jnp.einsum("BKGTS,BSKH->BTKGH", d_scores, k).reshape(q_BTNH.shape)
    dk = jnp.einsum("BKGTS,BTKGH->BSKH", d_scores, q)
    dv = jnp.einsum("BKGTS,BTKGH->BSKH", weights, d_out)
    return dq.astype(q_BTNH.dtype), dk.astype(k_BSKH.dtype), dv.astype(v_BSKH.dtype)


PLAIN = Kernel(plain_forward, plain_backward)


def _scores(q_BTNH, k_BSKH, seen_B):
    """Scaled scores [B,K,G,T,S] in fp32, -inf where a query does not see a key."""
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    q = _by_group(q_BTNH, k_BSKH.shape[2]) * q_BTNH.shape[-1] ** -0.5
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q, k_BSKH.astype(jnp.float32))
    if seen_B is None:
        mask = jnp.tril(jnp.ones((T, S), bool))
    else:
        mask = (jnp.arange(S) < seen_B[:, None])[:, None, None, None]
    return jnp.where(mask, scores, -jnp.inf)


def _by_group(x_BTNH, K: int):
    """[B,T,N,H] -> [B,T,K,G,H] in fp32."""
    B, T, N, H = x_BTNH.shape
    return x_BTNH.reshape(B, T, K, N // K, H).astype(jnp.float32)


def _by_query_head(lse_BKGT):
    B, K, G, T = lse_BKGT.shape
    return lse_BKGT.reshape(B, K * G, T)
