"""The form of `causal` attention that model.attention selects on given devices."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import jax.numpy as jnp
from jax.sharding import Mesh

from bridge_jax.models.attention import cudnn, einsums, splash
from bridge_jax.models.attention.over_mesh import causal_over_mesh

logger = logging.getLogger(__name__)

KINDS = ("auto", "xla", "splash", "cudnn")
GPU = ("gpu", "cuda")  # jax's platform names of NVIDIA GPUs

ON_OTHER_DEVICES = {
    "splash": "Pallas interprets the kernel, which takes many times as long",
    "cudnn": "its call is made of einsums there, whose scores take memory",
}


def form_of(
    kind: str,
    mesh: Mesh,
    dtype=jnp.bfloat16,
    head_dim: int = splash.TILE,
    windows: bool = False,
) -> str:
    """The form (xla, splash or cudnn) of model.attention=kind for such activations and devices."""
    if kind not in KINDS:
        raise ValueError(f"model.attention={kind!r}; allowed: {', '.join(KINDS)}")
    if kind != "auto":
        return kind
    device = mesh.devices.flat[0]
    if device.platform in GPU:
        return "xla" if cudnn.unsupported(dtype, head_dim, device) else "cudnn"
    return "splash" if device.platform == "tpu" and not windows else "xla"


def check(kind: str, dtype, head_dim: int, mesh: Mesh, windows: bool = False) -> None:
    """ValueError where the form of model.attention does not support such activations and heads.

    windows: whether layers have sliding windows. A form made for other devices gives a warning.
    """
    device = mesh.devices.flat[0]
    reason = cudnn.unsupported(dtype, head_dim, device) if kind == "cudnn" else ""
    if kind == "splash" and windows:
        reason = "sliding windows"
    if reason:
        raise ValueError(
            f"model.attention={kind!r} does not compute {reason}; set model.attention=auto, which "
            "selects another form"
        )
    form, platform = form_of(kind, mesh, dtype, head_dim, windows), device.platform
    if form == "splash" and platform != "tpu" or form == "cudnn" and platform not in GPU:
        logger.warning(
            "model.attention=%r is not for a %s: %s; auto takes what is",
            kind,
            platform,
            ON_OTHER_DEVICES[form],
        )


def choose(kind: str, mesh: Mesh, windows: bool = False) -> Callable:
    """The `causal` attention of model.attention on the devices of this mesh."""
    form, platform = form_of(kind, mesh, windows=windows), mesh.devices.flat[0].platform
    if form == "splash":
        kernel = functools.partial(splash.causal, interpret=platform != "tpu")
        return causal_over_mesh(kernel, mesh)
    if form == "cudnn" and platform not in GPU:
        return causal_over_mesh(functools.partial(cudnn.causal, implementation="xla"), mesh)
    if form == "cudnn":
        attend = functools.partial(on_gpu, kind, mesh)
        return attend if mesh.size == 1 else causal_over_mesh(attend, mesh)
    return einsums.causal


def on_gpu(kind: str, mesh: Mesh, q_BTNH, *args, **kwargs):
    """cuDNN's attention where it supports these queries, otherwise einsums."""
    form = form_of(kind, mesh, q_BTNH.dtype, q_BTNH.shape[-1])
    causal = cudnn.causal if form == "cudnn" else einsums.causal
    return causal(q_BTNH, *args, **kwargs)
