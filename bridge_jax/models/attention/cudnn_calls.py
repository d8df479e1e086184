"""cuDNN's attention over one part, by what is private in jax.

jax.nn.dot_product_attention returns its log-sum-exp in bfloat16, drops the gradient of it, and has
no backward pass from a given one. The private names of jax are in this file alone; `present` is
False where a version of jax lacks them, and cudnn.py then uses what is public.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import operator

import jax.numpy as jnp

from bridge_jax.models.attention.parts import Kernel

MODULE = "jax._src.cudnn.fused_attention_stablehlo"
NAMES = (
    "dot_product_attention",
    "_dot_product_attention_bwd_impl",
    "_dot_product_attention_bwd_p_wrapper.bind",
    "MaskType.CAUSAL",
    "MaskType.PADDING",
    "AttentionLayout.BTNH.value",
)
# what `backward` hands over, in this order
OPERANDS = (
    "query",
    "key",
    "value",
    "bias",
    "q_seqlen",
    "kv_seqlen",
    "q_offsets",
    "kv_offsets",
    "page_table_k",
    "page_table_v",
    "activation",
    "fwd_output",
    "grad_output",
)
SETTINGS = (
    "scale",
    "seed",
    "dropout_rate",
    "variadic_args",
    "mask_type",
    "layout",
    "sliding_window_length",
)
ARGUMENTS = {"q_seqlen", "kv_seqlen", "scale", "mask_type", "qkv_layout", "return_residual"}


def present() -> bool:
    """Whether this version of jax has the names, with the arguments that are used here."""
    return not missing()


@functools.cache
def missing() -> str:
    """The first name that this version of jax lacks or takes otherwise; "" for none."""
    try:
        private = importlib.import_module(MODULE)
        for path in NAMES:
            operator.attrgetter(path)(private)
    except (ImportError, AttributeError) as error:
        return str(error)
    forward = inspect.signature(private.dot_product_attention).parameters
    backward = inspect.signature(private._dot_product_attention_bwd_impl).parameters
    if not set(forward) >= ARGUMENTS:
        return f"{MODULE}.dot_product_attention({', '.join(forward)})"
    if tuple(backward) != OPERANDS + SETTINGS:
        return f"{MODULE}._dot_product_attention_bwd_impl({', '.join(backward)})"
    return ""


def forward(q_BTNH, k_BSKH, v_BSKH, seen_B):
    """Kernel.forward by cuDNN."""
    private = importlib.import_module(MODULE)
    mask_type, queries_B, seen_B = _mask(private, q_BTNH, seen_B)
    return private.dot_product_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        q_seqlen=queries_B,
        kv_seqlen=seen_B,
        scale=q_BTNH.shape[-1] ** -0.5,
        mask_type=mask_type,
        qkv_layout="BTNH",
        return_residual=True,
    )


def backward(q_BTNH, k_BSKH, v_BSKH, seen_B, out_BTNH, lse_BNT, d_out_BTNH):
    """Kernel.backward by cuDNN."""
    private = importlib.import_module(MODULE)
    mask_type, queries_B, seen_B = _mask(private, q_BTNH, seen_B)
    unused = jnp.zeros(0, q_BTNH.dtype)
    lengths = (unused, unused) if seen_B is None else (queries_B, seen_B)
    operands = (q_BTNH, k_BSKH, v_BSKH, unused, *lengths, unused, unused, unused, unused)
    return private._dot_product_attention_bwd_p_wrapper.bind(
        *operands,
        lse_BNT,
        out_BTNH,
        d_out_BTNH,
        scale=q_BTNH.shape[-1] ** -0.5,
        seed=42,
        dropout_rate=0.0,
        # neither a bias nor its gradient
        variadic_args=(False, False),
        mask_type=mask_type,
        layout=private.AttentionLayout.BTNH.value,
        sliding_window_length=None,
    )


def _mask(private, q_BTNH, seen_B):
    """jax's name of the mask, and the lengths of queries and keys that belong to it."""
    if seen_B is None:
        return private.MaskType.CAUSAL, None, None
    B, T = q_BTNH.shape[:2]
    return private.MaskType.PADDING, jnp.full((B,), T, jnp.int32), seen_B


CUDNN = Kernel(forward, backward)
