"""Tiny models of every family for the tests: HF configs, weights that are a function of a tensor's
name, token rows.

The weights need no torch. Their scale is far above the usual init, norms are not one and biases not
zero: attention is sharp, and a mistake in any tensor moves the logits.
"""

from __future__ import annotations

import copy
import functools
import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (gives numpy the name "bfloat16")
import numpy as np
from safetensors.numpy import save_file

from bridge_jax.models import layers, params
from bridge_jax.types import Sequences

# 6 query heads on 2 kv heads, and a head width that is not width / heads
TINY = dict(
    vocab_size=61,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=40,
    rms_norm_eps=1e-5,
    max_position_embeddings=512,
    hidden_act="silu",
    tie_word_embeddings=False,
    eos_token_id=2,
    bos_token_id=1,
    rope_theta=10000.0,
)
# of the four channels of an 8-wide head one is kept, one lies on the ramp, two are slowed down
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=0.5,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
SPECIAL = {
    "llama-tied-scaled": TINY
    | dict(model_type="llama", tie_word_embeddings=True, rope_scaling=LLAMA3),
    "qwen2-tied": TINY | dict(model_type="qwen2", tie_word_embeddings=True, rope_theta=1e6),
    "qwen3-one-kv-head": TINY | dict(model_type="qwen3", num_key_value_heads=1),
}


def hf_of(family: str) -> dict:
    """HF config of a tiny model; a family file may name further keys that it needs, HF_EXAMPLE."""
    return TINY | dict(model_type=family) | getattr(params.family(family), "HF_EXAMPLE", {})


# name -> HF config: every family that is found, and the special ones
CASES = {name: hf_of(name) for name in params.families()} | SPECIAL


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 weight of an HF tensor, a function of its name and shape alone."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if "norm" in name:
        return (1 + 0.3 * draw).astype(np.float32)
    return (draw * (0.5 if len(shape) == 1 else 0.3)).astype(np.float32)


def hf_weights(hf: dict) -> dict[str, np.ndarray]:
    """All weights of an HF config under their HF names."""
    cfg = params.read_config(hf)
    return {
        name: weight(name, params.hf_shape(tensor))
        for path, tensor in cfg.tensors().items()
        for name in params.hf_names(cfg, path, tensor)
    }


def write_folder(
    folder: Path, hf: dict, weights: dict | None = None, dtype: str = "float32"
) -> Path:
    """An HF folder of one file, written with safetensors alone: nothing of params.save."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf))
    weights = hf_weights(hf) if weights is None else weights
    save_file(
        {name: array.astype(dtype) for name, array in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def rows(
    seed: int = 0, P: int = 2, M: int = 2, S: int = 9, T: int = 6, vocab: int = TINY["vocab_size"]
) -> Sequences:
    """Ragged right-padded prompts and completions; the first of each is full, pads are random
    tokens.
    """
    rng = np.random.RandomState(seed)
    prompt_len = rng.randint(1, S, P)
    length = rng.randint(1, T, P * M)
    prompt_len[0], length[0] = S, T
    return Sequences(
        *(
            np.asarray(array, np.int32)
            for array in (
                rng.randint(0, vocab, (P, S)),
                prompt_len,
                rng.randint(0, vocab, (P * M, T)),
                length,
            )
        )
    )


def inside(seqs: Sequences) -> np.ndarray:
    """Mask [B,T] of the completion tokens that count."""
    return np.arange(seqs.tokens_BT.shape[1]) < np.asarray(seqs.length_B)[:, None]


forward = jax.jit(layers.forward, static_argnums=(0, 3))
prefill = jax.jit(layers.prefill, static_argnums=(0, 4))


def logits(cfg, phi, seqs: Sequences) -> np.ndarray:
    """Logits [B,T,V] of every completion token, from layers.forward."""
    return np.asarray(forward(cfg, phi, seqs)) @ np.asarray(layers.head_weights(cfg, phi)).T


@functools.partial(jax.jit, static_argnums=(0, 3))
def decoded(cfg, phi, seqs: Sequences, cache_dtype=jnp.float32) -> jax.Array:
    """Hidden states [B,T,D] of every completion token, from prefill and T - 1 decode steps."""
    B, T = seqs.tokens_BT.shape
    hidden_PD, prompt_cache = layers.prefill(
        cfg, phi, seqs.prompt_PS, seqs.prompt_len_P, cache_dtype
    )

    def step(cache, t):
        hidden_BD, cache = layers.decode(
            cfg,
            phi,
            seqs.tokens_BT[:, t],
            t,
            seqs.prompt_len_P,
            prompt_cache,
            cache,
        )
        return cache, hidden_BD

    _, later_TBD = jax.lax.scan(step, layers.empty_cache(cfg, B, T, cache_dtype), jnp.arange(T - 1))
    first_BD = jnp.repeat(hidden_PD, B // hidden_PD.shape[0], axis=0)
    return jnp.concatenate([first_BD[:, None], jnp.swapaxes(later_TBD, 0, 1)], axis=1)


# ---- the reference; torch is imported only where it is called


def in_transformers(hf: dict) -> bool:
    """Whether transformers knows this family: one's own has no reference there."""
    import transformers

    return hf["model_type"] in transformers.CONFIG_MAPPING


def torch_model(hf: dict):
    """The transformers model of an HF config with our weights, fp32, in eval mode."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**copy.deepcopy(hf))  # it changes the dicts inside
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weight(name, tuple(parameter.shape))))
    return model


def torch_logits(model, seqs: Sequences) -> np.ndarray:
    """transformers' logits [B,T,V] for every completion token, one unpadded row at a time; 0 beyond
    a row's length.
    """
    import torch

    B, T = seqs.tokens_BT.shape
    M = B // len(seqs.prompt_len_P)
    all_logits = np.zeros((B, T, model.config.vocab_size))
    for b in range(B):
        prompt = seqs.prompt_PS[b // M, : seqs.prompt_len_P[b // M]]
        ids = np.concatenate([prompt, seqs.tokens_BT[b, : seqs.length_B[b]]])
        with torch.no_grad():
            row = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()
        all_logits[b, : seqs.length_B[b]] = row[len(prompt) - 1 : -1]
    return all_logits
