"""The decoder shared by all families: tensor table, layers, forward, prefill, decode.

One layer function serves training, prefill and decoding, so that sampler and trainer compute the same probabilities.
A prompt is computed once for all rows that continue it: its keys are stored per prompt [P, K, S, H] and a row's queries
attend to them and to the row's own keys under one softmax. Prompts are right-padded; completions start at position
`prompt_len`, whatever the padding. Left out: sliding windows, mixture of experts, dropout.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bridge_jax.models.attention import attention, causal
from bridge_jax.models.precision import PROJECTED, load, look_up, product, project, store
from bridge_jax.types import Sequences, Tree


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One parameter: everything that abstract state, sharding, init, LoRA and HF conversion need to know."""

    shape: tuple[int, ...]  # without the layer axis
    axes: tuple[str, ...]  # logical axis of each dimension
    hf: str  # name in the HF checkpoint; "{layer}" where one HF tensor per layer is stacked
    inputs: int = (
        0  # leading dimensions that are contracted: HF stores [out, in]; 0: as it is, heads merged
    )
    init: str = "normal"  # normal (std Config.init_std), ones, zeros


@dataclasses.dataclass(frozen=True)
class Config:
    """Numbers of one model; a family's subclass adds its tensors and its q/k/v projection."""

    family: str
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    rope_theta: float
    rms_eps: float
    tied: bool
    max_positions: int
    eos_ids: tuple[int, ...] = ()
    init_std: float = 0.02
    rope_scaling: tuple[tuple[str, Any], ...] | None = None  # sorted items of HF's dict: hashable

    def tensors(self) -> dict[str, Tensor]:
        """Path in the parameter tree -> Tensor."""
        return base_tensors(self)

    def qkv(self, p: Tree, x_BTD: jax.Array):
        """Queries [B,T,N,H], keys and values [B,T,K,H], before the rotation."""
        return tuple(project("BTD,DNH->BTNH", x_BTD, p[name]) for name in ("q", "k", "v"))

    def inverse_frequencies(self) -> np.ndarray:
        """Rotation speed of each half-head channel, [H/2] radians per position."""
        return 1.0 / self.rope_theta ** (
            np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        )


def hf_numbers(hf: dict) -> dict:
    """Config fields common to all families, from HF's config.json; ValueError if a key is missing or unsupported."""
    needed = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
    )
    missing = [key for key in needed if key not in hf]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}; it has {', '.join(sorted(hf))}")
    if hf.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act={hf['hidden_act']!r} is not supported; allowed: 'silu'")
    heads, kv_heads = (
        hf["num_attention_heads"],
        hf.get("num_key_value_heads") or hf["num_attention_heads"],
    )
    if heads % kv_heads:
        raise ValueError(
            f"num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}"
        )
    # transformers 5 writes rope_parameters; older files write rope_theta and rope_scaling, with "type" for "rope_type"
    rope = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", None) or hf.get("rope_theta") or 10000.0
    rope["rope_type"] = rope.get("rope_type", rope.pop("type", "default"))
    if (part := rope.pop("partial_rotary_factor", hf.get("partial_rotary_factor")) or 1.0) != 1.0:
        raise ValueError(f"partial_rotary_factor={part} is not supported; allowed: 1.0")
    eos = hf.get("eos_token_id")
    return dict(
        vocab=hf["vocab_size"],
        width=hf["hidden_size"],
        layers=hf["num_hidden_layers"],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
        mlp=hf["intermediate_size"],
        rope_theta=float(theta),
        rms_eps=hf.get("rms_norm_eps", 1e-6),
        tied=bool(hf.get("tie_word_embeddings", False)),
        max_positions=hf.get("max_position_embeddings", 2048),
        init_std=hf.get("initializer_range", 0.02),
        eos_ids=() if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (eos,),
        rope_scaling=None if rope["rope_type"] == "default" else tuple(sorted(rope.items())),
    )


def base_tensors(cfg: Config) -> dict[str, Tensor]:
    """The tensors that every family has; paths starting with "layers/" carry a leading layer axis in the tree."""
    D, N, K, H, F, V = cfg.width, cfg.heads, cfg.kv_heads, cfg.head_dim, cfg.mlp, cfg.vocab
    block = "model.layers.{layer}."
    table = {
        "embed": Tensor((V, D), ("vocab", "embed"), "model.embed_tokens.weight"),
        "layers/attn_norm": Tensor((D,), ("embed",), block + "input_layernorm.weight", init="ones"),
        "layers/q": Tensor(
            (D, N, H), ("embed", "heads", "head_dim"), block + "self_attn.q_proj.weight", 1
        ),
        "layers/k": Tensor(
            (D, K, H), ("embed", "kv_heads", "head_dim"), block + "self_attn.k_proj.weight", 1
        ),
        "layers/v": Tensor(
            (D, K, H), ("embed", "kv_heads", "head_dim"), block + "self_attn.v_proj.weight", 1
        ),
        "layers/o": Tensor(
            (N, H, D), ("heads", "head_dim", "embed"), block + "self_attn.o_proj.weight", 2
        ),
        "layers/mlp_norm": Tensor(
            (D,), ("embed",), block + "post_attention_layernorm.weight", init="ones"
        ),
        "layers/gate": Tensor((D, F), ("embed", "mlp"), block + "mlp.gate_proj.weight", 1),
        "layers/up": Tensor((D, F), ("embed", "mlp"), block + "mlp.up_proj.weight", 1),
        "layers/down": Tensor((F, D), ("mlp", "embed"), block + "mlp.down_proj.weight", 1),
        "final_norm": Tensor((D,), ("embed",), "model.norm.weight", init="ones"),
    }
    if not cfg.tied:
        table["head"] = Tensor((V, D), ("vocab", "embed"), "lm_head.weight")
    return table


def head_weights(cfg: Config, phi: Tree) -> jax.Array:
    """The output projection [V, D]: the embedding where they are tied."""
    return phi["embed"] if cfg.tied else phi["head"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, reduced in fp32 (Zhang & Sennrich 2019).

    Its backward pass keeps x alone; scale's gradient is summed by a matmul, since XLA's CPU compiler adds rows slowly."""
    return (normed(x, eps)[0] * scale.astype(jnp.float32)).astype(x.dtype)


def normed(x: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """x over its root mean square, fp32, and one over that."""
    x32 = x.astype(jnp.float32)
    rate = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return x32 * rate, rate


def rms_norm_back(eps: float, kept, g: jax.Array):
    """Gradients to x and scale."""
    x, scale = kept
    unit, rate = normed(x, eps)
    g = g.astype(jnp.float32)
    G_unit = g * scale.astype(jnp.float32)
    G_x = rate * (G_unit - unit * jnp.mean(G_unit * unit, axis=-1, keepdims=True))
    rows = (g * unit).reshape(
        -1, *x.shape[2:-1], x.shape[-1]
    )  # heads stay apart: they may lie on several devices
    G_scale = product("R,R...->...", jnp.ones(len(rows)), rows)
    return G_x.astype(x.dtype), G_scale.sum(axis=range(G_scale.ndim - 1)).astype(scale.dtype)


rms_norm.defvjp(lambda x, scale, eps: (rms_norm(x, scale, eps), (x, scale)), rms_norm_back)


@functools.partial(jax.checkpoint, prevent_cse=False)
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up (Shazeer 2020); of it the backward pass keeps the two alone, not four more of their size."""
    return jax.nn.silu(gate) * up


def rotation(cfg: Config, position: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of position * frequency, [..., H/2] fp32."""
    angle = position[..., None].astype(jnp.float32) * jnp.asarray(
        cfg.inverse_frequencies(), jnp.float32
    )
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNH: jax.Array, cos_BTH: jax.Array, sin_BTH: jax.Array) -> jax.Array:
    """Rotary embedding in HF's half-split form (Su et al. 2021): channel i turns together with channel i + H/2."""
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BTH[:, :, None], sin_BTH[:, :, None]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)


def block(cfg: Config, p: Tree, x_BTD, cos_sin, attend):
    """One pre-norm layer; `attend(q_BTNH, k_BKTH, v_BKTH) -> (out_BTNH, kept)` decides what the queries see."""
    q, k, v = cfg.qkv(p, rms_norm(x_BTD, p["attn_norm"], cfg.rms_eps))
    k, v = jnp.swapaxes(rotate(k, *cos_sin), 1, 2), jnp.swapaxes(v, 1, 2)
    out, kept = attend(rotate(q, *cos_sin), k, v)
    merged, o_ED = (
        out.reshape(*out.shape[:2], -1),
        p["o"].reshape(-1, cfg.width),
    )  # with four axes it is half as fast on a CPU
    x_BTD = x_BTD + project("BTE,ED->BTD", merged, o_ED)
    h = rms_norm(x_BTD, p["mlp_norm"], cfg.rms_eps)
    gated = swiglu(project("BTD,DF->BTF", h, p["gate"]), project("BTD,DF->BTF", h, p["up"]))
    return x_BTD + project("BTF,FD->BTD", gated, p["down"]), kept


REMAT = {
    "none": None,  # keep every activation
    "dots": jax.checkpoint_policies.save_only_these_names(
        PROJECTED
    ),  # keep the outputs of the weight matmuls
    "full": jax.checkpoint_policies.nothing_saveable,  # keep the layer's input alone
}


def remat(function, policy: str):
    """Wrap a layer so that its backward pass recomputes what `policy` (a key of REMAT) does not keep."""
    if policy not in REMAT:
        raise ValueError(f"model.remat={policy!r}; allowed: {', '.join(REMAT)}")
    if policy == "none":
        return function
    return jax.checkpoint(
        function, policy=REMAT[policy], prevent_cse=False
    )  # scan keeps the two passes apart already


def at_end(x_PSD: jax.Array, length_P: jax.Array) -> jax.Array:
    """x [P,D] at the last position of each prompt; row by row, so that it stays on the row's device."""
    return jnp.take_along_axis(x_PSD, (length_P - 1)[:, None, None], axis=1)[:, 0]


class Placing(NamedTuple):
    """Where a pass keeps things on a mesh, and how it attends; as it stands, for one device."""

    rows: Callable = lambda tree: tree  # activations -> the same, their rows over the devices
    weights: Callable = lambda layer: (
        layer
    )  # of one layer -> the same, gathered to where the rows are
    attend: Callable = causal  # a form of attention.causal


def forward(
    cfg: Config, phi: Tree, seqs: Sequences, remat_policy: str = "none", on: Placing = Placing()
) -> jax.Array:
    """Final hidden states [B,T,D]: position t predicts tokens_BT[:, t] (t = 0 is the prompt's last token).

    A prompt and the M rows that continue it lie behind each other, W = S + M T positions on the prompt's device, so that every
    weight has one matmul for both; attention alone takes them apart.
    """
    P, S = seqs.prompt_PS.shape
    B, T = seqs.tokens_BT.shape
    join = lambda x_PS, x_BT: jnp.concatenate(
        [x_PS, x_BT.reshape(P, B // P * T, *x_BT.shape[2:])], axis=1
    )
    apart = lambda x_PW: (x_PW[:, :S], x_PW[:, S:].reshape(B, T, *x_PW.shape[2:]))
    prompt_mask_PS = jnp.arange(S) < seqs.prompt_len_P[:, None]
    start_B = jnp.repeat(seqs.prompt_len_P, B // P)
    turn = rotation(
        cfg, join(jnp.broadcast_to(jnp.arange(S), (P, S)), start_B[:, None] + jnp.arange(T))
    )

    def see(q_PWNH, k_PKWH, v_PKWH):
        heads_third = lambda x_PKWH: (
            jnp.swapaxes(x, 1, 2) for x in apart(jnp.swapaxes(x_PKWH, 1, 2))
        )
        (q_PSNH, q_BTNH), (k_PKSH, k_BKTH), (v_PKSH, v_BKTH) = (
            apart(q_PWNH),
            heads_third(k_PKWH),
            heads_third(v_PKWH),
        )
        return join(
            on.attend(q_PSNH, k_PKSH, v_PKSH),
            on.attend(q_BTNH, k_BKTH, v_BKTH, (k_PKSH, v_PKSH, prompt_mask_PS)),
        ), None

    def layer(x_PWD, p):
        return on.rows(block(cfg, on.weights(p), x_PWD, turn, see)[0]), None

    inputs = on.rows(look_up(phi["embed"], join(seqs.prompt_PS, seqs.tokens_BT)))
    x_PSD, x_BTD = apart(jax.lax.scan(remat(layer, remat_policy), inputs, phi["layers"])[0])
    first_BD = jnp.repeat(at_end(x_PSD, seqs.prompt_len_P), B // P, axis=0)
    return rms_norm(
        jnp.concatenate([first_BD[:, None], x_BTD[:, :-1]], axis=1), phi["final_norm"], cfg.rms_eps
    )


def forward_packed(
    cfg: Config, phi: Tree, rows, remat_policy: str = "none", on: Placing = Placing()
) -> jax.Array:
    """Final hidden states [R,W,D] of packing.Rows: several sequences in a row, each seeing itself alone."""
    turn = rotation(cfg, rows.position_RW)

    def layer(x_RWD, p):
        see = lambda q, k, v: (on.attend(q, k, v, segment_BT=rows.segment_RW), None)
        return on.rows(block(cfg, on.weights(p), x_RWD, turn, see)[0]), None

    x_RWD, _ = jax.lax.scan(
        remat(layer, remat_policy), on.rows(look_up(phi["embed"], rows.token_RW)), phi["layers"]
    )
    return rms_norm(x_RWD, phi["final_norm"], cfg.rms_eps)


def prefill(cfg: Config, phi: Tree, prompt_PS, prompt_len_P, cache_dtype, attend=causal):
    """Hidden state [P,D] that predicts the first new token, and the prompts' cache (k, v), each [L,P,K,S,H].

    phi and the cache may be kept as bits (precision.store).
    """
    P, S = prompt_PS.shape
    turn = rotation(cfg, jnp.broadcast_to(jnp.arange(S), (P, S)))

    def layer(x_PSD, p):
        return block(
            cfg,
            load(p),
            x_PSD,
            turn,
            lambda q, k, v: (attend(q, k, v), (store(k, cache_dtype), store(v, cache_dtype))),
        )

    x_PSD, cache = jax.lax.scan(layer, load(phi["embed"][prompt_PS]), phi["layers"])
    return rms_norm(at_end(x_PSD, prompt_len_P), load(phi["final_norm"]), cfg.rms_eps), cache


def empty_cache(cfg: Config, B: int, T: int, dtype) -> tuple[jax.Array, jax.Array]:
    """Keys [L,B,K,H,T] and values [L,B,K,T,H] of B rows: scores are a matmul with the keys as they lie."""
    K, H = cfg.kv_heads, cfg.head_dim
    return jnp.zeros((cfg.layers, B, K, H, T), dtype), jnp.zeros((cfg.layers, B, K, T, H), dtype)


def decode(
    cfg: Config,
    phi: Tree,
    token_B,
    t,
    prompt_len_P,
    prompt_cache,
    cache,
    ends: tuple[int, ...],
    spread=lambda attend: attend,
):
    """Append completion token t (traced scalar) of every row; hidden state [B,D] predicting t + 1, and the grown cache.

    prompt_cache: (k, v) [L,P,K,S,H] from prefill; cache: as of empty_cache, filled below t; of both each kv head may be there
    several times in a row. phi and caches may be kept as bits (precision.store). ends: static, ascending; what lies behind the
    first above t is not read. spread: puts the attention of a row to its cache over a mesh (attention.decode_over_mesh).

    On a CPU the scan copies each layer's weights and cache out of their stack; with the layers written out a step takes .285 s
    instead of .316 (SmolLM2-135M, 64 rows, 2 cores; no less with AVX-512), and its compilation 10 s instead of 3.
    """
    B, P, S = token_B.shape[0], prompt_len_P.shape[0], prompt_cache[0].shape[3]
    prompt_mask_PS = jnp.arange(S) < prompt_len_P[:, None]
    turn = rotation(cfg, (jnp.repeat(prompt_len_P, B // P) + t)[:, None])

    def see(q, k, v, cache, prompt, i, t):
        """Of layer i: what the rows' queries at t see, and the cache [L,B,K,..] with their keys and values."""
        put = lambda whole, new, *at: jax.lax.dynamic_update_slice(
            whole, store(new, whole.dtype)[None], at
        )
        filled = lambda whole, axis, end: load(
            jax.lax.dynamic_slice(
                whole,
                (i, 0, 0, 0, 0),
                tuple(
                    1 if a == 0 else end if a == axis else size
                    for a, size in enumerate(whole.shape)
                ),
            )
        )[0].astype(q.dtype)
        keys, values = (
            put(cache[0], jnp.swapaxes(k, 2, 3), i, 0, 0, 0, t),
            put(cache[1], v, i, 0, 0, t, 0),
        )
        prompt_k, prompt_v, mask_PS = prompt
        shared = load(prompt_k).astype(q.dtype), load(prompt_v).astype(q.dtype), mask_PS
        upto = lambda end: attention(
            q, (filled(keys, 4, end), filled(values, 3, end), jnp.arange(end) <= t), shared
        )
        which = jnp.sum(t >= jnp.asarray(ends[:-1], jnp.int32))
        return jax.lax.switch(which, [functools.partial(upto, end) for end in ends]), (keys, values)

    def layer(carry, xs):
        x_B1D, cache = carry
        p, i, *prompt = xs
        held = lambda x: jnp.repeat(x, cache[0].shape[2] // cfg.kv_heads, axis=1)
        attend = lambda q, k, v: spread(see)(
            q, held(k), held(v), cache, (*prompt, prompt_mask_PS), i, t
        )
        return block(cfg, load(p), x_B1D, turn, attend), None

    layers = phi["layers"], jnp.arange(cfg.layers), *prompt_cache
    (x_B1D, cache), _ = jax.lax.scan(layer, (load(phi["embed"][token_B])[:, None], cache), layers)
    return rms_norm(x_B1D[:, 0], load(phi["final_norm"]), cfg.rms_eps), cache


def llama3_frequencies(
    frequencies: np.ndarray, factor, low_freq_factor, high_freq_factor, original
) -> np.ndarray:
    """Llama 3's long-context scaling: slow channels divided by `factor`, fast ones kept, a linear ramp between."""
    turns = original * frequencies / (2 * math.pi)  # rotations within the original context
    ramp = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    return frequencies * (ramp + (1 - ramp) / factor)
