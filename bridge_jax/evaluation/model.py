"""A model to evaluate: architecture, tokenizer, how to load its weights, and its defaults.

A Hugging Face folder, or an adapter of PEFT beside the base that it names, is opened here; a run
directory by training/reopen.py, since it takes what puts a run together. Both give the same record.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bridge_jax.data import tokenizers
from bridge_jax.distributed import sharding
from bridge_jax.distributed.compiler import compiler_options
from bridge_jax.evaluation.options import Defaults
from bridge_jax.filesystem import hf_folder
from bridge_jax.models import layers, lora, params
from bridge_jax.types import Task, Tree


class EvalModel(NamedTuple):
    """A policy that can be evaluated. Its weights are not in memory before `load`."""

    label: str
    cfg: layers.Config
    tokenizer: Any
    # (mesh, dtype) -> (phi on the mesh, text to add to the label)
    load: Callable
    defaults: Defaults
    # dtype of the KV cache; "": the compute dtype
    cache_dtype: str = ""
    # tasks to evaluate where none is named: the task of a run directory
    own_tasks: tuple[Task, ...] = ()


def open_folder(path: str) -> EvalModel:
    """The model of an HF folder or hub name, or of a PEFT folder; no weights are read yet."""
    adapter = adapter_folder(path)
    folder = hf_folder.locate(path) if adapter is None else base_folder(adapter)
    cfg = params.read_config(hf_folder.hf_json(folder))
    tokenizer = tokenizers.HFTokenizer(str(folder))
    tokenizers.check_vocabulary(tokenizer, cfg.vocab)

    def load(mesh, dtype):
        layout = sharding.of_tree(mesh, params.logical_axes(cfg), params.abstract(cfg))
        if adapter is None:
            return params.load(cfg, folder, layout, dtype), ""
        shape, w, _ = lora.load_peft(cfg, adapter)
        merge = jax.jit(
            lambda theta, w: lora.merge(shape, theta, w, dtype),
            out_shardings=layout,
            compiler_options=compiler_options(),
        )
        return merge(params.load(cfg, folder, layout), w), ""

    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return EvalModel(Path(path).name, cfg, tokenizer, load, Defaults(dtype))


def adapter_folder(path: str) -> Path | None:
    """The folder, where it holds an adapter of PEFT and no model of its own; else None."""
    folder = Path(path).expanduser()
    alone = (folder / lora.PEFT_CONFIG).is_file() and not (folder / "config.json").exists()
    return folder if alone else None


def base_folder(adapter: Path) -> Path:
    """The folder of the model that an adapter belongs to; ValueError where it is not there."""
    try:
        return hf_folder.locate(lora.base_name(adapter))
    except ValueError as error:
        raise ValueError(
            f"the base of {str(adapter)!r}, named in its {lora.PEFT_CONFIG}, cannot be opened: "
            f"{error}"
        ) from error


def load_folder(path: str, dtype=jnp.float32) -> tuple[layers.Config, Any, Tree]:
    """(architecture, tokenizer, weights) of an HF folder or hub name, on the default device.

    For interactive use; docs/tour.ipynb shows what follows.
    """
    opened = open_folder(path)
    theta = params.load(opened.cfg, hf_folder.locate(path), dtype=dtype)
    return opened.cfg, opened.tokenizer, theta
