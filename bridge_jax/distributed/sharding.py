"""The device mesh and the one table from logical axes to mesh axes.

Rows are sharded over data and fsdp; parameters and their optimizer moments over fsdp (width) and
tensor (heads, mlp, vocabulary). A dimension that its mesh axes do not divide is replicated: a
vocabulary, kv heads that devices share, the adapter's rank. A run whose width, heads, mlp or rows
do not divide is refused before it begins. Decoding has a mesh of its own over the same devices:
weights are gathered once for a rollout instead of once for a token, so nothing is sharded over
fsdp; heads are sharded over decode_tensor devices, rows over the others. Arrays across processes:
arrays.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bridge_jax.distributed import peaks, platforms
from bridge_jax.types import Matrix, Tree

AXES = ("data", "fsdp", "tensor")
RULES = {
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}  # others: whole
# bytes of the sampler's weights on a TPU, and the share of a GPU's memory that they may take
WEIGHTS_ON_TPU = 3.2e9
SHARE_ON_GPU = 0.2
ROWS = PartitionSpec(("data", "fsdp"))  # of a batch


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one of data, fsdp and tensor may be -1: all that remain."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    # devices that share the heads of the sampler's weights and cache; 0: chosen by
    # choose_decode_tensor, on chips without known memory as tensor
    decode_tensor: int = 0


def sizes_of(cfg: MeshConfig, devices: int) -> dict[str, int]:
    """Devices along each axis, -1 filled in; ValueError unless they take all devices."""
    given = {axis: getattr(cfg, axis) for axis in AXES}
    sizes = list(given.values())
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"mesh {given}; allowed: positive sizes, and -1 for at most one of them")
    known, rest = math.prod(size for size in sizes if size != -1), -1 in sizes
    if devices % known or not rest and known != devices:
        raise ValueError(
            f"mesh {given} takes {'a multiple of ' * rest}{known} devices, there are {devices}; "
            f"nearest that takes all: {_nearest_sizes(given, devices)}. Allowed for each: "
            f"{', '.join(map(str, divisors(devices)))}, or -1 for one of them: all that remain"
        )
    return {axis: devices // known if size == -1 else size for axis, size in given.items()}


def _nearest_sizes(
    given: dict[str, int],
    devices: int,
    fits: Callable[[int, int], bool] = lambda fsdp, tensor: True,
) -> dict:
    """The sizes that take all devices, and fit, with the smallest factor to the given ones.

    A given -1 stays. Of several the one with the least tensor, which must divide the heads too.
    """
    sizes = [
        (a, b, devices // a // b)
        for a in divisors(devices)
        for b in divisors(devices // a)
        if fits(b, devices // a // b)
    ]
    factor = lambda size, wanted: 1.0 if wanted == -1 else max(size / wanted, wanted / size)
    nearest = min(
        sizes, key=lambda found: (math.prod(map(factor, found, given.values())), found[2])
    )
    return {axis: given[axis] if given[axis] == -1 else size for axis, size in zip(AXES, nearest)}


def make_mesh(cfg: MeshConfig, devices=None) -> Mesh:
    """The mesh over the given (default: all) devices."""
    devices = platforms.devices() if devices is None else devices
    return Mesh(np.asarray(devices).reshape(tuple(sizes_of(cfg, len(devices)).values())), AXES)


def make_decode_mesh(cfg: MeshConfig, devices=None) -> Mesh:
    """The mesh of sampling and evaluation, over the same devices in the same order.

    ValueError where the heads cannot be sharded over so many devices.
    """
    devices = platforms.devices() if devices is None else devices
    tensor = cfg.decode_tensor or sizes_of(cfg, len(devices))["tensor"]
    if tensor < 1 or len(devices) % tensor:
        allowed = divisors(len(devices))
        nearest = min(allowed, key=lambda n: abs(n - tensor))
        raise ValueError(
            f"mesh.decode_tensor={tensor} does not divide the {len(devices)} devices; nearest that "
            f"does: {nearest}. Allowed: {', '.join(map(str, allowed))}, or 0: chosen"
        )
    return make_mesh(MeshConfig(data=len(devices) // tensor, fsdp=1, tensor=tensor), devices)


def choose_decode_tensor(device, weight_bytes: float, allowed: list[int]) -> int:
    """Devices that share one copy of the sampler's weights; 0 on a chip without known memory.

    The least of `allowed`, in ascending order, that leaves room for state and cache. Sharing saves
    time too where links are fast, since a token reads all weights of its device: TPUs share more
    than their memory needs. On GPUs two all-reduces a layer and token take longer than that.
    """
    chip = peaks.of_device(device)
    if chip is None or not allowed:
        return 0
    at_most = WEIGHTS_ON_TPU if device.platform == "tpu" else SHARE_ON_GPU * chip.hbm
    return next((n for n in allowed if weight_bytes / n <= at_most), allowed[-1])


def divisors(number: int) -> list[int]:
    """All of them, the smallest first."""
    return [n for n in range(1, number + 1) if number % n == 0]


def multiples(number: int, unit: int) -> str:
    """The positive multiples of unit below and above a number that is none, for a message."""
    below = number // unit * unit
    return f"{below} or {below + unit}" if below else str(unit)


def heads_fit(tensor: int, heads: int, kv_heads: int) -> bool:
    """Whether `tensor` devices can share the heads evenly.

    Each device has whole kv heads, or each kv head is on the same number of devices.
    """
    return heads % tensor == 0 and (kv_heads % tensor == 0 or tensor % kv_heads == 0)


def kv_copies(tensor: int, kv_heads: int) -> int:
    """On how many of the `tensor` devices that share the heads each kv head is held."""
    return max(1, tensor // kv_heads)


def check_heads(key: str, tensor: int, heads: int, kv_heads: int, devices: int = 0) -> None:
    """ValueError, with the nearest allowed number, unless heads_fit.

    devices: only its divisors are allowed; 0: any number.
    """
    if not heads_fit(tensor, heads, kv_heads):
        allowed = [n for n in divisors(math.gcd(heads, devices)) if heads_fit(n, heads, kv_heads)]
        nearest = min(allowed, key=lambda n: abs(n - tensor))
        raise ValueError(
            f"{key}={tensor} does not divide the model's {heads} heads and {kv_heads} kv heads; "
            f"nearest that does: {nearest}. Allowed{f' on {devices} devices' * bool(devices)}: "
            f"{', '.join(map(str, allowed))}"
        )


def check_model(mesh: Mesh, width: int, heads: int, kv_heads: int, mlp: int) -> None:
    """ValueError, with the nearest sizes, unless fsdp divides the width and tensor heads and mlp.

    Otherwise weights and their moments would be replicated where they should be sharded.
    """
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    fit = {
        f"mesh.fsdp={fsdp} does not divide the model's width {width}": (
            lambda fsdp, tensor: width % fsdp == 0
        ),
        f"mesh.tensor={tensor} does not divide the model's {heads} heads and {kv_heads} kv heads": (
            lambda fsdp, tensor: heads_fit(tensor, heads, kv_heads)
        ),
        f"mesh.tensor={tensor} does not divide the model's mlp width {mlp}": (
            lambda fsdp, tensor: mlp % tensor == 0
        ),
    }
    if wrong := [what for what, fits in fit.items() if not fits(fsdp, tensor)]:
        nearest = _nearest_sizes(
            dict(mesh.shape), mesh.size, lambda *sizes: all(fits(*sizes) for fits in fit.values())
        )
        raise ValueError(
            f"{'; '.join(wrong)}; nearest that does: "
            + ", ".join(f"mesh.{a}={n}" for a, n in nearest.items())
        )


def of_axes(
    mesh: Mesh, axes: tuple[str, ...], shape: tuple[int, ...], whole: tuple[str, ...] = ()
) -> NamedSharding:
    """Sharding of one array with these logical axes; along the mesh axes `whole` it is gathered."""
    mesh_axes = [None if RULES.get(axis) in whole else RULES.get(axis) for axis in axes]
    fits = [
        name if name and size % mesh.shape[name] == 0 else None
        for name, size in zip(mesh_axes, shape)
    ]
    return NamedSharding(mesh, PartitionSpec(*fits))


def of_tree(mesh: Mesh, axes: Tree, abstract: Tree) -> Tree:
    """Shardings of a tree of arrays; their logical axes are a tree of tuples of the same shape."""
    return jax.tree.map(lambda leaf, names: of_axes(mesh, names, leaf.shape), abstract, axes)


def of_state(
    mesh: Mesh,
    state: Tree,
    theta_axes: Tree,
    w_axes: Tree,
    on_host: tuple[str, ...] = (),
    matrices: tuple = (),
) -> Tree:
    """Shardings of a whole training state: theta, theta_hat, w and ref as the parameters.

    ref is a tree of theta, or of w where only the adapter is trained. Optimizer moments are found
    by the same path; scalars, such as counts, are replicated. on_host: parts whose leaves are kept
    in the host's memory, next to their device. matrices: those of optim.Recipes, for factored
    moments.
    """
    ref = getattr(state, "ref", None)
    ref_axes = w_axes if isinstance(ref, dict) and ref.keys() == w_axes.keys() else theta_axes
    axes = {"theta": theta_axes, "theta_hat": theta_axes, "ref": ref_axes, "w": w_axes}
    sides = dict(matrices)

    def names_of(part: str, keys: list[str]) -> tuple[str, ...]:
        """Logical axes of the parameter under these keys, or of its factored second moments."""
        names, owner = axes[part], "w" if part == "w" else "theta"
        for i, key in enumerate(keys):
            if isinstance(names, tuple):
                return of_means(names, sides["/".join([owner, *keys[:i]])], key)
            names = names[key]
        return names

    def of_leaf(path, leaf):
        keys = [getattr(key, "name", getattr(key, "key", None)) for key in path]
        part = next((i for i, key in enumerate(keys) if key in axes), None)
        names = names_of(keys[part], keys[part + 1 :]) if part is not None and leaf.ndim else ()
        place = of_axes(mesh, names, leaf.shape)
        return (
            place.with_memory_kind("pinned_host")
            if leaf.ndim and set(keys) & set(on_host)
            else place
        )

    return jax.tree_util.tree_map_with_path(of_leaf, state)


def of_cache(mesh: Mesh, cache: Tree) -> Tree:
    """Shardings of a cache of [L, rows, K, ...]: rows over data and fsdp, kv heads over tensor."""
    rows, tensor = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["tensor"]

    def of_leaf(leaf):
        B, K = leaf.shape[1:3]
        return NamedSharding(
            mesh,
            PartitionSpec(
                None, ROWS[0] if B % rows == 0 else None, "tensor" if K % tensor == 0 else None
            ),
        )

    return jax.tree.map(of_leaf, cache)


def constrain_cache(mesh: Mesh, cache: Tree) -> Tree:
    """The cache with the shardings of `of_cache`, each kv head as often as `kv_copies` says."""
    cache = jax.tree.map(
        lambda x: jnp.repeat(x, kv_copies(mesh.shape["tensor"], x.shape[2]), axis=2), cache
    )
    return jax.lax.with_sharding_constraint(cache, of_cache(mesh, cache))


def of_means(axes: tuple[str, ...], matrix: Matrix, kept: str) -> tuple[str, ...]:
    """Logical axes of a factored second moment: the matrix's without its columns or its rows.

    kept: "row" or "col", the side that the moment has.
    """
    gone = matrix.columns if kept == "row" else matrix.rows
    return tuple(name for axis, name in enumerate(axes) if axis not in gone)


def of_rows(mesh: Mesh, batch: Tree) -> Tree:
    """Shardings of a batch: the leading axis over data and fsdp where they divide it."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    spread = lambda leaf: (
        ROWS if np.ndim(leaf) and np.shape(leaf)[0] % devices == 0 else PartitionSpec()
    )
    return jax.tree.map(lambda leaf: NamedSharding(mesh, spread(leaf)), batch)
