"""A checkpoint's round trip in the run directory's file system, and how long the run's own
takes.
"""

from __future__ import annotations

import math
import os
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from bridge_jax.distributed import multihost, sharding
from bridge_jax.preflight.record import FAIL, NOTE, OK, Record
from bridge_jax.preflight.subject import Subject
from bridge_jax.rundir import checkpoint
from bridge_jax.rundir.progress import duration
from bridge_jax.training import saved_state

NAME = "checkpoint"
MB = 1e6
# of the trial, at most; a file system's caches make smaller ones look faster
TRIAL = 512 * 2**20
# a save this long wants another file system or a smaller state
SLOW_S = 600.0
SMALLER = (
    "a faster file system, a larger checkpoint.every, or a smaller state (docs/launch.md, Storage)"
)


def check(subject: Subject) -> Record:
    """Save and restore random numbers on all devices; compare them bit for bit."""
    size = saved_bytes(subject)
    state = trial(subject, min(size, TRIAL))
    with checkpoint.Checkpoints(os.path.join(subject.folder, "trial")) as store:
        began = time.monotonic()
        store.save(1, state, {})
        store.wait()
        seconds = time.monotonic() - began
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        restored, _ = store.restore(shapes)
    same = all(jax.tree.leaves(jax.tree.map(equal, state, restored)))
    rate = sum(x.nbytes for x in jax.tree.leaves(state)) / seconds
    free = shutil.disk_usage(subject.folder).free
    keep = subject.setup.settings.checkpoint.keep
    return judge(same, rate, size, free, keep)


def saved_bytes(subject: Subject) -> int:
    """Bytes of a checkpoint of the run, over all devices."""
    leaves = jax.tree.leaves(saved_state.abstract(subject.setup))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def trial(subject: Subject, size: int) -> dict[str, jax.Array]:
    """About `size` bytes of random bits, which do not compress, spread over the devices."""
    mesh = subject.setup.mesh
    shape = (mesh.size, max(1, size // 4 // mesh.size))
    layout = NamedSharding(mesh, sharding.ROWS)
    bits = jax.jit(lambda key: jax.random.bits(key, shape, jnp.uint32), out_shardings=layout)
    return {"bits": jax.block_until_ready(bits(jax.random.key(0)))}


def equal(saved: jax.Array, restored: jax.Array) -> bool:
    """Whether this host's parts are the same bit for bit."""
    parts = zip(saved.addressable_shards, restored.addressable_shards)
    return all(np.array_equal(np.asarray(a.data), np.asarray(b.data)) for a, b in parts)


def judge(same: bool, rate: float, size: int, free: int, keep: int) -> Record:
    """rate: bytes a second; size: bytes of the run's checkpoint; free: bytes left on the disk."""
    if not same:
        return Record(NAME, FAIL, "read back other numbers than were written", "another --workdir")
    seconds = size / rate
    text = f"{rate / MB:.3g} MB/s: the run's {size / 1e9:.3g} GB take {duration(seconds)}"
    # kept ones, the last good one, and the one that is being written
    room = (keep + 2) * size
    if free < size:
        return Record(NAME, FAIL, f"{text}, and {free / 1e9:.3g} GB are free", "make room")
    if free < room:
        way_out = f"make room: checkpoint.keep={keep} takes up to {room / 1e9:.3g} GB"
        return Record(NAME, NOTE, f"{text}; {free / 1e9:.3g} GB are free", way_out)
    return Record(NAME, OK, text) if seconds < SLOW_S else Record(NAME, NOTE, text, SMALLER)


def folder_in(workdir: str) -> str:
    """A new folder in the run directory, the same on every host."""

    def make() -> str:
        path = os.path.join(os.path.abspath(workdir), f".preflight_{os.getpid()}")
        os.makedirs(path)
        return path

    return multihost.broadcast_from_main("the folder of the checks", make)


def remove(folder: str, workdir: str) -> None:
    """Removes the folder of the checks, and a run directory that has nothing else in it."""
    multihost.barrier("the end of the checks")
    if not multihost.is_main():
        return
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.isdir(workdir) and not os.listdir(workdir):
        os.rmdir(workdir)
