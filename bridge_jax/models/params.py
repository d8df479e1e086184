"""Parameters from a tensor table: abstract tree, random init, HF folders read and written.

Everything here is derived from `cfg.tensors()`; no family is named. A tree is nested dicts keyed by
the parts of a tensor's path ({"embed", "layers": {"q", ...}, "final_norm", "head" where untied});
tensors under "layers/" are stacked with a leading layer axis. Left out: .bin checkpoints, quantised
weights, tokenizers.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import math
import operator
import os
import pkgutil
import re
import shutil
import tempfile
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bridge_jax import models
from bridge_jax.filesystem.hf_folder import INDEX, SINGLE, hf_json, locate, weight_files  # noqa: F401
from bridge_jax.models.layers import Config, Tensor
from bridge_jax.types import Matrix, Tree

FLOATS = ("F64", "F32", "F16", "BF16")
# a buffer in old checkpoints, which follows from the config
IGNORED = re.compile(r"rotary_emb\.inv_freq$")
CHUNK = 16 * 2**20  # elements converted at a time


# ---- families


def families() -> tuple[str, ...]:
    """Names of the model families: the files of bridge_jax/models whose Config has `from_hf`."""
    names = sorted(module.name for module in pkgutil.iter_modules(models.__path__))
    return tuple(
        name for name in names if hasattr(getattr(family(name), "Config", None), "from_hf")
    )


def family(name: str):
    """The module bridge_jax.models.<name>."""
    return importlib.import_module(f"{models.__name__}.{name}")


def read_config(hf: dict) -> Config:
    """The Config of the family in model_type of HF's config.json; ValueError for an unknown one."""
    kind, known = hf.get("model_type"), families()
    if kind not in known:
        raise ValueError(
            f"config.json has model_type={kind!r}, which is not supported; allowed: "
            f"{', '.join(known)}. A new family is one new file in bridge_jax/models."
        )
    return family(kind).Config.from_hf(hf)


# ---- trees


def nest(flat: dict) -> Tree:
    """{"layers/q": x} -> {"layers": {"q": x}}."""
    tree = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[last] = leaf
    return tree


def leaf_at(tree: Tree, path: str):
    """The leaf, or subtree, of nested dicts under "a/b"."""
    return functools.reduce(operator.getitem, path.split("/"), tree)


def is_stacked(path: str) -> bool:
    """Whether the tensor has one copy per layer and a leading layer axis."""
    return path.startswith("layers/")


def full_shape(cfg: Config, path: str, tensor: Tensor) -> tuple[int, ...]:
    """Shape in the parameter tree, the layer axis included."""
    return (cfg.layers, *tensor.shape) if is_stacked(path) else tensor.shape


def abstract(cfg: Config, dtype=jnp.float32) -> Tree:
    """The parameter tree as jax.ShapeDtypeStruct, without memory."""
    return nest(
        {
            path: jax.ShapeDtypeStruct(full_shape(cfg, path, t), dtype)
            for path, t in cfg.tensors().items()
        }
    )


def logical_axes(cfg: Config) -> Tree:
    """The parameter tree with tuples of logical axis names as leaves; "layers" first if stacked."""
    return nest(
        {
            path: ("layers", *t.axes) if is_stacked(path) else t.axes
            for path, t in cfg.tensors().items()
        }
    )


def matrices(cfg: Config) -> dict[str, Matrix | None]:
    """Path -> axes of the matrix; None for a norm or a bias, which HF stores in one dimension.

    A projection maps its rows to its columns; the embedding and the head have a row for each token.
    """

    def sides(path, tensor):
        if len(hf_groups(tensor)) == 1:
            return None
        first = is_stacked(path)
        rows = first + (tensor.inputs or 1)
        return Matrix(tuple(range(first, rows)), tuple(range(rows, first + len(tensor.shape))))

    return {path: sides(path, tensor) for path, tensor in cfg.tensors().items()}


def init(cfg: Config, key: jax.Array, dtype=jnp.float32) -> Tree:
    """Random parameters: normal (standard deviation cfg.init_std), ones or zeros, as in the table.

    A tensor's random key depends on its path alone, so that a new tensor changes no other.
    """

    def draw(path, t):
        shape = full_shape(cfg, path, t)
        if t.init != "normal":
            return {"ones": jnp.ones, "zeros": jnp.zeros}[t.init](shape, dtype)
        own_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        return (cfg.init_std * jax.random.normal(own_key, shape, jnp.float32)).astype(dtype)

    return nest({path: draw(path, t) for path, t in cfg.tensors().items()})


# ---- one tensor between HF's layout and ours


def hf_names(cfg: Config, path: str, tensor: Tensor) -> list[str]:
    """Names in the checkpoint: one per layer for a stacked tensor, otherwise one."""
    return (
        [tensor.hf.format(layer=layer) for layer in range(cfg.layers)]
        if is_stacked(path)
        else [tensor.hf]
    )


def hf_groups(tensor: Tensor) -> list[tuple[int, ...]]:
    """For each dimension of the HF tensor, our dimensions that it merges.

    [out, in] for a matrix; otherwise heads and head_dim are merged.
    """
    rank = len(tensor.shape)
    if tensor.inputs:
        return [tuple(range(tensor.inputs, rank)), tuple(range(tensor.inputs))]
    groups = []
    for i, axis in enumerate(tensor.axes):
        # HF keeps all heads of a bias in one dimension
        if axis == "head_dim" and i:
            groups[-1] += (i,)
        else:
            groups.append((i,))
    return groups


def hf_shape(tensor: Tensor) -> tuple[int, ...]:
    """Shape in the checkpoint."""
    return tuple(math.prod(tensor.shape[i] for i in group) for group in hf_groups(tensor))


def to_hf(tensor: Tensor, array: np.ndarray) -> np.ndarray:
    """One layer's tensor in our layout -> HF's layout.

    C-contiguous, since save_file writes the memory of an array without regard to its strides.
    """
    order = [i for group in hf_groups(tensor) for i in group]
    return np.ascontiguousarray(array.transpose(order).reshape(hf_shape(tensor)))


def from_hf(tensor: Tensor, stored, spans: tuple[slice, ...]) -> np.ndarray:
    """The block `spans` (a slice per dimension of tensor.shape) of one HF tensor, in our layout.

    stored: a lazy HF tensor. It is sliced along the leading dimension of each group, so that little
    more than the block is read.
    """
    groups, shape = hf_groups(tensor), tensor.shape
    inner = [math.prod(shape[i] for i in group[1:]) for group in groups]
    block = stored[
        tuple(
            slice(spans[group[0]].start * n, spans[group[0]].stop * n)
            for group, n in zip(groups, inner)
        )
    ]
    order = [i for group in groups for i in group]
    leading = {group[0] for group in groups}
    sizes = [spans[i].stop - spans[i].start if i in leading else shape[i] for i in order]
    ours = block.reshape(sizes).transpose(np.argsort(order))
    return ours[tuple(slice(None) if i in leading else span for i, span in enumerate(spans))]


# ---- load


def load(cfg: Config, folder: str | Path, shardings: Tree = None, dtype=jnp.float32) -> Tree:
    """Parameters of an HF folder, each read directly into its sharding.

    shardings: a tree of them; None: the default device. At most one tensor (all layers of a stacked
    one) is on the host at a time. ValueError names every tensor that is missing, unknown, doubled
    or misshapen.
    """
    folder = Path(folder)
    found = open_tensors(weight_files(folder))
    if problems := check(cfg, found):
        raise ValueError(
            f"the weights in {str(folder)!r} are not those of the {cfg.family} model in its "
            "config.json:"
            + "".join("\n  " + line for line in problems)
            + "\nUse a complete float checkpoint with the config.json made for it."
        )
    flat = {}
    for path, tensor in cfg.tensors().items():
        stored = [found[name][0][1] for name in hf_names(cfg, path, tensor)]
        sharding = None if shardings is None else leaf_at(shardings, path)
        flat[path] = to_devices(tensor, stored, full_shape(cfg, path, tensor), sharding, dtype)
    return nest(flat)


def open_tensors(files: list[Path]) -> dict[str, list[tuple[str, object]]]:
    """HF name -> [(file name, lazy slice)], one entry per file with this name.

    Reads headers alone.
    """
    found = {}
    for file in files:
        try:
            shard = safe_open(file, framework="np")
            for name in shard.keys():
                found.setdefault(name, []).append((file.name, shard.get_slice(name)))
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{file} cannot be read as safetensors ({error}); copy it again"
            ) from error
    return found


def check(cfg: Config, found: dict) -> list[str]:
    """Problems of a checkpoint, one line per tensor; empty if it can be loaded."""
    expected = {
        name: hf_shape(t) for path, t in cfg.tensors().items() for name in hf_names(cfg, path, t)
    }
    tied_head = {"lm_head.weight": (cfg.vocab, cfg.width)} if cfg.tied else {}
    allowed = expected | tied_head
    problems = [
        f"missing: {name}, expected {list(expected[name])}"
        for name in expected
        if name not in found
    ]
    for name, places in found.items():
        shape, kind = tuple(places[0][1].get_shape()), places[0][1].get_dtype()
        if name not in allowed:
            if not IGNORED.search(name):
                problems.append(f"unknown: {name}, found {list(shape)}")
            continue
        if len(places) > 1:
            problems.append(f"doubled: {name}, found in {' and '.join(file for file, _ in places)}")
        if shape != allowed[name]:
            problems.append(
                f"misshapen: {name}, expected {list(allowed[name])}, found {list(shape)}"
            )
        if kind not in FLOATS:
            problems.append(
                f"wrong type: {name}, expected one of {', '.join(FLOATS)}, found {kind}"
            )
    if not problems and tied_head.keys() & found.keys() and not equal_rows(cfg, found):
        problems.append(
            "contradictory: lm_head.weight differs from model.embed_tokens.weight, but config.json "
            "has tie_word_embeddings=true; set it to false if the head is meant to be used"
        )
    return problems


def equal_rows(cfg: Config, found: dict) -> bool:
    """Whether a tied model's stored head equals its embedding, compared in chunks."""
    head, embed = found["lm_head.weight"][0][1], found[cfg.tensors()["embed"].hf][0][1]
    step = max(1, CHUNK // cfg.width)
    pieces = [slice(start, min(start + step, cfg.vocab)) for start in range(0, cfg.vocab, step)]
    return all(np.array_equal(head[piece], embed[piece]) for piece in pieces)


def to_devices(tensor: Tensor, stored: list, shape: tuple[int, ...], sharding, dtype) -> jax.Array:
    """Puts one parameter on its devices.

    stored: one lazy HF tensor per layer, or a single one where `shape` has no layer axis.
    """
    # devices with replicas of a block share its host copy
    blocks = {}

    def read(index):
        spans = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape))
        key = tuple((span.start, span.stop) for span in spans)
        if key not in blocks:
            blocks[key] = read_block(tensor, stored, spans, dtype)
        return blocks[key]

    if sharding is None:
        array = jax.device_put(read((slice(None),) * len(shape)))
    else:
        array = jax.make_array_from_callback(shape, sharding, read, dtype=dtype)
    # otherwise the host copies of all tensors would be alive together
    jax.block_until_ready(array)
    blocks.clear()
    # jax releases its references to transferred arrays only at the next collection
    gc.collect(0)
    return array


def read_block(tensor: Tensor, stored: list, spans: tuple[slice, ...], dtype) -> np.ndarray:
    """The block `spans` of a parameter, converted in chunks, so that it never exists twice."""
    block = np.empty([span.stop - span.start for span in spans], dtype)
    if len(spans) > len(tensor.shape):
        layers, *spans = spans
        targets = zip(block, stored[layers])
    else:
        targets = [(block, stored[0])]
    rows = spans[0]
    step = max(1, CHUNK // max(1, math.prod(tensor.shape[1:])))
    for target, one in targets:
        for start in range(rows.start, rows.stop, step):
            stop = min(start + step, rows.stop)
            target[start - rows.start : stop - rows.start] = from_hf(
                tensor, one, (slice(start, stop), *spans[1:])
            )
    return block


# ---- save


def save(
    cfg: Config,
    params: Tree,
    folder: str | Path,
    hf_config: dict,
    max_shard_bytes: float = 5e9,
    dtype=jnp.float32,
    extra_files: tuple[str | Path, ...] = (),
) -> None:
    """Writes params as an HF folder that transformers loads, with copies of `extra_files`.

    Everything is written to a temporary folder next to the target and renamed at the end; `folder`
    must be new or empty. With several processes all must call this function: all take part in
    gathering, process 0 writes. One shard at a time is on the host.
    """
    folder = Path(folder).expanduser().absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(
            f"{str(folder)!r} exists and is not an empty folder; give a new one, or remove it"
        )
    if absent := [str(file) for file in extra_files if not Path(file).is_file()]:
        raise ValueError(f"cannot copy {', '.join(absent)} into {str(folder)!r}: no such file")
    if problems := mismatches(cfg, params, hf_config):
        raise ValueError(f"cannot write {str(folder)!r}:\n  " + "\n  ".join(problems))
    shards = plan_shards(cfg, dtype, max_shard_bytes)
    if jax.process_index():
        for shard in shards:
            gather(cfg, params, shard, dtype)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        # a plain mkdir, since the temporary folder itself is readable by its owner alone
        ready = Path(scratch) / "folder"
        ready.mkdir()
        write_shards(cfg, params, shards, dtype, ready)
        for file in extra_files:
            shutil.copy(file, ready)
        (ready / "config.json").write_text(
            json.dumps(exported_config(cfg, hf_config, dtype), indent=2) + "\n"
        )
        os.replace(ready, folder)


def mismatches(cfg: Config, params: Tree, hf_config: dict) -> list[str]:
    """Differences of this tree from the model that hf_config describes, one line each."""
    problems = []
    if (
        read_config(hf_config).tensors() != cfg.tensors()
        or hf_config["num_hidden_layers"] != cfg.layers
    ):
        problems.append(
            "hf_config describes other tensors than cfg; pass the config.json that cfg was read "
            "from"
        )
    leaves = jax.tree_util.tree_leaves_with_path(params)
    found = {
        jax.tree_util.keystr(keys, simple=True, separator="/"): leaf.shape for keys, leaf in leaves
    }
    wanted = {path: full_shape(cfg, path, t) for path, t in cfg.tensors().items()}
    for path in sorted(found.keys() | wanted.keys()):
        if found.get(path) != wanted.get(path):
            problems.append(
                f"parameter {path}: expected {wanted.get(path, 'none')}, found "
                f"{found.get(path, 'none')}"
            )
    return problems


def plan_shards(
    cfg: Config, dtype, max_shard_bytes: float
) -> list[list[tuple[str, int | None, str]]]:
    """For each file a list of (path, layer or None, HF name), in table order, in the limit."""
    shards, size = [[]], 0
    for path, tensor in cfg.tensors().items():
        size_of_one = math.prod(tensor.shape) * jnp.dtype(dtype).itemsize
        for layer, name in enumerate(hf_names(cfg, path, tensor)):
            if shards[-1] and size + size_of_one > max_shard_bytes:
                shards.append([])
                size = 0
            shards[-1].append((path, layer if is_stacked(path) else None, name))
            size += size_of_one
    return shards


def gather(cfg: Config, params: Tree, shard: list, dtype) -> dict[str, np.ndarray]:
    """The tensors of one file on this host, in HF's layout; to be called by all processes alike."""

    def on_host(array):
        whole = getattr(array, "is_fully_addressable", True)
        return np.asarray(array) if whole else multihost_utils.process_allgather(array, tiled=True)

    table, arrays = cfg.tensors(), {}
    for path, layer, name in shard:
        array = leaf_at(params, path)
        arrays[name] = to_hf(
            table[path], on_host(array if layer is None else array[layer]).astype(dtype)
        )
    return arrays


def write_shards(cfg: Config, params: Tree, shards: list, dtype, folder: Path) -> None:
    """Writes model.safetensors, or numbered shards and their index."""
    weight_map, total = {}, 0
    for number, shard in enumerate(shards, start=1):
        file = (
            SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        )
        arrays = gather(cfg, params, shard, dtype)
        # transformers rejects a file without this metadata
        save_file(arrays, folder / file, metadata={"format": "pt"})
        # save_file creates files that only their owner can read
        os.chmod(folder / file, folder.stat().st_mode & 0o666)
        weight_map |= dict.fromkeys(arrays, file)
        total += sum(array.nbytes for array in arrays.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def exported_config(cfg: Config, hf_config: dict, dtype) -> dict:
    """config.json of the written weights: their dtype, and the class with a head for tokens."""
    classes = [
        name for name in hf_config.get("architectures") or () if name.endswith("ForCausalLM")
    ]
    name = jnp.dtype(dtype).name
    # transformers 5 reads the first, older tools the second
    return hf_config | {
        "architectures": classes or [f"{cfg.family.capitalize()}ForCausalLM"],
        "dtype": name,
        "torch_dtype": name,
    }
