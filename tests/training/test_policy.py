"""The Policy of a model: copies of prompts by devices, merged weights, and what w is pulled by."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.distributed import sharding
from bridge_jax.distributed.sharding import MeshConfig
from bridge_jax.models import lora
from bridge_jax.training import policy
from bridge_jax.types import Sequences
from tests import toys


@pytest.mark.parametrize(
    "P, M, sizes, parts",
    [
        (3, 4, None, 1),
        (8, 4, dict(fsdp=8), 1),
        (4, 4, dict(fsdp=8), 2),
        (2, 6, dict(data=2, fsdp=2, tensor=2), 2),
        # 3 rows of 2 prompts: 6 parts do not divide over 8 devices either
        (2, 3, dict(fsdp=8), 1),
    ],
)
def test_parts_of_a_group(P, M, sizes, parts):
    """The fewest parts of the M rows of a prompt that give all devices as many."""
    mesh = sizes and sharding.make_mesh(MeshConfig(**sizes))
    assert policy.parts_of_group(P, M, mesh) == parts


def test_prompts_are_repeated_for_their_parts():
    """4 prompts of 4 samples on 8 devices: each prompt twice, in order; the samples stay."""
    prompt_PS = np.arange(12).reshape(4, 3)
    seqs = Sequences(prompt_PS, np.arange(4) + 1, np.zeros((16, 5), int), np.full(16, 5))
    repeated = policy.repeat_prompts(seqs, sharding.make_mesh(MeshConfig(fsdp=8)))
    np.testing.assert_array_equal(repeated.prompt_PS, np.repeat(prompt_PS, 2, axis=0))
    np.testing.assert_array_equal(repeated.prompt_len_P, [1, 1, 2, 2, 3, 3, 4, 4])
    assert repeated.tokens_BT is seqs.tokens_BT
    assert policy.repeat_prompts(seqs, None) is seqs


def test_w_is_pulled_through_the_merge():
    """pull(w, G) is the gradient in w of <G, merge(theta, w)>, for a G of any direction."""
    adapter = lora.Lora(rank=2)
    made = policy.make(toys.CFG, adapter, jnp.float32)
    theta = toys.transformer_theta()
    w = toys.noise_like(made.init_w(jax.random.key(0)), 1, 0.5)
    G = toys.noise_like(theta, 2, 1.0)
    inner = lambda w: sum(
        jnp.sum(g * x) for g, x in zip(*map(jax.tree.leaves, (G, made.merge(theta, w))))
    )
    for ours, expected in zip(*map(jax.tree.leaves, (made.pull(w, G), jax.grad(inner)(w)))):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_without_w_the_weights_are_theta():
    """And an adapter that was just initialized changes none of them."""
    made = policy.make(toys.CFG, lora.Lora(rank=2), jnp.float32)
    theta = toys.transformer_theta()
    assert toys.same_bits(made.merge(theta, None), theta)
    assert toys.same_bits(made.merge(theta, made.init_w(jax.random.key(0))), theta)
