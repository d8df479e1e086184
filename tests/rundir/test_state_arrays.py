"""Checksums of the arrays of a state."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from bridge_jax.rundir.state_arrays import checksums


def test_checksum_by_hand_and_on_every_changed_element():
    """A checksum equals the hand-computed one and changes with bits, order and sign."""
    sums = checksums(
        {
            "a": jnp.uint32([[5, 6], [7, 8]]),
            "b": jnp.array([True, False, True]),
            "c": jnp.float32(1.0),
        }
    )
    assert sums == {"a": 5 * 1 + 6 * 3 + 7 * 5 + 8 * 7, "b": 1 + 5, "c": 0x3F800000}
    x = np.arange(12, dtype=np.int32).reshape(3, 4)
    changed = [
        x ^ (1 << bit) * (np.arange(12).reshape(3, 4) == i) for i in range(12) for bit in (0, 30)
    ]
    swapped = [x[::-1], x[:, [1, 0, 2, 3]], x * 0]
    values = [checksums({"x": jnp.asarray(y, jnp.int32)})["x"] for y in [x, *changed, *swapped]]
    assert values.count(values[0]) == 1
    assert checksums({"z": jnp.zeros(3)}) != checksums({"z": -jnp.zeros(3)})
