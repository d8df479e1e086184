"""The device mesh and the one table from logical axes to mesh axes.

Rows are spread over data and fsdp, parameters and their optimizer moments over fsdp (width) and tensor (heads, mlp,
vocabulary). A dimension that its mesh axes do not divide stays whole.
Decoding has a mesh of its own over the same devices: weights are gathered once for a rollout instead of once for a token, so
that nothing is spread over fsdp; heads lie over decode_tensor devices, rows over the others. Arrays across processes: hosts.py.
"""
from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bridge_jax.types import Tree

AXES = ("data", "fsdp", "tensor")
RULES = {"embed": "fsdp", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}  # others: whole
ROWS = PartitionSpec(("data", "fsdp"))  # of a batch


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one of data, fsdp and tensor may be -1: all that the others leave."""
    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    decode_tensor: int = 0  # devices that share the heads of the sampler's weights and cache; 0: as tensor


def sizes_of(cfg: MeshConfig, devices: int) -> dict[str, int]:
    """Devices along each axis, -1 filled in; ValueError when they do not multiply to the number of devices."""
    sizes = [getattr(cfg, axis) for axis in AXES]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes) or known == 0:
        raise ValueError(f"mesh {dict(zip(AXES, sizes))}; allowed: positive sizes, and -1 for at most one of them")
    sizes = [devices // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != devices:
        raise ValueError(f"mesh {dict(zip(AXES, sizes))} takes {math.prod(sizes)} devices, there are {devices}; "
                         "set one of mesh.data, mesh.fsdp, mesh.tensor to -1 for the rest")
    return dict(zip(AXES, sizes))


def make_mesh(cfg: MeshConfig, devices=None) -> Mesh:
    """The mesh over the given (default: all) devices."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices).reshape(tuple(sizes_of(cfg, len(devices)).values())), AXES)


def make_decode_mesh(cfg: MeshConfig, devices=None) -> Mesh:
    """The mesh of sampling and evaluation over the same devices in the same order; ValueError where heads cannot lie so."""
    devices = jax.devices() if devices is None else devices
    tensor = cfg.decode_tensor or sizes_of(cfg, len(devices))["tensor"]
    if tensor < 1 or len(devices) % tensor:
        raise ValueError(f"mesh.decode_tensor={tensor} does not divide the {len(devices)} devices; allowed: "
                         f"{', '.join(map(str, divisors(len(devices))))}, or 0: as mesh.tensor")
    return make_mesh(MeshConfig(data=len(devices) // tensor, fsdp=1, tensor=tensor), devices)


def divisors(number: int) -> list[int]:
    """All of them, the smallest first."""
    return [n for n in range(1, number + 1) if number % n == 0]


def check_heads(key: str, tensor: int, heads: int, kv_heads: int) -> None:
    """ValueError unless `tensor` devices can share the heads evenly: whole kv heads on each, or each on as many devices."""
    fits = lambda n: heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)
    if not fits(tensor):
        allowed = [n for n in divisors(heads) if fits(n)]
        nearest = min(allowed, key=lambda n: abs(n - tensor))
        raise ValueError(f"{key}={tensor} does not divide the model's {heads} heads and {kv_heads} kv heads; nearest that does: "
                         f"{nearest}. Allowed: {', '.join(map(str, allowed))}")


def of_axes(mesh: Mesh, axes: tuple[str, ...], shape: tuple[int, ...], whole: tuple[str, ...] = ()) -> NamedSharding:
    """Sharding of one array with these logical axes; along the mesh axes `whole` it is gathered."""
    mesh_axes = [None if RULES.get(axis) in whole else RULES.get(axis) for axis in axes]
    fits = [name if name and size % mesh.shape[name] == 0 else None for name, size in zip(mesh_axes, shape)]
    return NamedSharding(mesh, PartitionSpec(*fits))


def of_tree(mesh: Mesh, axes: Tree, abstract: Tree) -> Tree:
    """Shardings of a tree of arrays whose logical axes stand in a tree of tuples of the same shape."""
    return jax.tree.map(lambda leaf, names: of_axes(mesh, names, leaf.shape), abstract, axes)


def of_state(mesh: Mesh, state: Tree, theta_axes: Tree, w_axes: Tree, on_host: tuple[str, ...] = ()) -> Tree:
    """Shardings of a whole training state: every leaf under theta, theta_hat, w or ref is laid out as that parameter.

    Optimizer moments are found by the same path; scalars, such as counts, are whole on every device. What is under a name of
    `on_host` lies in the host's memory, next to the device that it belongs to.
    """
    axes = {"theta": theta_axes, "theta_hat": theta_axes, "ref": theta_axes, "w": w_axes}

    def of_leaf(path, leaf):
        keys = [getattr(key, "name", getattr(key, "key", None)) for key in path]
        part = next((i for i, key in enumerate(keys) if key in axes), None)
        names = ()
        if part is not None and leaf.ndim:
            names = axes[keys[part]]
            for key in keys[part + 1:]:
                names = of_means(names, key) if isinstance(names, tuple) else names[key]
        place = of_axes(mesh, names, leaf.shape)
        return place.with_memory_kind("pinned_host") if leaf.ndim and set(keys) & set(on_host) else place

    return jax.tree_util.tree_map_with_path(of_leaf, state)


def of_cache(mesh: Mesh, cache: Tree) -> Tree:
    """Shardings of a cache, [L, rows, K, positions and H] each: rows over data and fsdp, kv heads over tensor."""
    rows, tensor = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["tensor"]

    def of_leaf(leaf):
        B, K = leaf.shape[1:3]
        return NamedSharding(mesh, PartitionSpec(None, ROWS[0] if B % rows == 0 else None, "tensor" if K % tensor == 0 else None))

    return jax.tree.map(of_leaf, cache)


def of_means(axes: tuple[str, ...], kept: str) -> tuple[str, ...]:
    """Logical axes of a factored second moment (optim.factored_axes): of its matrix without the columns, or without the rows."""
    row = 1 if len(axes) > 2 else 0
    return axes[:row + 1] if kept == "row" else axes[:row] + axes[row + 1:]


def of_rows(mesh: Mesh, batch: Tree) -> Tree:
    """Shardings of a batch: the leading axis over data and fsdp where they divide it, scalars whole."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    spread = lambda leaf: ROWS if np.ndim(leaf) and np.shape(leaf)[0] % devices == 0 else PartitionSpec()
    return jax.tree.map(lambda leaf: NamedSharding(mesh, spread(leaf)), batch)
