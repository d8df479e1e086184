"""Metadata of a GGUF file, and the config.json of the llama model it describes."""

from __future__ import annotations

import pathlib

import gguf
import numpy as np

from experiments.smollm2.wheel import REQUIREMENT

# metadata for which the conversion is right; tokenizer.py builds llama.cpp's "smollm" pre-tokenizer
SUPPORTED = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
}


def open_gguf(path: pathlib.Path, source: str) -> gguf.GGUFReader:
    """The reader of a GGUF file; ValueError, with the name of its wheel, where it is damaged."""
    try:
        return gguf.GGUFReader(path)
    except OSError:
        raise
    except Exception as error:
        # the reader checks little, and has no error of its own
        raise ValueError(
            f"the GGUF file in {source} cannot be read ({type(error).__name__}: {error}); fetch "
            "the wheel again"
        ) from error


def field(reader: gguf.GGUFReader, key: str, default=None):
    """The metadata value of `key` as a Python object, or `default`; ValueError without either."""
    if key in reader.fields:
        return reader.fields[key].contents()
    if default is None:
        raise ValueError(
            f"the GGUF file has no metadata key {key!r}; is it the one from {REQUIREMENT}?"
        )
    return default


def check_supported(reader: gguf.GGUFReader) -> None:
    """ValueError for a GGUF file whose conversion here would be silently wrong."""
    for key, wanted in SUPPORTED.items():
        if (found := field(reader, key)) != wanted:
            raise ValueError(
                f"the GGUF file has {key} = {found!r}, and only {wanted!r} is supported here"
            )
    if (scaling := field(reader, "llama.rope.scaling.type", "none")) != "none":
        raise ValueError(
            f"the GGUF file has llama.rope.scaling.type = {scaling!r}; RoPE scaling is not "
            "supported"
        )
    heads = field(reader, "llama.attention.head_count")
    width = field(reader, "llama.embedding_length")
    rotated = field(reader, "llama.rope.dimension_count", width // heads)
    if rotated * heads != width:
        raise ValueError(
            f"the GGUF file rotates {rotated} of {width // heads} dimensions a head, and must "
            "rotate all"
        )


def make_config(reader: gguf.GGUFReader) -> dict:
    """The llama `config.json`. transformers 4 and 5 both read `rope_theta` at the top level."""
    heads = field(reader, "llama.attention.head_count")
    # GGUF stores a float32: 1e-5 comes back as 9.99999975e-06, whose shortest decimal is 1e-5
    eps = float(str(np.float32(field(reader, "llama.attention.layer_norm_rms_epsilon"))))
    tokens = len(field(reader, "tokenizer.ggml.tokens"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        **special_ids(reader),
        "dtype": "float32",
        "head_dim": field(reader, "llama.embedding_length") // heads,
        "hidden_act": "silu",
        "hidden_size": field(reader, "llama.embedding_length"),
        "initializer_range": 0.02,
        "intermediate_size": field(reader, "llama.feed_forward_length"),
        "max_position_embeddings": field(reader, "llama.context_length"),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": field(reader, "llama.block_count"),
        "num_key_value_heads": field(reader, "llama.attention.head_count_kv", heads),
        "rms_norm_eps": eps,
        "rope_scaling": None,
        "rope_theta": field(reader, "llama.rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in {tensor.name for tensor in reader.tensors},
        "use_cache": True,
        "vocab_size": field(reader, "llama.vocab_size", tokens),
    }


def special_ids(reader: gguf.GGUFReader) -> dict[str, int]:
    """Ids of bos, eos and pad under their config.json names."""
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {
        f"{ours}_token_id": field(reader, f"tokenizer.ggml.{theirs}_token_id")
        for ours, theirs in names.items()
    }
