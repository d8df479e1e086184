"""A model folder, loaded for interactive use."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import pytest

from bridge_jax.evaluation import model
from bridge_jax.filesystem import hf_folder
from bridge_jax.models import params
from configs import ladder
from tests import toys

FOLDER = pathlib.Path(__file__).parents[2] / ladder.BASE


def test_load_folder():
    """Architecture, tokenizer and weights are those that the folder's files have, on one device."""
    cfg, tokenizer, theta = model.load_folder(str(FOLDER))
    assert cfg == params.read_config(hf_folder.hf_json(FOLDER))
    assert tokenizer.decode(tokenizer.encode("12+7=")) == "12+7="
    assert toys.same_bits(theta, params.load(cfg, FOLDER))
    assert {leaf.dtype for leaf in jax.tree.leaves(theta)} == {jnp.dtype("float32")}
    assert {leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(theta)} == {True}


def test_load_folder_in_another_dtype():
    """The weights are cast as they are read."""
    theta = model.load_folder(str(FOLDER), jnp.bfloat16)[2]
    assert {leaf.dtype for leaf in jax.tree.leaves(theta)} == {jnp.dtype("bfloat16")}


def test_a_folder_without_a_model(tmp_path):
    """ValueError or OSError, as for the commands."""
    with pytest.raises((ValueError, OSError), match=str(tmp_path)):
        model.load_folder(str(tmp_path))
