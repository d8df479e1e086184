"""Arrays of a run of several processes: onto the devices of all hosts, and back to each host.

With one process `place` is jax.device_put, and `replicate` the identity.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import PartitionSpec

from bridge_jax.distributed import multihost


def place(tree, shardings):
    """Host arrays, the same on every host, onto devices; each host moves what its devices hold."""
    if multihost.count() == 1:
        return jax.device_put(tree, shardings)
    # device_put would first compare the arrays of all hosts, behind the devices' work

    def put(leaf, sharding):
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])

    return jax.tree.map(put, tree, shardings)


def replicate(tree):
    """The arrays, fully replicated over the devices that have them; does not wait for it."""
    if multihost.count() == 1:
        return tree

    def replicated(leaf):
        if leaf.is_fully_replicated or leaf.is_fully_addressable:
            return leaf
        return jax.device_put(leaf, leaf.sharding.update(spec=PartitionSpec()))

    return jax.tree.map(replicated, tree)


def device_get(label: str, tree):
    """Complete host copies of device arrays, the same on every host; waits for them."""
    with multihost.watchdog(label):
        return jax.device_get(replicate(tree))
