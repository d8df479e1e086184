"""Attention by jax's Pallas kernel for TPUs, on one device: scores a tile at a time."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from bridge_jax.models.attention.masks import after_prompt

# The kernel's lanes; lengths and blocks are multiples of it.
TILE = 128


def block_of(length: int) -> int:
    """The largest tile up to 512 that divides a multiple of TILE."""
    return math.gcd(length, 512)


@functools.lru_cache(maxsize=32)
def kernel_of(N: int, T: int, S: int, interpret: bool):
    """The kernel of N heads for T queries after S positions of a prompt, both multiples of TILE."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    q, kv = block_of(T), block_of(S + T)
    blocks = kernel.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
    mask = masks.MultiHeadMask([masks.CausalMask((T, S + T), offset=S)] * N)
    # The kernel contains arrays. Without this they would belong to the trace of the first call,
    # although the kernel is cached.
    with jax.ensure_compile_time_eval():
        return kernel.make_splash_mha(
            mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret
        )


def causal(
    q_BTNH,
    k_BKTH,
    v_BKTH,
    prompt=None,
    segment_BT=None,
    window=None,
    interpret: bool = False,
):
    """einsums.causal; lengths and head width are padded to the kernel's tiles.

    A padded prompt position has another segment id than the queries, so that no query sees it.
    Padding queries at the end are cut off, and no earlier query sees their keys.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds

    assert window is None, "the kernel's mask is compiled in; choice.py gives windows to einsums"
    B, T, N, H = q_BTNH.shape
    k, v, mask_PS = after_prompt(prompt, k_BKTH, v_BKTH, TILE)
    S, rows, width = mask_PS.shape[1], -T % TILE, -H % TILE

    def fill(x):
        return jnp.pad(x, ((0, 0), (0, 0), (0, rows), (0, width)))

    q, k, v = fill(jnp.swapaxes(q_BTNH, 1, 2) * H**-0.5), fill(k), fill(v)
    if segment_BT is None:
        own = jnp.ones((B, T + rows), jnp.int32)
    else:
        own = jnp.pad(segment_BT, ((0, 0), (0, rows)))
    real_BS = jnp.repeat(mask_PS, B // mask_PS.shape[0], axis=0).astype(jnp.int32)
    segments = SegmentIds(own, jnp.concatenate([real_BS, own], axis=1))
    out = jax.vmap(kernel_of(N, T + rows, S, interpret))(q, k, v, segments)
    return jnp.swapaxes(out[:, :, :T, :H], 1, 2)
