"""The tiny model of a rehearsal: a paper model's architecture with random weights, a real
tokenizer.

It is written as a Hugging Face folder, so that every command reads it as it would the real one.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from experiments.reproduce.checks import tokenizer_folder
from experiments.reproduce.request import MODELS, Request

# in place of the model's own sizes
TINY = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    intermediate_size=64,
    max_position_embeddings=1024,
)
SEED = 0


def architecture(name: str) -> dict:
    """The model's config.json with the sizes of TINY; vocabulary and family are its own."""
    arch = importlib.import_module(f"configs.{name}").ARCH | TINY
    # scaled positions begin beyond the tiny model's
    arch.pop("rope_scaling", None)
    return arch


def write_model(request: Request) -> Path:
    """Write the folder unless it is there."""
    folder = Path(request.base_model)
    if (folder / "config.json").exists() or request.model not in MODELS or request.model_path:
        return folder
    # slow to import
    import jax

    from bridge_jax.models import params

    tokenizer, arch = tokenizer_folder(request), architecture(request.model)
    cfg = params.read_config(arch)
    extra = tuple(sorted(tokenizer.glob("tokenizer*.json")))
    params.save(cfg, params.init(cfg, jax.random.key(SEED)), folder, arch, extra_files=extra)
    return folder
