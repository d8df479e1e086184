"""Names of compute dtypes, and sums in fp32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bridge_jax.models import precision
from tests import errors


def test_an_unknown_dtype_is_refused():
    """The error has the key, what was given and what is allowed."""
    assert precision.dtype_of("model.dtype", "bfloat16") == jnp.bfloat16
    with errors.raises(ValueError, "model.dtype='fp8'", "float32, bfloat16"):
        precision.dtype_of("model.dtype", "fp8")


def test_sums_are_fp32_and_fp32_is_multiplied_with_all_bits():
    """Of bfloat16, too; the small terms of a sum are not lost."""
    ones = jnp.ones((1, 513), jnp.bfloat16)
    found = precision.fp32_einsum("ij,kj->ik", ones, ones)
    # bfloat16 has no 513
    assert found.dtype == jnp.float32 and found[0, 0] == 513
    wide = jnp.ones((1, 2), jnp.float32)
    text = str(jax.make_jaxpr(lambda a: precision.fp32_einsum("ij,kj->ik", a, a))(wide))
    assert "HIGHEST" in text
