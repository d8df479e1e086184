"""Methods on the Qwen3-shaped model over any mesh, and their updates on one device."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from bridge_jax import methods
from bridge_jax.distributed import sharding
from bridge_jax.distributed.sharding import MeshConfig
from bridge_jax.models import lora, params
from bridge_jax.training import build, settings
from bridge_jax.types import Batch
from tests import toys

MESHES = {
    "8x1x1": dict(data=8, fsdp=1),
    "1x8x1": dict(fsdp=8),
    "1x1x2": dict(fsdp=1, tensor=2),
    "2x2x2": dict(data=2, fsdp=2, tensor=2),
}
THETA_AXES, W_AXES = params.logical_axes(toys.CFG), lora.logical_axes(toys.CFG, toys.ADAPTER)


def mesh_of(sizes: dict):
    """A mesh over as many devices as the sizes say, all eight for -1."""
    count = 2 if sizes == MESHES["1x1x2"] else 8
    return sharding.make_mesh(MeshConfig(**sizes), jax.devices()[:count])


def made(name: str, mesh=None, moments: str = "float32", **own):
    """A method on the Qwen3-shaped model, in micro-batches of 8 rows, its rows kept spread over the
    mesh; own: of its config.
    """
    module = methods.load(name)
    policy = build.make_policy(toys.CFG, settings.Model(), toys.ADAPTER, mesh)
    return module.make(
        toys.method_config(name, **own),
        policy,
        toys.recipes(1.0, 1.0, eps=10.0, clip_norm=0.0, moments=moments),
        8,
    )


def steps_of(method) -> dict[int, int]:
    """Kind of step -> the first step of that kind."""
    found = {}
    for step in range(60):
        found.setdefault(method.kind_of_step(step), step)
    return found


@functools.cache
def on_one_device(name: str, **chosen):
    """For each kind of step: (state before, batch, state after, metrics), all parts of the
    parameters away from step 0.
    """
    method, found = made(name, **chosen), []
    for kind, step in steps_of(method).items():
        state = jax.jit(method.init)(toys.transformer_theta(), jax.random.key(0))
        state = state.replace(
            step=jnp.int32(step),
            params=toys.add(state.params, toys.noise_like(state.params, 1, 0.05)),
        )
        given, spec = toys.model_batch(0), method.step_kinds[kind]
        batch = Batch(
            given.demos if spec.demos else None,
            {policy: given.rollouts[policy] for policy in spec.sampled_by},
        )
        found.append((state, batch, *jax.jit(method.update)(state, batch)))
    return found
