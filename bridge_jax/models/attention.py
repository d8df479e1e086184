"""Attention over a row's own keys and, under the same softmax, those of its prompt: one function, three ways to compute it.

    xla      plain einsums; any mask, any device. Its scores [B,N,T,S] exist in memory.
    splash   the Pallas kernel that jax has for TPUs: scores exist a tile at a time
    cudnn    jax.nn.dot_product_attention, which is cuDNN's flash attention on GPUs (and einsums elsewhere); bfloat16 alone

All compute softmax(q k' / sqrt(H)) v with products summed in fp32. A training or prefill pass is `causal` over a row's own keys
and sees all of its prompt; decoding, with one query a row, is always xla: there are no scores worth hiding.
Left out: sliding windows, attention sinks, soft caps.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from bridge_jax.distributed.sharding import kv_copies

logger = logging.getLogger(__name__)

MASKED = -1e30  # finite, so that a row with nothing to attend to stays finite
TILE = 128  # the splash kernel's lanes: lengths and blocks are multiples of it
KINDS = ("auto", "xla", "splash", "cudnn")
GPU = ("gpu", "cuda")  # what jax calls NVIDIA's


def lower_triangle(T: int) -> jax.Array:
    """Which of T keys each of T queries sees, [T, T] bool."""
    return jnp.tril(jnp.ones((T, T), bool))


def attention(q_BTNH, own, prompt=None):
    """The general form, by einsums: each part's scores with their own keys, the two softmaxes joined by maximum and sum.

    own: (k_BKHS, v_BKSH, mask broadcastable to [B,1,1,T,S]), its keys with positions last; prompt: (k_PKSH, v_PKSH, mask [P,S])
    with P dividing B. The rows of a prompt, heads of a group and queries are one axis of a matmul per kv head; parts are not
    concatenated: of both, only the sums are brought into one order. On 2 cores 1.8 times as fast as one softmax over both.
    """
    B, T, N, H = q_BTNH.shape
    k_BKHS, v_BKSH, mask = own
    K = k_BKHS.shape[1]
    G, exact = N // K, dict(preferred_element_type=jnp.float32)
    q_BKQH = (jnp.moveaxis(q_BTNH.reshape(B, T, K, G, H), 1, 3) * H**-0.5).reshape(B, K, G * T, H)
    scores = jnp.einsum("BKQH,BKHS->BKQS", q_BKQH, k_BKHS, **exact)
    scores = jnp.where(mask, scores.reshape(B, K, G, T, -1), MASKED).reshape(scores.shape)
    top_BKQ = scores.max(axis=-1)
    if prompt is not None:
        k_PKSH, v_PKSH, mask_PS = prompt
        P = mask_PS.shape[0]
        by_prompt = lambda x: jnp.swapaxes(x.reshape(P, B // P, *x.shape[1:]), 1, 2).reshape(
            P, K, B // P * G * T, *x.shape[3:]
        )
        by_row = lambda x: jnp.swapaxes(x.reshape(P, K, B // P, G * T, *x.shape[3:]), 1, 2).reshape(
            B, K, G * T, *x.shape[3:]
        )
        seen = jnp.einsum("PKQH,PKSH->PKQS", by_prompt(q_BKQH), k_PKSH, **exact)
        seen = jnp.where(mask_PS[:, None, None], seen, MASKED)
        top_BKQ = jnp.maximum(top_BKQ, by_row(seen.max(axis=-1)))
    top_BKQ = jax.lax.stop_gradient(top_BKQ)
    weights = jnp.exp(scores - top_BKQ[..., None])
    total_BKQ, out = (
        weights.sum(axis=-1),
        jnp.einsum("BKQS,BKSH->BKQH", weights.astype(v_BKSH.dtype), v_BKSH, **exact),
    )
    if prompt is not None:
        weights = jnp.exp(seen - by_prompt(top_BKQ)[..., None])
        total_BKQ += by_row(weights.sum(axis=-1))
        out += by_row(jnp.einsum("PKQS,PKSH->PKQH", weights.astype(v_PKSH.dtype), v_PKSH, **exact))
    out = (out / total_BKQ[..., None]).astype(v_BKSH.dtype).reshape(B, K, G, T, H)
    return jnp.moveaxis(out, 3, 1).reshape(B, T, N, H)


def causal(q_BTNH, k_BKTH, v_BKTH, prompt=None, segment_BT=None):
    """xla: each query sees its own past and itself, and all of its prompt: (k_PKSH, v_PKSH, mask_PS) or None.

    segment_BT: int32, for rows of several sequences; a query then sees keys of its own segment alone.
    """
    return attention(
        q_BTNH, (jnp.swapaxes(k_BKTH, 2, 3), v_BKTH, own_mask(q_BTNH.shape[1], segment_BT)), prompt
    )


def own_mask(T: int, segment_BT=None):
    """Which of a row's own keys its queries see, broadcastable to [B,1,1,T,T]."""
    if segment_BT is None:
        return lower_triangle(T)
    return (lower_triangle(T) & (segment_BT[:, :, None] == segment_BT[:, None]))[:, None, None]


def behind_prompt(prompt, k, v, pad_to: int = 1):
    """Keys and values [B,K,S'+T,H] of each row behind those of its prompt, and which of the S' to see, [B, S'] bool.

    Prompts of S positions are padded to S', the next multiple of pad_to.
    """
    B = k.shape[0]
    if prompt is None:
        return k, v, jnp.ones((B, 0), bool)
    k_PKSH, v_PKSH, mask_PS = prompt
    P, S = mask_PS.shape
    pad = -S % pad_to
    join = lambda shared, own: jnp.concatenate(
        [jnp.repeat(jnp.pad(shared, ((0, 0), (0, 0), (0, pad), (0, 0))), B // P, axis=0), own],
        axis=2,
    )
    return (
        join(k_PKSH, k),
        join(v_PKSH, v),
        jnp.repeat(jnp.pad(mask_PS, ((0, 0), (0, pad))), B // P, axis=0),
    )


def dot_product(
    q_BTNH, k_BKTH, v_BKTH, prompt=None, segment_BT=None, implementation: str = "cudnn"
):
    """`causal` by jax.nn.dot_product_attention; the shared prompt is repeated for its rows.

    With a mask cuDNN trains on even lengths alone: odd ones are padded, by a prompt position that is masked and by a last
    position of the row, which nobody before it sees.
    """
    end, T = q_BTNH.shape[1], q_BTNH.shape[1] + q_BTNH.shape[1] % 2
    even = lambda x, axis: jnp.pad(x, [(0, (T - end) * (i == axis)) for i in range(x.ndim)])
    k, v, seen_BS = behind_prompt(prompt, even(k_BKTH, 2), even(v_BKTH, 2), pad_to=2)
    B, S = seen_BS.shape
    segments = None if segment_BT is None else even(segment_BT, 1)
    own = jnp.broadcast_to(own_mask(T, segments).reshape(-1, T, T), (B, T, T))
    mask = jnp.concatenate([jnp.broadcast_to(seen_BS[:, None], (B, T, S)), own], axis=2)
    out = jax.nn.dot_product_attention(
        even(q_BTNH, 1),
        jnp.swapaxes(k, 1, 2),
        jnp.swapaxes(v, 1, 2),
        mask=mask[:, None],
        implementation=implementation,
    )
    return out[:, :end]


def block_of(length: int) -> int:
    """The largest tile up to 512 that divides a multiple of TILE."""
    return math.gcd(length, 512)


@functools.lru_cache(maxsize=32)
def splash_kernel(N: int, T: int, S: int, interpret: bool):
    """The kernel of N heads for T queries behind S positions of a prompt, both multiples of TILE."""
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
    with (
        jax.ensure_compile_time_eval()
    ):  # its tables are arrays: made here, they would belong to the trace that came first
        return kernel.make_splash_mha(
            mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret
        )


def splash(q_BTNH, k_BKTH, v_BKTH, prompt=None, segment_BT=None, interpret: bool = False):
    """`causal` by the Pallas kernel, on one device; lengths and head width are padded to its tiles.

    A padded prompt position has another segment id than the queries, so that none sees it; queries padded behind the last
    one are cut off, and nobody before them sees their keys.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds

    B, T, N, H = q_BTNH.shape
    k, v, seen_BS = behind_prompt(prompt, k_BKTH, v_BKTH, TILE)
    S, rows, width = seen_BS.shape[1], -T % TILE, -H % TILE
    fill = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, rows), (0, width)))
    q, k, v = fill(jnp.swapaxes(q_BTNH, 1, 2) * H**-0.5), fill(k), fill(v)
    own = (
        jnp.ones((B, T + rows), jnp.int32)
        if segment_BT is None
        else jnp.pad(segment_BT, ((0, 0), (0, rows)))
    )
    segments = SegmentIds(own, jnp.concatenate([seen_BS.astype(jnp.int32), own], axis=1))
    out = jax.vmap(splash_kernel(N, T + rows, S, interpret))(q, k, v, segments)
    return jnp.swapaxes(out[:, :, :T, :H], 1, 2)


def over_mesh(function: Callable, mesh: Mesh) -> Callable:
    """A `causal` of one device over a mesh: rows over data and fsdp, heads over tensor; the partitioner cannot cut a kernel.

    Each kv head is repeated for the devices that share it.
    """
    rows, tensor = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["tensor"]

    def attend(q_BTNH, k_BKTH, v_BKTH, prompt=None, segment_BT=None):
        spread = (
            ("data", "fsdp")
            if all(x.shape[0] % rows == 0 for x in (q_BTNH, *(prompt or ())))
            else None
        )
        copies = kv_copies(tensor, k_BKTH.shape[1])
        share = lambda x: x if copies == 1 else jnp.repeat(x, copies, axis=1)
        q_spec, k_spec, whole = (
            PartitionSpec(spread, None, "tensor"),
            PartitionSpec(spread, "tensor"),
            PartitionSpec(spread),
        )
        given, specs = (q_BTNH, share(k_BKTH), share(v_BKTH)), (q_spec, k_spec, k_spec)
        if prompt is not None:
            prompt = share(prompt[0]), share(prompt[1]), prompt[2]
        given += prompt, segment_BT
        specs += (
            None if prompt is None else (k_spec, k_spec, whole),
            None if segment_BT is None else whole,
        )
        return jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=q_spec, check_vma=False
        )(*given)

    return attend


def decode_over_mesh(mesh: Mesh) -> Callable:
    """The attention of layers.decode -> the same over a mesh: rows and their caches over data and fsdp, heads over tensor.

    Left to itself the partitioner moves queries, keys and parts of the cache between devices many times in a layer.
    """
    rows = mesh.shape["data"] * mesh.shape["fsdp"]

    def spread(see: Callable) -> Callable:
        def attend(q_B1NH, k_BK1H, v_BK1H, cache, prompt, i, t):
            over = (
                ("data", "fsdp")
                if all(x.shape[0] % rows == 0 for x in (q_B1NH, prompt[0]))
                else None
            )
            q, kv = PartitionSpec(over, None, "tensor"), PartitionSpec(over, "tensor")
            caches = (PartitionSpec(None, over, "tensor"),) * 2
            specs = (
                q,
                kv,
                kv,
                caches,
                (kv, kv, PartitionSpec(over)),
                PartitionSpec(),
                PartitionSpec(),
            )
            on_mesh = jax.shard_map(
                see, mesh=mesh, in_specs=specs, out_specs=(q, caches), check_vma=False
            )
            return on_mesh(q_B1NH, k_BK1H, v_BK1H, cache, prompt, i, t)

        return attend

    return spread if mesh.size > 1 else lambda see: see


def not_by_cudnn(dtype, head_dim: int, device) -> str:
    """What cuDNN's kernel does not take of these, with what it takes; "" where it takes all. No GPU: as if it were a Hopper.

    The rules of jax's fused_attention_stablehlo.py; lengths are padded to what it takes, see `dot_product`.
    """
    major = int(str(getattr(device, "compute_capability", "9.0")).split(".")[0])
    widest = 256 if major >= 9 else 128
    if dtype != jnp.bfloat16:
        return f"model.dtype={jnp.dtype(dtype).name} (it takes bfloat16)"
    if head_dim % 8 or head_dim > widest:
        return f"heads of width {head_dim} (it takes multiples of 8 up to {widest})"
    return (
        f"a GPU of compute capability {device.compute_capability} (it takes 8.0 and above)"
        if major < 8
        else ""
    )


def check(kind: str, dtype, head_dim: int, mesh: Mesh) -> None:
    """ValueError where model.attention names what cannot compute activations and heads like these; a warning where it names what
    is made for other devices."""
    lacking = not_by_cudnn(dtype, head_dim, mesh.devices.flat[0]) if kind == "cudnn" else ""
    if lacking:
        raise ValueError(
            f"model.attention='cudnn' does not compute {lacking}; set model.attention=auto, which takes another "
            "form there"
        )
    form, platform = form_of(kind, mesh, dtype, head_dim), mesh.devices.flat[0].platform
    if form == "splash" and platform != "tpu" or form == "cudnn" and platform not in GPU:
        logger.warning(
            "model.attention=%r is not for a %s: %s; auto takes what is",
            kind,
            platform,
            {
                "splash": "Pallas interprets the kernel, which takes many times as long",
                "cudnn": "its call is made of einsums there, whose scores take memory",
            }[form],
        )


def form_of(kind: str, mesh: Mesh, dtype=jnp.bfloat16, head_dim: int = TILE) -> str:
    """xla, splash or cudnn: what model.attention means on the devices of this mesh, for activations and heads like these."""
    if kind not in KINDS:
        raise ValueError(f"model.attention={kind!r}; allowed: {', '.join(KINDS)}")
    if kind != "auto":
        return kind
    device = mesh.devices.flat[0]
    if device.platform in GPU:
        return "xla" if not_by_cudnn(dtype, head_dim, device) else "cudnn"
    return "splash" if device.platform == "tpu" else "xla"


def choose(kind: str, mesh: Mesh) -> Callable:
    """The `causal` attention of model.attention on the devices of this mesh; "auto" goes by them and by what it is given."""
    form, platform = form_of(kind, mesh), mesh.devices.flat[0].platform
    if form == "splash":
        return over_mesh(functools.partial(splash, interpret=platform != "tpu"), mesh)
    if form == "cudnn" and platform not in GPU:
        return over_mesh(functools.partial(dot_product, implementation="xla"), mesh)
    if form == "cudnn":
        forms = {"cudnn": dot_product, "xla": causal}
        attend = lambda q, *given, **more: forms[form_of(kind, mesh, q.dtype, q.shape[-1])](
            q, *given, **more
        )
        return attend if mesh.size == 1 else over_mesh(attend, mesh)
    return causal
