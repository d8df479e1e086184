"""LoRA (Hu et al. 2021) as its own pytree w: phi = theta + (alpha / r) A B on chosen matrices.

The model is independent of LoRA: `merge` is called once per step, before the forward pass, and
`pull` maps the gradient in phi to the gradient in w. A is [L, in, R] and B [L, R, out]: heads and
head_dim are one dimension, as in PEFT's files. Left out: dropout, LoRA on embeddings and head.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from bridge_jax.models.layers import Config, Tensor
from bridge_jax.types import Matrix, Tree

# the file by which a folder is known as a PEFT adapter
PEFT_CONFIG = "adapter_config.json"


@dataclasses.dataclass(frozen=True)
class Lora:
    """Shape of the adapter (the paper: rank = alpha = 16)."""

    rank: int = 16
    alpha: float = 16.0
    # regex, matched against the whole path in the tensor table
    targets: str = r"layers/(q|k|v|o|gate|up|down)"


def targets(cfg: Config, lora: Lora) -> dict[str, Tensor]:
    """The matrices that the pattern selects.

    ValueError when it matches nothing, or a tensor that is not a matrix of the layers.
    """
    if lora.rank < 1:
        raise ValueError(f"model.lora_rank={lora.rank}; allowed: 1 or more")
    table = cfg.tensors()
    try:
        pattern = re.compile(lora.targets)
    except re.error as error:
        raise ValueError(
            f"model.lora_targets={lora.targets!r} is not a regular expression ({error})"
        ) from None
    hit = {path: tensor for path, tensor in table.items() if pattern.fullmatch(path)}
    bad = [
        path for path, tensor in hit.items() if not (path.startswith("layers/") and tensor.inputs)
    ]
    allowed = ", ".join(
        path for path, tensor in table.items() if path.startswith("layers/") and tensor.inputs
    )
    if not hit or bad:
        what = (
            f"also matches {', '.join(bad)}, which LoRA does not cover"
            if bad
            else "matches no tensor"
        )
        raise ValueError(
            f"model.lora_targets={lora.targets!r} {what}; it is matched against whole paths: "
            f"{allowed}"
        )
    return hit


def abstract(cfg: Config, lora: Lora) -> Tree:
    """Shapes of w, fp32."""

    def pair(tensor: Tensor):
        wide_in, wide_out = (
            math.prod(sides)
            for sides in (tensor.shape[: tensor.inputs], tensor.shape[tensor.inputs :])
        )
        shape = lambda *s: jax.ShapeDtypeStruct((cfg.layers, *s), jnp.float32)
        return {"A": shape(wide_in, lora.rank), "B": shape(lora.rank, wide_out)}

    return {path: pair(tensor) for path, tensor in targets(cfg, lora).items()}


def logical_axes(cfg: Config, lora: Lora) -> Tree:
    """Logical axis names of w: the long side of A and B is sharded over fsdp.

    Without sharding, adapters with their moments and gradients would take noticeable memory.
    """
    return {
        path: {"A": ("layers", "embed", "rank"), "B": ("layers", "rank", "embed")}
        for path in targets(cfg, lora)
    }


def matrices(cfg: Config, lora: Lora) -> dict[str, Matrix]:
    """Path in w -> axes of the matrix A or B."""
    return {
        f"{path}/{side}": Matrix(rows=(1,), columns=(2,))
        for path in targets(cfg, lora)
        for side in ("A", "B")
    }


def init(cfg: Config, lora: Lora, key: jax.Array) -> Tree:
    """A uniform within +-1/sqrt(fan-in), as in PEFT; B = 0, so that phi = theta at the start."""

    def pair(path: str, shapes: dict):
        bound = shapes["A"].shape[1] ** -0.5
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        return {
            "A": jax.random.uniform(own, shapes["A"].shape, jnp.float32, -bound, bound),
            "B": jnp.zeros(shapes["B"].shape, jnp.float32),
        }

    return {path: pair(path, shapes) for path, shapes in abstract(cfg, lora).items()}


def delta(lora: Lora, pair: dict) -> jax.Array:
    """(alpha / r) A B, [L, in, out], in full fp32 precision on any device."""
    return (
        lora.alpha
        / lora.rank
        * jnp.matmul(pair["A"], pair["B"], precision=jax.lax.Precision.HIGHEST)
    )


def merge(lora: Lora, theta: Tree, w: Tree | None, dtype=jnp.float32) -> Tree:
    """phi = theta + (alpha / r) A B, summed in fp32, then cast once to the compute dtype."""
    layers = dict(theta["layers"])
    for path, pair in (w or {}).items():
        name = path.removeprefix("layers/")
        layers[name] = layers[name] + delta(lora, pair).reshape(layers[name].shape)
    return jax.tree.map(lambda x: x.astype(dtype), {**theta, "layers": layers})


def pull(lora: Lora, w: Tree, G: Tree) -> Tree:
    """Gradient in w of <G, merge(theta, w)>: dA = (alpha / r) G B', dB = (alpha / r) A' G, fp32."""
    flat = lambda G, pair: G.astype(jnp.float32).reshape(*pair["A"].shape[:2], -1)
    matrices = {
        path: flat(G["layers"][path.removeprefix("layers/")], pair) for path, pair in w.items()
    }
    _, transpose = jax.vjp(lambda w: {path: delta(lora, pair) for path, pair in w.items()}, w)
    return transpose(matrices)[0]


def save_peft(cfg: Config, lora: Lora, w: Tree, folder: str, base_model: str) -> None:
    """Writes adapter_model.safetensors and adapter_config.json as PEFT reads them.

    There A is [R, in] and B [out, R], one of each per layer. base_model: folder or hub name of the
    weights that w was trained with, which PEFT loads and adds w to.
    """
    out = pathlib.Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    arrays, modules = {}, []
    for path, tensor in targets(cfg, lora).items():
        module = tensor.hf.removesuffix(".weight")
        modules.append(module.rsplit(".", 1)[-1])
        A, B = (np.asarray(w[path][name], np.float32) for name in ("A", "B"))
        for layer in range(cfg.layers):
            stem = f"base_model.model.{module.format(layer=layer)}"
            arrays[f"{stem}.lora_A.weight"] = np.ascontiguousarray(A[layer].T)
            arrays[f"{stem}.lora_B.weight"] = np.ascontiguousarray(B[layer].T)
    save_file(arrays, out / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(set(modules)),
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (out / PEFT_CONFIG).write_text(json.dumps(settings, indent=2) + "\n")


def base_name(folder: str | pathlib.Path) -> str:
    """The folder or hub name of the model that a PEFT folder belongs to; ValueError if none."""
    path = pathlib.Path(folder) / PEFT_CONFIG
    try:
        name = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no configuration of an adapter ({error})") from None
    if not name:
        raise ValueError(f"{path} names no base_model_name_or_path; write the model's folder there")
    return name


def load_peft(cfg: Config, folder: str | pathlib.Path) -> tuple[Lora, Tree, str]:
    """(adapter, w, name of the base model) of a PEFT folder.

    ValueError for a matrix that the folder's config does not name, which PEFT would ignore, and for
    one that the model lacks.
    """
    source = pathlib.Path(folder)
    settings = json.loads((source / PEFT_CONFIG).read_text())
    arrays, w = load_file(source / "adapter_model.safetensors"), {}
    for path, tensor in cfg.tensors().items():
        module = tensor.hf.removesuffix(".weight")
        names = {
            name: [
                f"base_model.model.{module.format(layer=layer)}.lora_{name}.weight"
                for layer in range(cfg.layers)
            ]
            for name in ("A", "B")
        }
        named = module.rsplit(".", 1)[-1] in settings["target_modules"]
        if path.startswith("layers/") and named and names["A"][0] in arrays:
            w[path] = {
                name: np.stack([arrays.pop(key).T for key in keys]) for name, keys in names.items()
            }
    if arrays:
        raise ValueError(f"{source}: no module of the model takes {', '.join(sorted(arrays))}")
    chosen = "|".join(re.escape(path) for path in w)
    adapter = Lora(settings["r"], float(settings["lora_alpha"]), chosen)
    return adapter, w, settings["base_model_name_or_path"]
