"""Peaks of memory: by hand, and against what the compiler allocates."""

from __future__ import annotations

import jax
import pytest

from bridge_jax.planner import buffers, hlo
from tests.planner.programs import LAYERS, LOOP, TARGETS, D, layered, mesh_of, module, shape


def test_the_walk_by_hand():
    """An argument of 32 bytes and a counter of 4 go around; a sum inside takes the state's place,
    one that is read first does not.
    """
    found = buffers.peak(module())
    assert found.bytes == 32 + 4 + 0 and [one.name for one in found.alive] == ["a", "copied"]
    twice = LOOP.replace("tuple(%next, %sum)", "tuple(%next, %sum2)").replace(
        "  %next", "  %sum2 = f32[8]{0} negate(%sum)\n  %next"
    )
    text = (
        twice.replace("BOUND", "11")
        .replace("STEP", "1")
        .replace("NOTED", "")
        .replace("GROUPS", "{}")
    )
    found = buffers.peak(hlo.parse(text))
    assert found.bytes == 32 + 4 + 32 and "sum" in [one.name for one in found.alive]


OUTPUTS = """HloModule f, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }

ENTRY %main (a: f32[8]) -> (f32[8], f32[16]) {
  %a = f32[8]{0} parameter(0)
  %new = f32[8]{0} negate(%a)
  %other = f32[16]{0} concatenate(%a, %new), dimensions={0}
  ROOT %out = (f32[8]{0}, f32[16]{0}) tuple(%new, %other)
}
"""


@pytest.mark.parametrize("donated, total", ((True, 32 + 64), (False, 32 + 32 + 64)))
def test_a_donated_arguments_place_is_taken(donated, total):
    """The peak counts a donated argument and its output once."""
    text = OUTPUTS if donated else OUTPUTS.replace("{ {0}: (0, {}, may-alias) }", "{ }")
    assert buffers.peak(hlo.parse(text)).bytes == total


@pytest.mark.parametrize("target", TARGETS)
def test_the_walk_finds_the_compilers_peak_and_who_is_in_it(target):
    """The gradient of five layers: within 10% of what the compiler allocates, the weights by their
    argument's name.
    """
    mesh = mesh_of(target, "x")
    loss = lambda ws, x: layered(ws, x).sum()
    ws = shape(mesh, (LAYERS, 16 * D, 16 * D), None, "x")
    f = jax.jit(
        lambda ws, x: jax.tree.map(lambda w, g: w - g, ws, jax.grad(loss)(ws, x)),
        donate_argnums=0,
        out_shardings=ws.sharding,
    )
    compiled = f.lower(ws, shape(mesh, (8 * D, 16 * D), "x")).compile()
    analysis = compiled.memory_analysis()
    allocated = (
        analysis.argument_size_in_bytes
        + analysis.temp_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
    )
    found = buffers.peak(hlo.parse(compiled.as_text()))
    assert found.bytes == pytest.approx(allocated, rel=0.1)
    argument = next(one for one in found.alive if one.origin == "ws")
    assert argument.bytes == LAYERS * (16 * D) ** 2 * 4 / 8
    assert sum(one.bytes for one in found.alive) == found.bytes
