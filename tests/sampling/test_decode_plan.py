"""A plan of decoding is chosen by the devices; the plain one is the default."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from bridge_jax.sampling import decode_plan
from bridge_jax.sampling.decode_plan import DecodePlan


@pytest.mark.parametrize(
    "T, segments, tile, ends",
    [
        (3000, 4, 128, (768, 1536, 2304, 3000)),
        (3000, 4, 32, (768, 1504, 2272, 3000)),
        (300, 4, 128, (128, 256, 300)),
        (300, 4, 32, (96, 160, 256, 300)),
        (64, 4, 128, (64,)),
        (64, 4, 32, (32, 64)),
        (1000, 1, 128, (1000,)),
        (256, 2, 128, (128, 256)),
    ],
)
def test_where_segments_end(T, segments, tile, ends):
    """At multiples of the tile, so that short completions have fewer of them; and at the end."""
    assert decode_plan.segment_ends(T, segments, tile) == ends


def test_what_pays_where():
    """By the devices, unless the settings say otherwise."""
    one, two = (jax.make_mesh((n,), ("data",), devices=jax.devices()[:n]) for n in (1, 2))
    cuts = lambda *given: (lambda plan: (plan.compactions, plan.loops))(decode_plan.choose(*given))
    assert cuts(one, 300) == (2, ((96, 160, 256, 300),))
    assert cuts(two, 300) == (0, ((128,), (256,), (300,)))
    assert cuts(one, 300, jnp.float32, 0, 2) == (0, ((160, 300),))


def test_the_plain_plan_is_the_default():
    """One loop over all rows and the whole cache, no bits, no mesh."""
    plain = DecodePlan()
    assert (plain.loops, plain.compactions, plain.as_bits, plain.mesh) == ((), 0, False, None)
    assert plain.place_cache("cache") == "cache" and plain.storage_dtype == jnp.float32
