"""What a layer keeps for its backward pass, and what is computed again."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.models import layers, params, remat
from tests import errors
from tests.models import tiny


@pytest.mark.slow
def test_remat_policies_give_one_gradient_and_keep_less_and_less():
    """none, dots and full: the same gradient; the compiled program's scratch memory shrinks in this
    order.
    """
    cfg = dataclasses.replace(params.read_config(tiny.CASES["llama"]), layers=8)
    phi = jax.jit(params.init, static_argnums=0)(cfg, jax.random.key(0))
    seqs = tiny.rows(S=24, T=24)
    gradients, scratch = [], []
    for policy in remat.REMAT:
        gradient = jax.grad(
            lambda phi: jnp.sum(layers.forward(cfg, phi, seqs, policy)[..., 0] ** 2)
        )
        program = jax.jit(gradient).lower(phi).compile()
        gradients.append(program(phi))
        scratch.append(program.memory_analysis().temp_size_in_bytes)
    for other in gradients[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), other, gradients[0]
        )
    assert scratch[0] > 1.2 * scratch[1] > 1.2**2 * scratch[2], dict(zip(remat.REMAT, scratch))


def test_an_unknown_remat_policy_is_refused():
    """The error lists the policies that are allowed."""
    with errors.raises(ValueError, "model.remat='all'", "none, dots, full"):
        remat.remat(lambda x: x, "all")
