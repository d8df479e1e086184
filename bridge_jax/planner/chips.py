"""Topologies by name: "v5e:4x4", "h100:8", "h100:2x8", "cpu:8", "gpu:8".

Their chips are those of distributed/peaks.py; "gpu" are those of this machine, while h100 and its
like are described (gpus.py).

A TPU slice is a torus only along some dimensions (`torus`); along the
others the chips at the edge have one link less, and the slowest chip sets the pace of a collective.
No device is initialized before `devices` is called.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from typing import NamedTuple

from bridge_jax.config.schema import did_you_mean
from bridge_jax.distributed import memory_pools, peaks
from bridge_jax.distributed.peaks import CHIPS, Chip
from bridge_jax.planner import gpus

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    "2x2x1",
    "2x2x2",
    "2x2x4",
    "2x4x4",
    "4x4x4",
    "4x4x8",
    "4x8x8",
    "8x8x8",
    "8x8x16",
    "8x16x16",
    "16x16x16",
)
# slices that can be rented; libtpu knows more
SLICES = {
    "v4": _CUBES,
    "v5e": _FLAT,
    "v5p": _CUBES,
    "v6e": _FLAT,
}
# product name before "-" -> (generation, cores per chip); the number after "-" counts cores
PRODUCT_NAMES = {
    "v5litepod": ("v5e", 1),
    "v6e": ("v6e", 1),
    "v4": ("v4", 2),
    "v5p": ("v5p", 2),
}
# set before libtpu is loaded: no metadata server, no lock, no messages about hosts
TPU_SETTINGS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


class Topology(NamedTuple):
    """A topology, parsed from its name."""

    name: str
    kind: str  # cpu, gpu, or a chip's name
    # chips along each dimension; of described GPUs nodes and GPUs of a node, or GPUs; () for a gpu:
    # all there are
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip | None:
        """Peaks, where they are in the table."""
        return CHIPS.get(self.kind)

    @property
    def tpu(self) -> bool:
        """Whether the TPU compiler is needed."""
        return self.kind not in ("cpu", "gpu", *gpus.GPUS)

    @property
    def described_gpu(self) -> bool:
        """Whether the GPUs are described, not those of this machine."""
        return self.kind in gpus.GPUS


def parse(name: str) -> Topology:
    """The topology of this name; ValueError gives the nearest valid ones."""
    kind, _, rest = name.partition(":")
    kind = kind.lower()
    if (product := re.fullmatch(r"(\w+)-([1-9]\d*)", name.lower())) and product[1] in PRODUCT_NAMES:
        kind, cores = PRODUCT_NAMES[product[1]]
        raise ValueError(
            f"--topology={name!r} is unknown: {_nearest(kind, str(int(product[2]) // cores))}"
        )
    if kind in gpus.GPUS:
        return _described_gpu(name, kind, rest)
    simple = re.fullmatch(r"[1-9]\d*", rest)
    if kind == "cpu" and simple or kind == "gpu" and (simple or name.lower() == "gpu"):
        return Topology(name, kind, (int(rest),) if rest else ())
    if kind in ("cpu", "gpu"):
        raise ValueError(
            f"--topology={name!r}: after {kind}: write the number of devices, such as {kind}:8"
        )
    if kind in SLICES and not re.fullmatch(
        r"[1-9]\d*" + r"x[1-9]\d*" * SLICES[kind][0].count("x"), rest
    ):
        raise ValueError(f"--topology={name!r} is unknown: {_nearest(kind, rest)}")
    if not re.fullmatch(r"\w+:[1-9]\d*(x[1-9]\d*)*", name):
        raise ValueError(
            f"--topology={name!r} is unknown: {did_you_mean(kind, known())} Written as KIND:AxB or "
            "KIND:AxBxC, such as v5e:4x4 and v5p:4x4x4, or h100:8, h100:2x8, cpu:8, gpu, gpu:8"
        )
    return Topology(f"{kind}:{rest}", kind, tuple(int(n) for n in rest.split("x")))


def _described_gpu(name: str, kind: str, rest: str) -> Topology:
    """GPUs of one node, or NODESxGPUS: at most eight a node, and several nodes are full."""
    sizes = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", rest)
    shape = tuple(int(n) for n in sizes.groups() if n) if sizes else ()
    if not shape or shape[-1] > gpus.PER_NODE or len(shape) == 2 and shape[1] != gpus.PER_NODE:
        raise ValueError(
            f"--topology={name!r}: after {kind}: write the number of GPUs of one node, 1 to "
            f"{gpus.PER_NODE}, or NODESx{gpus.PER_NODE}, such as {kind}:8 and {kind}:2x8"
        )
    return Topology(f"{kind}:{rest}", kind, shape)


def known() -> list[str]:
    """The kinds before the colon; libtpu may know more generations."""
    return ["cpu", "gpu", *SLICES, *gpus.GPUS]


def _nearest(kind: str, rest: str) -> str:
    """A message with the slices of this generation, the one closest in number of chips first."""
    count = lambda shape: math.prod(int(n) for n in shape.split("x"))
    asked = math.prod(int(n) for n in re.findall(r"[1-9]\d*", rest)) or 1
    nearest = min(SLICES[kind], key=lambda shape: (abs(math.log(count(shape) / asked)), shape))
    allowed = ", ".join(f"{kind}:{shape}" for shape in SLICES[kind])
    return f"did you mean '{kind}:{nearest}'? Allowed: {allowed}."


def prepare(topology: Topology) -> None:
    """Sets the environment of this topology's compiler; to be called before jax is imported."""
    if topology.kind == "gpu":
        return
    # a TPU or GPU of this machine is not used
    os.environ["JAX_PLATFORMS"] = "cpu"
    if topology.described_gpu:
        # the GPUs' compiler works without the libraries of a driver, for which jax would look
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    if topology.kind == "cpu":
        flags = [
            flag
            for flag in os.environ.get("XLA_FLAGS", "").split()
            if "host_platform_device_count" not in flag
        ]
        os.environ["XLA_FLAGS"] = " ".join(
            [*flags, f"--xla_force_host_platform_device_count={topology.shape[0]}"]
        )


def devices(topology: Topology) -> list:
    """The devices, real or described; ValueError where there are none."""
    import jax

    from bridge_jax.distributed import platforms

    if topology.tpu:
        return tpu_devices(topology)
    if topology.described_gpu:
        return gpus.devices(topology.name, topology.kind, topology.shape)
    if topology.kind == "gpu":
        # `prepare` has left the platform to the user
        platforms.devices()
    try:
        found = jax.devices(topology.kind)
    except RuntimeError:
        raise ValueError(
            f"--topology={topology.name!r}: jax sees no {topology.kind} here (pip install "
            '"jax[cuda13]"). No GPU is needed for those that are described: '
            f"{', '.join(f'{kind}:8' for kind in gpus.GPUS)}"
        ) from None
    count = topology.shape[0] if topology.shape else len(found)
    if count > len(found):
        raise ValueError(
            f"--topology={topology.name!r}: there are {len(found)} such devices; allowed: up to "
            f"{topology.kind}:{len(found)}"
        )
    return found[:count]


def tpu_devices(topology: Topology) -> list:
    """Described TPU devices; ValueError where libtpu is absent or does not know the topology."""
    import jax
    from jax.experimental import topologies

    rest = topology.name.partition(":")[2]
    hint = (
        _nearest(topology.kind, rest)
        if topology.kind in SLICES
        else did_you_mean(topology.kind, known())
    )
    if importlib.util.find_spec("libtpu") is None:
        if rest not in SLICES.get(topology.kind, ()):
            raise ValueError(
                f"--topology={topology.name!r} is unknown: {hint} libtpu, which is not installed, "
                "may know more: pip install libtpu"
            )
        raise ValueError(
            f"--topology={topology.name!r} takes the TPU's compiler, which is not installed: pip "
            "install libtpu (it is part of jax[tpu]; no TPU is needed). Without it: "
            "--topology=cpu:8"
        )
    os.environ.update({key: value for key, value in TPU_SETTINGS.items() if key not in os.environ})
    # The CPU backend reads XLA_FLAGS now. libtpu reads them later, and a flag of another backend
    # would end the process.
    jax.devices("cpu")
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join(
        flag for flag in flags if not flag.startswith(("--xla_cpu_", "--xla_gpu_"))
    )
    try:
        return list(topologies.get_topology_desc(topology.name, platform="tpu").devices)
    # jax raises libtpu's errors as types of its own
    except Exception as error:
        raise ValueError(
            f"--topology={topology.name!r} is unknown to libtpu ({str(error).splitlines()[0]}): "
            f"{hint}"
        ) from None


def chip_of(topology: Topology, devices: list) -> Chip | None:
    """Peaks of one jax device, or None for an unknown chip; a v4 device is half a chip.

    A GPU's memory is what jax may use of it: an A100 has 40 or 80 GB, and a part is left to others.
    """
    if topology.kind == "gpu":
        chip, memory = peaks.of_gpu(devices[0].device_kind), devices[0].memory_stats() or {}
        return chip and chip._replace(hbm=float(memory.get("bytes_limit", chip.hbm)))
    if topology.described_gpu:
        memory = memory_pools.SHARE_OF_GPU * gpus.GPUS[topology.kind].memory
        return topology.chip._replace(hbm=memory)
    if topology.chip is None:
        return None
    share = math.prod(topology.shape) / len(devices)
    chip = topology.chip
    return chip._replace(
        flops=chip.flops * share,
        hbm=chip.hbm * share,
        memory=chip.memory * share,
        link=chip.link * share,
    )


def interconnect(topology: Topology, chip: Chip) -> float:
    """Bytes per second that the chip with the fewest links in the slice can receive.

    A chip at the edge has one link along a dimension that is not a ring, and none along a dimension
    of a single chip. GPUs of several nodes receive at the rate of a node's network, if that is
    slower: a collective over all of them goes around, and every node's cards carry all of it.
    """
    if not chip.torus:
        several = len(topology.shape) == 2 and topology.shape[0] > 1
        return min(chip.link * chip.links, chip.network if several else math.inf)
    ring = lambda size: size > 2 and size % chip.torus == 0
    return chip.link * sum(0 if size == 1 else 2 if ring(size) else 1 for size in topology.shape)
