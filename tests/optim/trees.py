"""Parameters of single arrays, and what is declared of the parameters of a tiny model."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from bridge_jax.models import lora, params
from bridge_jax.training import build
from bridge_jax.types import Params
from tests.models import tiny


def one(theta, theta_hat=None, w=None) -> Params:
    """Params of single arrays."""
    leaf = lambda x: None if x is None else {"x": jnp.asarray(x, jnp.float32)}
    return Params(leaf(theta), leaf(theta_hat), leaf(w))


@functools.cache
def declared(family: str, size: int, layers: int):
    """(abstract Params, what is declared of them, names of norms and biases) of a model whose sides
    all have this size.
    """
    sides = ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    hf = tiny.hf_of(family) | dict.fromkeys((*sides, "intermediate_size"), size)
    cfg = params.read_config(hf | dict(num_hidden_layers=layers))
    adapter = lora.Lora(rank=size)
    tree = Params(params.abstract(cfg), params.abstract(cfg), lora.abstract(cfg, adapter))
    vectors = {
        f"{part}/{path}"
        for path, tensor in cfg.tensors().items()
        for part in ("theta", "theta_hat")
        if tensor.hf.endswith(("norm.weight", ".bias"))
    }
    return tree, build.matrices(cfg, adapter), vectors


def by_name(tree) -> dict:
    """Path in jax's words -> leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
