"""The shipped base model is the one that its page names, and the quickstart begins from it."""

from __future__ import annotations

import hashlib
import pathlib

import pytest

from bridge_jax import methods
from bridge_jax.filesystem import hf_folder
from bridge_jax.models import params
from configs import ladder, quickstart

FOLDER = pathlib.Path(__file__).parents[2] / ladder.BASE
WEIGHTS = FOLDER / "model.safetensors"


def test_hash_and_size():
    """README.md has the hash of the weights, which stay below 0.7 MB."""
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() in (FOLDER / "README.md").read_text()
    assert WEIGHTS.stat().st_size < 700_000


def test_architecture():
    """The folder holds the model that configs/ladder.py describes."""
    stored, stated = (
        params.read_config(hf) for hf in (hf_folder.hf_json(FOLDER), dict(ladder.ARCH))
    )
    for name in ("width", "layers", "heads", "kv_heads", "head_dim", "mlp", "vocab"):
        assert getattr(stored, name) == getattr(stated, name), name


@pytest.mark.parametrize("method", methods.names())
def test_every_method_begins_from_it(method):
    """Every method's config names the folder; the recipe that made the model does not."""
    assert quickstart.get_config(method).model.path == ladder.BASE
    assert ladder.get_config("base").model.path == ""
