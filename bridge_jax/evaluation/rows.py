"""How many completions an evaluation generates at once, where --rows leaves it open.

As many as fit into free memory: a slot holds its prompt's cache and a cache of max_new tokens. On a
CPU more than MOST_ON_CPU make a token no cheaper (docs/speed.md).
"""

from __future__ import annotations

import logging

import jax

from bridge_jax.distributed import memory, sharding
from bridge_jax.evaluation.options import Options
from bridge_jax.models import layers
from bridge_jax.models.precision import dtype_of

logger = logging.getLogger(__name__)
MOST, MOST_ON_CPU = 1024, 64
# the rest is for prefill, temporaries and what the allocator cannot use
SHARE = 0.8
GB = 1e9


def slot_bytes(cfg: layers.Config, options: Options, cache_dtype) -> int:
    """Bytes of one slot on each device that has a share of it.

    Prompt caches count twice, since there are two of them while they are widened; so do fp32
    logits, and the exponentials of them.
    """
    tensor = options.decode_tensor
    heads = cfg.kv_heads * sharding.kv_copies(tensor, cfg.kv_heads) // tensor
    positions = options.max_new + 2 * max(options.buckets)
    caches = 2 * cfg.layers * heads * cfg.head_dim * positions * cache_dtype.itemsize
    return caches + 3 * cfg.vocab * 4


def choose(cfg: layers.Config, options: Options, cache_dtype, mesh: jax.sharding.Mesh) -> int:
    """Rows on all devices of the mesh, the weights being on them already.

    ValueError where not one fits.
    """
    if options.rows:
        return options.rows
    free, each = memory.free_bytes(list(mesh.devices.flat)), slot_bytes(cfg, options, cache_dtype)
    fitting = int(SHARE * free // each)
    if fitting < 1:
        raise ValueError(
            f"a completion of up to --max_new={options.max_new} tokens behind a prompt of up to "
            f"{max(options.buckets)} takes {each / GB:.2f} GB, and {free / GB:.2f} GB are free on "
            "each device; lower --max_new or --buckets, raise --decode_tensor, or give "
            "--dtype=bfloat16"
        )
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    spread = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = min(fitting, MOST_ON_CPU if on_cpu else MOST) * spread
    logger.info(
        "--rows=%d: %.2f GB a completion, %.1f GB free on each device", rows, each / GB, free / GB
    )
    return rows


def cache_dtype_of(given: str, dtype: str):
    """The dtype of the KV cache: that of the model's settings, else the compute dtype."""
    return jax.numpy.dtype(dtype_of("--dtype", given or dtype))
