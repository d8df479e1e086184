"""Arrays of a training state by their paths: names, checksums, differences."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridge_jax.types import Tree

# paths named for each kind of difference
SHOWN = 4


def path_name(path: tuple) -> str:
    """A path of jax.tree_util as "params/theta/embed"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_path(state: Tree) -> dict[str, Any]:
    """{"params/theta/embed": leaf}.

    It is flat, so that a checkpoint does not depend on tuples, None and empty nodes of the tree.
    """
    pairs = jax.tree_util.tree_flatten_with_path(state)[0]
    named = {path_name(path): leaf for path, leaf in pairs}
    assert len(named) == len(pairs), "two leaves of the state have the same path"
    return named


def describe_leaf(leaf: Any) -> str:
    """dtype and shape, such as "float32[2,3]"."""
    return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def check_same_arrays(where: str, saved: dict[str, str], wanted: dict[str, str]) -> None:
    """ValueError that shows the differences of two tables {path: dtype and shape}."""
    if saved == wanted:
        return
    changed = [
        f"{key} ({saved[key]} saved, {wanted[key]} wanted)"
        for key in saved
        if key in wanted and saved[key] != wanted[key]
    ]
    kinds = {
        "only in the checkpoint": branches(saved, wanted),
        "only in this run": branches(wanted, saved),
        "not the same": changed,
    }
    lines = "\n".join(f"  {kind}: {name_some(names)}" for kind, names in kinds.items() if names)
    raise ValueError(
        f"the checkpoint {where} is of another model, method or optimizer:\n{lines}\nRun with the "
        "config "
        "that it was saved with, or take another --workdir."
    )


def branches(mine: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """Largest subtrees of `mine` without any array in `theirs`, each with its number of arrays."""

    def above(key: str) -> list[str]:
        parts = key.split("/")
        return ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]

    known = {path for key in theirs for path in above(key)}
    counts: dict[str, int] = {}
    for key in mine:
        branch = next((path for path in above(key) if path not in known), None)
        if branch is not None:
            counts[branch] = counts.get(branch, 0) + 1
    return [
        f"{branch} ({count} array{'s' if count > 1 else ''})" for branch, count in counts.items()
    ]


def name_some(names: list[str]) -> str:
    """The first SHOWN names, and how many more there are."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def checksums(state: Tree) -> dict[str, int]:
    """{path: sum_i bits_i (2 i + 1) mod 2^32}, where i is the flat index.

    A change of one element changes the sum; another layout on devices does not. It is computed
    where the arrays are. The first call compiles a small program for each shape and dtype.
    """
    # one at a time: on simulated CPU devices many reductions in flight can deadlock
    return {key: int(jax.device_get(_checksum(leaf))) for key, leaf in by_path(state).items()}


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    # a method may keep a part of the state in the host's memory
    x = jax.device_put(x, jax.memory.Space.Device)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    # integers wrap, so that the order of summation does not matter; an element of 64 bits becomes
    # two words on a last axis
    width = min(x.dtype.itemsize, 4)
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * width}")).astype(jnp.uint32)
    index, stride = jnp.uint32(0), 1
    for axis in reversed(range(bits.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)
