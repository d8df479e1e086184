"""bfloat16 as bits: the same numbers back, and nothing else touched."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from bridge_jax.models.storage_bits import BITS, from_storage, storage_dtype, to_storage


def test_bits_come_back_as_the_same_bfloat16():
    """Zeros with their sign, subnormals and infinities survive storage as bits."""
    x = jnp.asarray([0.0, -0.0, 1.5, -3e38, 1e-40, np.inf, -np.inf], jnp.bfloat16)
    stored = to_storage(x, storage_dtype(x.dtype, as_bits=True))
    assert stored.dtype == BITS and from_storage(stored).dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(from_storage(stored)), np.asarray(x))
    np.testing.assert_array_equal(
        np.signbit(np.asarray(from_storage(stored), np.float32))[:2], [0, 1]
    )


def test_what_is_stored_as_bits_is_rounded_first():
    """Keys of an fp32 pass in a bfloat16 cache: as a plain cache rounds them."""
    x = jnp.asarray([1.001, 2.003, -7.77])
    np.testing.assert_array_equal(
        np.asarray(from_storage(to_storage(x, BITS))), np.asarray(to_storage(x, jnp.bfloat16))
    )


def test_other_dtypes_are_stored_as_they_are():
    """Only bfloat16 is stored as bits, and only where that is asked for."""
    assert storage_dtype(jnp.float32, as_bits=True) == jnp.float32
    assert storage_dtype(jnp.bfloat16, as_bits=False) == jnp.bfloat16
    x = jnp.arange(3.0)
    tree = from_storage(
        {"fp32": to_storage(x, jnp.float32), "window": jnp.arange(3, dtype=jnp.int32)}
    )
    assert (tree["fp32"].dtype, tree["window"].dtype) == (jnp.float32, jnp.int32)
