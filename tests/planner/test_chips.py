"""Names of topologies, what is said of those that are none, and the table of peaks."""

from __future__ import annotations

import importlib.util
import math
import types

import jax
import pytest

from bridge_jax.planner import chips
from tests import errors

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


@pytest.mark.parametrize(
    "name, kind, shape",
    (
        ("v5e:4x4", "v5e", (4, 4)),
        ("v5p:4x4x4", "v5p", (4, 4, 4)),
        ("cpu:8", "cpu", (8,)),
        ("gpu", "gpu", ()),
        ("gpu:8", "gpu", (8,)),
        ("tpu7x:2x2x1", "tpu7x", (2, 2, 1)),
        ("V5P:2x2x1", "v5p", (2, 2, 1)),
        ("h100:8", "h100", (8,)),
        ("b200:4x8", "b200", (4, 8)),
        ("a100_40:1", "a100_40", (1,)),
    ),
)
def test_names(name, kind, shape):
    """The name of a topology gives its kind and shape."""
    assert chips.parse(name)[1:] == (kind, shape)


@pytest.mark.parametrize(
    "name, hint",
    (
        ("v5e:16", "'v5e:4x4'"),
        ("v5p:64", "'v5p:4x4x4'"),
        ("v5e", "v5e:1x1"),
        ("v5e:4x", "v5e:2x2"),
        ("v6e:8*8", "'v6e:8x8'"),
        ("cpu", "cpu:8"),
        ("cpu:0", "cpu:8"),
        ("v5", "'v5p'"),
        ("banana", ("cpu", "gpu", "h100", "v4")),
        ("v5e:4x4x", "'v5e:4x4'"),
        ("v5p:4x4", "'v5p:2x2x4'"),
        ("v6e:2x2x2", "'v6e:2x4'"),
        ("v5e:4x4x4", "'v5e:8x8'"),
        ("v5litepod-64", "'v5e:8x8'"),
        ("v5p-128", "'v5p:4x4x4'"),
        ("v6e-16", "'v6e:4x4'"),
        ("h100", "h100:8"),
        ("h100:16", "h100:2x8"),
        ("h100:2x4", "h100:2x8"),
    ),
)
def test_names_that_are_none(name, hint):
    """An invalid name is refused with the nearest valid one."""
    with pytest.raises(ValueError) as refused:
        chips.parse(name)
    errors.assert_names(str(refused.value), hint, repr(name))


def test_peaks_are_those_of_the_makers():
    """A v5e's 16 GB and 197 TFLOP/s, a v5p's 95 GB, a v6e's 32 GB; the interconnect adds up to the
    page's number.
    """
    assert [chips.CHIPS[kind].hbm for kind in ("v5e", "v5p", "v6e")] == [16e9, 95e9, 32e9]
    both = lambda kind: 2 * chips.CHIPS[kind].link * chips.CHIPS[kind].links
    assert [both(kind) for kind in ("v5e", "v5p", "v6e", "a100", "h100")] == [
        400e9,
        1200e9,
        800e9,
        600e9,
        900e9,
    ]
    assert all(chip.source for chip in chips.CHIPS.values())


@pytest.mark.parametrize(
    "name, links",
    (
        ("v5e:4x4", 2),
        ("v5e:16x16", 4),
        ("v5e:8x16", 3),
        ("v5e:1x1", 0),
        ("v5p:4x4x4", 6),
        ("v5p:2x2x1", 2),
        ("v5p:2x4x4", 5),
    ),
)
def test_links_of_the_worst_placed_chip(name, links):
    """A v5e slice closes to a ring along 16 chips alone, a v5p along multiples of 4; a corner of
    the others has one link each.
    """
    topology = chips.parse(name)
    assert chips.interconnect(topology, topology.chip) == links * topology.chip.link


@pytest.mark.parametrize(
    "name, rate", (("h100:8", 450e9), ("h100:1x8", 450e9), ("h100:2x8", 400e9), ("l40s:2x8", 32e9))
)
def test_several_nodes_receive_at_the_rate_of_their_network(name, rate):
    """Within a node NVLink counts, among nodes the slower of both."""
    topology = chips.parse(name)
    assert chips.interconnect(topology, topology.chip) == rate


def test_more_cpus_than_there_are():
    """More CPU devices than exist are refused with a valid name."""
    with pytest.raises(ValueError, match="cpu:8"):
        chips.devices(chips.parse("cpu:4096"))


def test_no_gpu_here():
    """Without a GPU, the gpu topology is refused."""
    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("there is one")
    with errors.raises(ValueError, "gpu", "cuda13"):
        chips.devices(chips.parse("gpu"))


def test_without_libtpu_it_says_how_to_install_it(monkeypatch):
    """Without libtpu, a TPU topology is refused with the pip command."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install libtpu"):
        chips.devices(chips.parse("v5e:4x4"))


@pytest.mark.parametrize(
    "name, hint",
    [
        ("banana:4x4", ("cpu", "h100", "v6e")),
        ("v5:4x4", ("'v5p'", "cpu", "v6e")),
        ("v7:4x4", ("cpu", "v6e")),
        ("v5e:3x5", ("'v5e:4x4'", "v5e:1x1,")),
        ("h1000:8", ("'h100'", "cpu")),
    ],
)
def test_without_libtpu_the_nearest_is_named_first(monkeypatch, name, hint):
    """What nobody here knows; libtpu, were it there, would be asked instead."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError) as refused:
        chips.devices(chips.parse(name))
    # the nearest before what would know more
    nearest, libtpu, way_out = str(refused.value).partition("libtpu")
    errors.assert_names(nearest, f"--topology={name!r}", hint)
    assert libtpu and way_out.endswith("pip install libtpu")


@pytest.mark.parametrize(
    "kind, stats, hbm",
    [
        ("NVIDIA A100-SXM4-40GB", dict(bytes_limit=30 * 10**9), 30e9),
        ("NVIDIA A100-SXM4-80GB", None, 80e9),
        ("NVIDIA H100 80GB HBM3", {}, 80e9),
    ],
)
def test_memory_of_a_gpu_that_is_there(kind, stats, hbm):
    """What the device says; the page's number where it says nothing; nothing of a chip that the
    table does not have.
    """
    device = types.SimpleNamespace(device_kind=kind, memory_stats=lambda: stats)
    assert chips.chip_of(chips.parse("gpu:1"), [device]).hbm == hbm
    device.device_kind = "NVIDIA T4"
    assert chips.chip_of(chips.parse("gpu:1"), [device]) is None


@pytest.mark.tpu_compiler
@needs_libtpu
def test_described_slices():
    """Described TPU slices have their number of devices and memory."""
    for name in ("v5e:4x4", "v5p:4x4x4", "v6e:8x8", "v4:2x2x2"):
        topology = chips.parse(name)
        devices = chips.devices(topology)
        assert devices[0].platform == "tpu" and len(devices) % math.prod(topology.shape) == 0
        assert chips.chip_of(topology, devices).hbm * len(devices) == topology.chip.hbm * math.prod(
            topology.shape
        )
    with errors.raises(ValueError, "'v5e:4x4'"):
        chips.devices(chips.parse("v5e:3x5"))
    with errors.raises(ValueError, "v9", "cpu, gpu, v4"):
        chips.devices(chips.parse("v9:2x2"))
