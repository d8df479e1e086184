"""A matmul that drops bits FAILs, the model's own does not."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bridge_jax.preflight import precision
from bridge_jax.preflight.record import FAIL, OK


def tf32(x: jax.Array) -> jax.Array:
    """x with TF32's ten bits of mantissa."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) & ~((1 << 13) - 1)
    return x + jax.lax.stop_gradient(jax.lax.bitcast_convert_type(bits, jnp.float32) - x)


def test_fp32():
    """The model's own product is within some roundings of float64."""
    assert precision.judge(precision.multiply, jax.devices()[0]).grade == OK


def test_fewer_bits():
    """TF32 in both factors, or bfloat16."""
    device = jax.devices()[0]
    record = precision.judge(lambda a, b: precision.multiply(tf32(a), tf32(b)), device)
    assert record.grade == FAIL and "NVIDIA_TF32_OVERRIDE" in record.way_out
    rounded = lambda a, b: (a.astype(jnp.bfloat16) @ b.astype(jnp.bfloat16)).astype(jnp.float32)
    assert precision.judge(rounded, device).grade == FAIL


def test_a_backward_pass_of_fewer_bits():
    """Although the product itself is right."""

    @jax.custom_vjp
    def product(a, b):
        return precision.multiply(a, b)

    def backward(factors, g):
        a, b = factors
        return tf32(g) @ b.T, a.T @ g

    product.defvjp(lambda a, b: (product(a, b), (a, b)), backward)
    assert precision.judge(product, jax.devices()[0]).grade == FAIL
