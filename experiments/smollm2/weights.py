"""The weights of a GGUF file as a safetensors file in fp32, under Hugging Face's names."""

from __future__ import annotations

import json
import math
import pathlib

import gguf
import numpy as np

TOP_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection [heads * H, D], from interleaved RoPE order to half-split order.

    llama.cpp rotates the neighbouring rows (2i, 2i + 1) of a head together, Hugging Face the rows
    (i, i + H/2). So row j*H/2 + i of a head in the result is its row 2i + j in the argument, for j
    in {0, 1}.
    """
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)


def tensor_names(layers: int, tied: bool) -> dict[str, str]:
    """GGUF tensor name -> Hugging Face tensor name, of every tensor of the model, in file order."""
    names = {f"{theirs}.weight": f"{ours}.weight" for theirs, ours in TOP_TENSORS.items()}
    for layer in range(layers):
        for theirs, ours in LAYER_TENSORS.items():
            names[f"blk.{layer}.{theirs}.weight"] = f"model.layers.{layer}.{ours}.weight"
    return names if tied else names | {"output.weight": "lm_head.weight"}


def read_tensor(tensor: gguf.ReaderTensor, config: dict) -> np.ndarray:
    """One GGUF tensor as float32 in Hugging Face layout ([out, in]; q and k rows half-split)."""
    weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    if tensor.name.endswith(".attn_q.weight"):
        weight = unpermute(weight, config["num_attention_heads"])
    elif tensor.name.endswith(".attn_k.weight"):
        weight = unpermute(weight, config["num_key_value_heads"])
    return np.ascontiguousarray(weight, dtype="<f4")


def write_weights(reader: gguf.GGUFReader, config: dict, path: pathlib.Path, source: str) -> int:
    """Write `path` in the safetensors format; returns the parameter count.

    One tensor is in memory at a time: shapes are known before anything is dequantised, so that the
    header (8 bytes of length, JSON padded to a multiple of 8) can be written before the data.
    source: the name of the wheel, which goes into the header's metadata.
    """
    names = tensor_names(config["num_hidden_layers"], config["tie_word_embeddings"])
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if missing := sorted(names.keys() - tensors.keys()):
        raise ValueError(
            f"the GGUF file lacks {len(missing)} tensors of a llama model, such as {missing[:3]}"
        )
    if extra := sorted(tensors.keys() - names.keys()):
        raise ValueError(
            f"the GGUF file has {len(extra)} tensors a plain llama model does not, such as "
            f"{extra[:3]}"
        )
    # transformers looks for the entry "format"; "pt" says that the names are PyTorch's
    header, end = {"__metadata__": {"format": "pt", "source": source}}, 0
    for theirs, ours in names.items():
        # GGUF lists the fastest axis first
        shape = [int(size) for size in reversed(tensors[theirs].shape)]
        start, end = end, end + 4 * math.prod(shape)
        header[ours] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for theirs, ours in names.items():
            weight = read_tensor(tensors[theirs], config)
            assert list(weight.shape) == header[ours]["shape"], (ours, weight.shape)
            file.write(weight.data)
    return end // 4
