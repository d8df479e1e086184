"""The decoder of all families: tensor table, hooks, forward, prefill, decode.

Training, prefill and decoding share one block, so that sampler and trainer compute the same
probabilities. A prompt is computed once for all rows that continue it: its keys are stored per
prompt, [P,K,S,H], and a row's queries attend to them and to the row's own keys under one softmax.
Prompts are right-padded; completions start at position `prompt_len`.

A family is one file with a subclass of Config, which overrides the tensors and hooks in which it
differs: q/k/v, norm, activation, mlp, rotary angles, scale of the embedding, constants per layer
such as a sliding window, or the whole block. Left out: mixture of experts, dropout, a soft cap on
logits, a cache that drops positions outside of every window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridge_jax.models import rope
from bridge_jax.models.attention import cache as decode_attention
from bridge_jax.models.attention import causal
from bridge_jax.models.forward_sharding import ForwardSharding
from bridge_jax.models.norm import rms_norm
from bridge_jax.models.remat import keep_inputs_only, remat
from bridge_jax.models.storage_bits import from_storage, to_storage
from bridge_jax.models.weight_grads import embed_lookup, project
from bridge_jax.types import Sequences, Tree


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One parameter, as sharding, initialization, LoRA and HF conversion need it."""

    shape: tuple[int, ...]  # without the layer axis
    axes: tuple[str, ...]  # logical axis of each dimension
    hf: str  # name in the HF checkpoint; "{layer}" where one HF tensor per layer is stacked
    # Number of leading dimensions that are contracted; HF stores [out, in]. 0: not a matrix, HF
    # merges heads and head_dim.
    inputs: int = 0
    init: str = "normal"  # normal (std Config.init_std), ones, zeros


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and hooks of one model; a family's subclass overrides the hooks in which it differs."""

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

    def layer_constants(self) -> dict[str, np.ndarray]:
        """Untrained numbers of each layer, [L,...]; a block finds them in p, among the weights.

        "window", int32 [L], sets the sliding windows: positions that a query sees, itself included.
        """
        return {}

    def scale_embedding(self, x_BTD: jax.Array) -> jax.Array:
        """The input of the first layer, from the rows of the embedding."""
        return x_BTD

    def norm(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        """The norm in the blocks and before the head."""
        return rms_norm(x, scale, self.rms_eps)

    def inverse_frequencies(self) -> np.ndarray:
        """Rotation speed of each half-head channel, [H/2] radians per position."""
        return rope.frequencies(self.rope_theta, self.head_dim)

    def rotary(self, position_BT: jax.Array):
        """cos and sin of the rotation by position, [B,T,H/2]."""
        return rope.cos_sin(self.inverse_frequencies(), position_BT)

    def qkv(self, p: Tree, x_BTD: jax.Array):
        """Queries [B,T,N,H], keys and values [B,T,K,H], before the rotation."""
        return tuple(project("BTD,DNH->BTNH", x_BTD, p[name]) for name in ("q", "k", "v"))

    def activation(self, gate_BTF: jax.Array) -> jax.Array:
        """The activation that gates the mlp's up projection (Shazeer 2020)."""
        return jax.nn.silu(gate_BTF)

    def mlp_of(self, p: Tree, x_BTD: jax.Array) -> jax.Array:
        """The gated mlp, [B,T,D]."""
        return gated_mlp(self, p, x_BTD)

    def block(self, p: Tree, x_BTD: jax.Array, cos_sin, attend: Callable):
        """One layer: the next x_BTD, and the cache from `attend`.

        attend(q_BTNH, k_BKTH, v_BKTH) -> (out_BTNH, cache): training, prefill and decoding differ
        in this function alone, which a block calls once.
        """
        attended, cache = self_attention(self, p, self.norm(x_BTD, p["attn_norm"]), cos_sin, attend)
        x_BTD = x_BTD + attended
        return x_BTD + self.mlp_of(p, self.norm(x_BTD, p["mlp_norm"])), cache


def hf_numbers(hf: dict, activations: tuple[str, ...] = ("silu",)) -> dict:
    """Config fields common to all families, from HF's config.json.

    activations: values of hidden_act that the family computes. ValueError if a key is missing or
    not supported.
    """
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
    if hf.get("hidden_act", activations[0]) not in activations:
        allowed = ", ".join(map(repr, activations))
        raise ValueError(f"hidden_act={hf['hidden_act']!r} is not supported; allowed: {allowed}")
    heads, kv_heads = (
        hf["num_attention_heads"],
        hf.get("num_key_value_heads") or hf["num_attention_heads"],
    )
    if heads % kv_heads:
        raise ValueError(
            f"num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}"
        )
    # transformers 5 writes rope_parameters; older files write rope_theta and rope_scaling, with
    # "type" for "rope_type"
    scaling = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    theta = scaling.pop("rope_theta", None) or hf.get("rope_theta") or 10000.0
    scaling["rope_type"] = scaling.get("rope_type", scaling.pop("type", "default"))
    if (
        part := scaling.pop("partial_rotary_factor", hf.get("partial_rotary_factor")) or 1.0
    ) != 1.0:
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
        rope_scaling=None if scaling["rope_type"] == "default" else tuple(sorted(scaling.items())),
    )


def base_tensors(cfg: Config) -> dict[str, Tensor]:
    """The tensors of a pre-norm block with a gated mlp; "layers/..." get a leading layer axis."""
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


# ---- one block


def self_attention(cfg: Config, p: Tree, x_BTD: jax.Array, cos_sin, attend: Callable):
    """Attention with rotated queries and keys, projected back to [B,T,D].

    `attend` as in a block.
    """
    q, k, v = cfg.qkv(p, x_BTD)
    k_BKTH = jnp.swapaxes(rope.rotate(k, *cos_sin), 1, 2)
    v_BKTH = jnp.swapaxes(v, 1, 2)
    out_BTNH, cache = attend(rope.rotate(q, *cos_sin), k_BKTH, v_BKTH)
    # Heads and head width are one axis E: with four axes this matmul is twice as slow on a CPU.
    out_BTE, o_ED = out_BTNH.reshape(*out_BTNH.shape[:2], -1), p["o"].reshape(-1, cfg.width)
    return project("BTE,ED->BTD", out_BTE, o_ED), cache


def gated_mlp(cfg: Config, p: Tree, x_BTD: jax.Array) -> jax.Array:
    """(activation(x gate) * (x up)) down."""
    gate = project("BTD,DF->BTF", x_BTD, p["gate"])
    up = project("BTD,DF->BTF", x_BTD, p["up"])
    gated = keep_inputs_only(lambda gate, up: cfg.activation(gate) * up)(gate, up)
    return project("BTF,FD->BTD", gated, p["down"])


def layer_inputs(cfg: Config, phi: Tree) -> tuple[Tree, dict[str, jax.Array]]:
    """The inputs of a scan over layers: weights and constants, with a leading layer axis."""
    constants = cfg.layer_constants()
    return phi["layers"], {name: jnp.asarray(value) for name, value in constants.items()}


def has_windows(cfg: Config) -> bool:
    """Whether layers have sliding windows."""
    return "window" in cfg.layer_constants()


def last_of_prompt(x_PSD: jax.Array, length_P: jax.Array) -> jax.Array:
    """x [P,D] at the last position of each prompt.

    Row by row, so that rows stay on their device.
    """
    return jnp.take_along_axis(x_PSD, (length_P - 1)[:, None, None], axis=1)[:, 0]


# ---- training


def forward(
    cfg: Config,
    phi: Tree,
    seqs: Sequences,
    remat_policy: str = "none",
    sharding: ForwardSharding = ForwardSharding(),
) -> jax.Array:
    """Final hidden states [B,T,D]: position t predicts tokens_BT[:, t]; t = 0 is the prompt's last.

    A prompt and the M rows that continue it are one row of W = S + M T positions on the prompt's
    device, so that every weight has one matmul for both. Attention alone separates them.
    """
    P, S = seqs.prompt_PS.shape
    B, T = seqs.tokens_BT.shape

    def join(x_PS, x_BT):
        return jnp.concatenate([x_PS, x_BT.reshape(P, B // P * T, *x_BT.shape[2:])], axis=1)

    def split(x_PW):
        return x_PW[:, :S], x_PW[:, S:].reshape(B, T, *x_PW.shape[2:])

    def split_heads(x_PKWH):
        of_prompt, of_row = split(jnp.swapaxes(x_PKWH, 1, 2))
        return jnp.swapaxes(of_prompt, 1, 2), jnp.swapaxes(of_row, 1, 2)

    prompt_mask_PS = jnp.arange(S) < seqs.prompt_len_P[:, None]
    prompt_position_PS = jnp.broadcast_to(jnp.arange(S), (P, S))
    start_B = jnp.repeat(seqs.prompt_len_P, B // P)
    cos_sin = cfg.rotary(join(prompt_position_PS, start_B[:, None] + jnp.arange(T)))

    def layer(x_PWD, weights_constants):
        weights, constants = weights_constants
        window = constants.get("window")

        def attend(q_PWNH, k_PKWH, v_PKWH):
            (q_PSNH, q_BTNH), (k_PKSH, k_BKTH) = split(q_PWNH), split_heads(k_PKWH)
            v_PKSH, v_BKTH = split_heads(v_PKWH)
            prompt = k_PKSH, v_PKSH, prompt_mask_PS
            out_PSNH = sharding.attend(q_PSNH, k_PKSH, v_PKSH, window=window)
            out_BTNH = sharding.attend(q_BTNH, k_BKTH, v_BKTH, prompt, window=window)
            return join(out_PSNH, out_BTNH), None

        x_PWD, _ = cfg.block(sharding.weights(weights) | constants, x_PWD, cos_sin, attend)
        return sharding.rows(x_PWD), None

    embedded = embed_lookup(phi["embed"], join(seqs.prompt_PS, seqs.tokens_BT))
    x_PWD = sharding.rows(cfg.scale_embedding(embedded))
    x_PWD, _ = jax.lax.scan(remat(layer, remat_policy), x_PWD, layer_inputs(cfg, phi))
    x_PSD, x_BTD = split(x_PWD)
    first_BD = jnp.repeat(last_of_prompt(x_PSD, seqs.prompt_len_P), B // P, axis=0)
    x_BTD = jnp.concatenate([first_BD[:, None], x_BTD[:, :-1]], axis=1)
    return cfg.norm(x_BTD, phi["final_norm"])


def forward_packed(
    cfg: Config,
    phi: Tree,
    rows,
    remat_policy: str = "none",
    sharding: ForwardSharding = ForwardSharding(),
) -> jax.Array:
    """Final hidden states [R,W,D] of packing.PackedRows.

    Each sequence of a row attends to itself alone.
    """
    cos_sin = cfg.rotary(rows.position_RW)

    def layer(x_RWD, weights_constants):
        weights, constants = weights_constants
        window = constants.get("window")

        def attend(q, k, v):
            return sharding.attend(q, k, v, segment_BT=rows.segment_RW, window=window), None

        x_RWD, _ = cfg.block(sharding.weights(weights) | constants, x_RWD, cos_sin, attend)
        return sharding.rows(x_RWD), None

    x_RWD = sharding.rows(cfg.scale_embedding(embed_lookup(phi["embed"], rows.token_RW)))
    x_RWD, _ = jax.lax.scan(remat(layer, remat_policy), x_RWD, layer_inputs(cfg, phi))
    return cfg.norm(x_RWD, phi["final_norm"])


# ---- sampling: weights and caches may be stored as bits (storage_bits.py)


def prefill(cfg: Config, phi: Tree, prompt_PS, prompt_len_P, cache_dtype, attend=causal):
    """The hidden state [P,D] that predicts the first new token, and the prompts' cache.

    The cache is (k, v), each [L,P,K,S,H]. attend: a form of attention.causal.
    """
    P, S = prompt_PS.shape
    cos_sin = cfg.rotary(jnp.broadcast_to(jnp.arange(S), (P, S)))

    def layer(x_PSD, weights_constants):
        weights, constants = weights_constants
        window = constants.get("window")

        def attend_and_store(q, k, v):
            stored = to_storage(k, cache_dtype), to_storage(v, cache_dtype)
            return attend(q, k, v, window=window), stored

        return cfg.block(from_storage(weights) | constants, x_PSD, cos_sin, attend_and_store)

    x_PSD = cfg.scale_embedding(from_storage(phi["embed"][prompt_PS]))
    x_PSD, cache = jax.lax.scan(layer, x_PSD, layer_inputs(cfg, phi))
    last_PD = last_of_prompt(x_PSD, prompt_len_P)
    return cfg.norm(last_PD, from_storage(phi["final_norm"])), cache


def empty_cache(cfg: Config, B: int, T: int, dtype) -> tuple[jax.Array, jax.Array]:
    """Keys [L,B,K,H,T] and values [L,B,K,T,H] of B rows, for `decode` to fill."""
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
    attend: Callable = decode_attention.attend,
):
    """Appends completion token t of every row; t: a traced scalar, or one for each row, [B].

    Returns the hidden state [B,D] that predicts token t + 1, and the cache with token t added.
    prompt_cache: from prefill. cache: from empty_cache, filled below t. In both each kv head may be
    repeated. attend: a form of attention.cache.attend; for t [B] of attention.slots.

    The layers are scanned. On a CPU this copies each layer's weights and cache out of their stack,
    which costs less than compiling the unrolled layers (docs/speed.md).
    """
    B, P, S = token_B.shape[0], prompt_len_P.shape[0], prompt_cache[0].shape[3]
    prompt_mask_PS = jnp.arange(S) < prompt_len_P[:, None]
    cos_sin = cfg.rotary((jnp.repeat(prompt_len_P, B // P) + t)[:, None])
    copies = cache[0].shape[2] // cfg.kv_heads

    def layer(x_cache, inputs):
        (x_B1D, cache), ((weights, constants), i, (prompt_k, prompt_v)) = x_cache, inputs

        def attend_to_cache(q, k, v):
            k, v = jnp.repeat(k, copies, axis=1), jnp.repeat(v, copies, axis=1)
            at = decode_attention.Position(i, t, constants.get("window"))
            return attend(q, k, v, cache, (prompt_k, prompt_v, prompt_mask_PS), at)

        p = from_storage(weights) | constants
        return cfg.block(p, x_B1D, cos_sin, attend_to_cache), None

    x_B1D = cfg.scale_embedding(from_storage(phi["embed"][token_B])[:, None])
    inputs = layer_inputs(cfg, phi), jnp.arange(cfg.layers), prompt_cache
    (x_B1D, cache), _ = jax.lax.scan(layer, (x_B1D, cache), inputs)
    return cfg.norm(x_B1D[:, 0], from_storage(phi["final_norm"])), cache
