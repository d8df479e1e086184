"""Collectives and trip counts of compiled functions whose numbers are known by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bridge_jax.planner import hlo
from tests.planner.programs import LAYERS, LOOP, TARGETS, D, layered, mesh_of, module, shape


def collectives(f, *shapes, out=None):
    compiled = jax.jit(f, out_shardings=out).lower(*shapes).compile()
    return hlo.totals(hlo.collectives(hlo.parse(compiled.as_text())))


@pytest.mark.parametrize("target", TARGETS)
def test_collectives_of_hand_made_functions(target):
    """Over 8 devices: an all-gather of 256 KB brings 7/8 of it to each, a sum of one twice that, a
    shift a device's part.
    """
    mesh = mesh_of(target, "x")
    whole, size = NamedSharding(mesh, P()), D * D * 4
    gathered = collectives(lambda a: a, shape(mesh, (D, D), "x"), out=whole)
    assert gathered == {"all-gather": {"instructions": 1, "times": 1, "bytes": size * 7 / 8}}

    def shifted(a):
        return jax.lax.ppermute(a, "x", [(i, (i + 1) % 8) for i in range(8)])

    parts = jax.shard_map(shifted, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    assert collectives(parts, shape(mesh, (D, D), "x")) == {
        "collective-permute": {"instructions": 1, "times": 1, "bytes": size / 8}
    }
    summed = jax.shard_map(
        lambda a: jax.lax.psum(a, "x"), mesh=mesh, in_specs=P("x"), out_specs=P()
    )
    assert collectives(summed, shape(mesh, (8 * D, D), "x")) == {
        "all-reduce": {"instructions": 1, "times": 1, "bytes": 2 * size * 7 / 8}
    }


@pytest.mark.parametrize("target", TARGETS)
def test_groups_of_a_part_of_the_devices(target):
    """A sum over 4 of 2 x 4 devices: each receives 2 x 3/4, whatever the notation of the groups."""
    mesh = mesh_of(target, "x", "y")
    summed = jax.shard_map(
        lambda a: jax.lax.psum(a, "y"), mesh=mesh, in_specs=P("x", "y"), out_specs=P("x")
    )
    found = collectives(summed, shape(mesh, (2 * D, 4 * D), "x", "y"))
    assert found["all-reduce"]["bytes"] == 2 * D * D * 4 * 3 / 4


@pytest.mark.parametrize("target", TARGETS)
def test_what_stands_in_a_loop_counts_as_often_as_it_runs(target):
    """A collective in a loop counts once an iteration."""
    mesh = mesh_of(target, "x")
    found = collectives(
        layered, shape(mesh, (LAYERS, D, D), None, "x"), shape(mesh, (8 * D, D), "x")
    )
    assert found["all-gather"]["times"] == LAYERS * found["all-gather"]["instructions"]
    wide = found["all-gather"]["bytes"] / (LAYERS * D * D * 7 / 8)
    assert wide in (2, 4), (
        "a layer's weights once each, in fp32, or in bf16 where the compiler casts them first"
    )


@pytest.mark.parametrize("target", TARGETS)
def test_a_loop_of_unknown_length_is_reported(target):
    """A sampler's loop ends when all rows are done: its length is taken as given, and what lies
    outside it once.
    """
    mesh = mesh_of(target, "x")

    def sample(a, limit):
        going = lambda s: (s[0] < limit) & (s[1][0, 0] < 1.0)
        summed = jax.shard_map(
            lambda a: jax.lax.psum(a, "x"), mesh=mesh, in_specs=P("x"), out_specs=P()
        )
        step = lambda s: (s[0] + 1, s[1] + summed(a * s[1][0, 0]))
        return jax.lax.while_loop(going, step, (jnp.int32(0), jnp.zeros((D, D)) + summed(a * 2.0)))

    compiled = (
        jax.jit(sample)
        .lower(shape(mesh, (8 * D, D), "x"), shape(mesh, (), dtype=jnp.int32))
        .compile()
    )
    found = hlo.collectives(hlo.parse(compiled.as_text()))
    assert sorted(one.unknown for one in found) == [0, 1]
    assert hlo.totals(found, 100)["all-reduce"]["times"] == 101


@pytest.mark.parametrize(
    "bound, step, trips", (("11", "3", 3), ("11", "1", 9), ("2", "1", 0), ("12", "3", 4))
)
def test_trip_counts_by_the_condition(bound, step, trips):
    """From 2 while below the bound, as the TPU's compiler leaves it: no note of its own."""
    assert [one.times for one in hlo.collectives(module(bound, step))] == [trips]


def test_a_kernel_whose_attributes_take_several_lines():
    """As Pallas kernels have them: what follows is not taken for the end of the computation, and
    the origin is found.
    """
    kernel = "\n".join(
        (
            "  %sum = f32[8]{0} custom-call(%x), frontend_attributes={kernel_metadata={",
            '"a":"{1}"',
            '}}, metadata={op_name="here"}',
            "  %sum.2 = ",
        )
    )
    found = hlo.parse(
        LOOP.replace("BOUND", "11")
        .replace("STEP", "1")
        .replace("NOTED", "")
        .replace("  %sum = ", kernel)
    )
    assert [one.times for one in hlo.collectives(found)] == [9]
    assert next(one for one in found.computations["body"] if one.name == "sum").origin == "here"


def test_a_noted_trip_count_is_taken():
    """A trip count in the backend config is used."""
    noted = ', backend_config={"known_trip_count":{"n":"77"},"x":1}'
    assert [one.times for one in hlo.collectives(module(noted=noted))] == [77]


@pytest.mark.parametrize(
    "groups, size",
    (
        ("{{0,1},{2,3}}", 2),
        ("[1,4]<=[4]", 4),
        ("[2,2]<=[2,2]T(1,0)", 2),
        ("{}", 4),
        ("mesh['a'=2,'b'=2] {'a'}", 2),
        ("mesh['a'=2,'b'=2] {'a','b'}", 4),
    ),
)
def test_sizes_of_groups(groups, size):
    """Each notation of replica groups gives its size."""
    assert hlo.collectives(module(groups=groups))[0].bytes == 2 * 32 * (size - 1) / size


def test_stored_bytes_of_tiles():
    """bf16 [5, 100, 200] in tiles of 8 x 128: 100 becomes 104 and 200 becomes 256."""
    (array,) = hlo.arrays_of("bf16[5,100,200]{2,1,0:T(8,128)(2,1)}")
    assert array.bytes == 5 * 104 * 256 * 2 and array.hbm
    (fast,) = hlo.arrays_of("f32[8,128]{1,0:T(8,128)S(1)}")
    assert fast.bytes == 4096 and not fast.hbm
    assert [
        one.bytes for one in hlo.arrays_of("(s32[], /*index=1*/f32[3,4]{1,0}, pred[7]{0})")
    ] == [4, 48, 7]


def test_a_collective_in_pieces_counts_once():
    """As the TPU's compiler writes one that it runs beside other work: start, middle and end have
    one channel.
    """
    gather = "bf16[1,64,32]{2,1,0} all-gather(%p), channel_id=7, replica_groups=[1,16]<=[16], dimensions={1}"
    text = (
        "HloModule m, num_partitions=16\n\n"
        f"%start (p: bf16[1,4,32]) -> bf16[1,64,32] {{\n  %p = bf16[1,4,32]{{2,1,0}} parameter(0)\n  ROOT %a = {gather}\n}}\n\n"
        f"%end (p: bf16[1,4,32]) -> bf16[1,64,32] {{\n  %p = bf16[1,4,32]{{2,1,0}} parameter(0)\n  ROOT %b = {gather}\n}}\n\n"
        "ENTRY %main (x: bf16[1,4,32]) -> bf16[1,64,32] {\n  %x = bf16[1,4,32]{2,1,0} parameter(0)\n"
        "  %f = bf16[1,64,32]{2,1,0} fusion(%x), kind=kCustom, calls=%start\n"
        "  ROOT %g = bf16[1,64,32]{2,1,0} fusion(%x), kind=kCustom, calls=%end\n}\n"
    )
    found = [(move.kind, move.bytes, move.times) for move in hlo.collectives(hlo.parse(text))]
    assert found == [("all-gather", 64 * 32 * 2 * 15 / 16, 1)]
