"""cuDNN's flash attention on GPUs, with a mask only where it cannot be avoided."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bridge_jax.models.attention import cudnn_calls, parts
from bridge_jax.models.attention.masks import after_prompt, own_mask, prompt_mask


def causal(
    q_BTNH,
    k_BKTH,
    v_BKTH,
    prompt=None,
    segment_BT=None,
    window=None,
    implementation: str = "cudnn",
):
    """einsums.causal, without a mask where neither segments nor windows need one.

    A mask costs the memory of its gradient, and the pairs that it hides are computed.
    implementation: "cudnn", or "xla" for the same by einsums.
    """
    # cuDNN's backward pass does not take one query with one key; the masked form pads both
    alone = q_BTNH.shape[1] == 1
    if alone or segment_BT is not None or window is not None:
        return masked(q_BTNH, k_BKTH, v_BKTH, prompt, segment_BT, window, implementation)
    own = jnp.swapaxes(k_BKTH, 1, 2), jnp.swapaxes(v_BKTH, 1, 2)
    if prompt is None:
        return jax.nn.dot_product_attention(
            q_BTNH, *own, is_causal=True, implementation=implementation
        )
    kernel = cudnn_calls.CUDNN if implementation == "cudnn" else parts.PLAIN
    if kernel is cudnn_calls.CUDNN and not cudnn_calls.present():
        return masked(q_BTNH, k_BKTH, v_BKTH, prompt)
    k_PKSH, v_PKSH, mask_PS = prompt
    length_P = jnp.sum(mask_PS, axis=1, dtype=jnp.int32)
    of_prompt = jnp.swapaxes(k_PKSH, 1, 2), jnp.swapaxes(v_PKSH, 1, 2), length_P
    return parts.causal_after_prompt(kernel, q_BTNH, own, of_prompt)


def masked(
    q_BTNH,
    k_BKTH,
    v_BKTH,
    prompt=None,
    segment_BT=None,
    window=None,
    implementation: str = "cudnn",
):
    """einsums.causal by one call with a mask; the shared prompt is repeated for its rows.

    With a mask cuDNN's backward pass needs even lengths. Odd ones are padded: by a masked prompt
    position, and by a last position of the row, which no earlier query sees.
    """
    T, even_T = q_BTNH.shape[1], q_BTNH.shape[1] + q_BTNH.shape[1] % 2

    def even(x, axis: int):
        return jnp.pad(x, [(0, (even_T - T) * (i == axis)) for i in range(x.ndim)])

    k, v, mask_PS = after_prompt(prompt, even(k_BKTH, 2), even(v_BKTH, 2), pad_to=2)
    B, (P, S) = q_BTNH.shape[0], mask_PS.shape
    segments = None if segment_BT is None else even(segment_BT, 1)
    own = jnp.broadcast_to(own_mask(even_T, segments, window), (B, even_T, even_T))
    seen = jnp.repeat(prompt_mask(mask_PS, jnp.arange(even_T), window), B // P, axis=0)
    seen = jnp.broadcast_to(seen, (B, even_T, S))
    out = jax.nn.dot_product_attention(
        even(q_BTNH, 1),
        jnp.swapaxes(k, 1, 2),
        jnp.swapaxes(v, 1, 2),
        mask=jnp.concatenate([seen, own], axis=2)[:, None],
        implementation=implementation,
    )
    return out[:, :T]


def unsupported(dtype, head_dim: int, device) -> str:
    """The first argument that cuDNN's kernel does not support, with what it supports; "" for none.

    The rules are those of jax's fused_attention_stablehlo.py; `masked` pads the lengths. A device
    that is not a GPU is treated as a Hopper.
    """
    capability = str(getattr(device, "compute_capability", "9.0"))
    if not capability[:1].isdigit():
        return f"an AMD GPU ({capability})"
    major = int(capability.split(".")[0])
    widest = 256 if major >= 9 else 128
    if dtype != jnp.bfloat16:
        return f"model.dtype={jnp.dtype(dtype).name} (it takes bfloat16)"
    if head_dim % 8 or head_dim > widest:
        return f"heads of width {head_dim} (it takes multiples of 8 up to {widest})"
    if major < 8:
        return f"a GPU of compute capability {capability} (it takes 8.0 and above)"
    return ""
