"""Precision: names of compute dtypes; fp32 inputs of a matmul are multiplied, and summed, as fp32.

By default an accelerator multiplies fp32 with fewer bits, and returns the sums of a bfloat16 matmul
in bfloat16. Left out: the sums of gradients over positions (weight_grads.py).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def dtype_of(key: str, name: str):
    """The dtype of a config value or flag; ValueError lists what is allowed."""
    if name not in DTYPES:
        raise ValueError(f"{key}={name!r}; allowed: {', '.join(DTYPES)}")
    return DTYPES[name]


def matmul_precision(dtype) -> str | None:
    """jax's precision of matmuls for this dtype: all bits for fp32, otherwise the default."""
    return "highest" if dtype == jnp.float32 else None


def fp32_einsum(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """einsum with an fp32 result, whatever the compute dtype."""
    return jnp.einsum(
        subscripts, a, b, precision=matmul_precision(a.dtype), preferred_element_type=jnp.float32
    )
