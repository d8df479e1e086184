"""Small programs whose collectives and buffers are known by hand, and the devices for them."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bridge_jax.planner import chips, hlo

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)

TARGETS = ["cpu:8", pytest.param("v5e:2x4", marks=[pytest.mark.tpu_compiler, needs_libtpu])]

D, LAYERS = 256, 5


def mesh_of(name: str, *axes: str) -> Mesh:
    topology = chips.parse(name)
    sizes = (8,) if len(axes) == 1 else (2, 4)
    return Mesh(np.asarray(chips.devices(topology)).reshape(sizes), axes)


def shape(mesh, dims, *spec, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, P(*spec)))


def layered(ws_LDD, x_BD):
    """Five layers whose weights lie over the devices: each is gathered when it is its turn."""
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x_BD, ws_LDD)[0]


LOOP = """HloModule jit_f, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }, num_partitions=4

%condition (p: (s32[], f32[8])) -> pred[] {
  %bound = s32[] constant(BOUND)
  %p = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

%body (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  %step = s32[] constant(STEP)
  %q = (s32[], f32[8]{0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %x = f32[8]{0} get-tuple-element(%q), index=1
  %sum = f32[8]{0} all-reduce(%x), replica_groups=GROUPS, to_apply=%add
  %next = s32[] add(%j, %step)
  ROOT %r = (s32[], f32[8]{0}) tuple(%next, %sum)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %zero = s32[] constant(2)
  %a = f32[8]{0} parameter(0)
  %copied = s32[] copy(%zero)
  %t = (s32[], f32[8]{0}) tuple(%copied, %a)
  %w = (s32[], f32[8]{0}) while(%t), condition=%condition, body=%bodyNOTED
  ROOT %out = f32[8]{0} get-tuple-element(%w), index=1
}
"""


def module(bound="11", step="3", groups="{{0,1},{2,3}}", noted=""):
    text = (
        LOOP.replace("BOUND", bound)
        .replace("STEP", step)
        .replace("GROUPS", groups)
        .replace("NOTED", noted)
    )
    return hlo.parse(text)
