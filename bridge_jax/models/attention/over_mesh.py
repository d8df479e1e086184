"""Attention on several devices: rows over the mesh axes data and fsdp, heads over tensor.

The partitioner cannot split a kernel, so `causal` runs inside a shard_map. It can split the einsums
of decoding, but then moves queries, keys and parts of the cache between devices many times per
layer, so that decoding uses a shard_map too. The plain form is the same function on one device.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from bridge_jax.distributed.sharding import kv_copies
from bridge_jax.models.attention.cache import Position


def row_axes(mesh: Mesh, *arrays: jax.Array) -> tuple[str, ...] | None:
    """The mesh axes of the rows of all these arrays; None where the rows do not divide evenly."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    return ("data", "fsdp") if all(x.shape[0] % devices == 0 for x in arrays) else None


def causal_over_mesh(causal: Callable, mesh: Mesh) -> Callable:
    """A `causal` of one device -> the same over a mesh.

    Kv heads are repeated for devices that share one.
    """

    def attend(q_BTNH, k_BKTH, v_BKTH, prompt=None, segment_BT=None, window=None):
        rows = row_axes(mesh, q_BTNH, *(prompt or ()))
        q_spec, kv_spec = PartitionSpec(rows, None, "tensor"), PartitionSpec(rows, "tensor")
        row_spec = PartitionSpec(rows)
        copies = kv_copies(mesh.shape["tensor"], k_BKTH.shape[1])
        share = lambda x: x if copies == 1 else jnp.repeat(x, copies, axis=1)
        if prompt is not None:
            prompt = share(prompt[0]), share(prompt[1]), prompt[2]
        inputs = q_BTNH, share(k_BKTH), share(v_BKTH), prompt, segment_BT, window
        specs = (
            q_spec,
            kv_spec,
            kv_spec,
            None if prompt is None else (kv_spec, kv_spec, row_spec),
            None if segment_BT is None else row_spec,
            None if window is None else PartitionSpec(),
        )
        on_devices = jax.shard_map(
            causal, mesh=mesh, in_specs=specs, out_specs=q_spec, check_vma=False
        )
        return on_devices(*inputs)

    return attend


def cache_over_mesh(attend: Callable, mesh: Mesh) -> Callable:
    """cache.attend of one device, or a form of slots.batched -> the same over a mesh."""
    if mesh.size == 1:
        return attend

    def on_mesh(q_B1NH, k_BK1H, v_BK1H, cache, prompt, at):
        rows = row_axes(mesh, q_B1NH, prompt[0])
        q_spec, kv_spec = PartitionSpec(rows, None, "tensor"), PartitionSpec(rows, "tensor")
        cache_specs = (PartitionSpec(None, rows, "tensor"),) * 2
        prompt_specs = kv_spec, kv_spec, PartitionSpec(rows)
        # one position for all rows, or one for each
        t_spec = PartitionSpec(rows) if at.t.ndim else PartitionSpec()
        window_spec = None if at.window is None else PartitionSpec()
        at_specs = Position(PartitionSpec(), t_spec, window_spec)
        on_devices = jax.shard_map(
            attend,
            mesh=mesh,
            in_specs=(q_spec, kv_spec, kv_spec, cache_specs, prompt_specs, at_specs),
            out_specs=(q_spec, cache_specs),
            check_vma=False,
        )
        return on_devices(q_B1NH, k_BK1H, v_BK1H, cache, prompt, at)

    return on_mesh
