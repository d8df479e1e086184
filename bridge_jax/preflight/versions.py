"""Versions of packages: those that the project needs, and known-bad ones of jax's GPU parts.

KNOWN_BAD has only what a public report or a maker's code says; each line names it.
"""

from __future__ import annotations

import platform
import re
from importlib import metadata
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from bridge_jax.distributed import platforms
from bridge_jax.filesystem import project
from bridge_jax.preflight.record import FAIL, NOTE, OK, Record
from bridge_jax.preflight.subject import Subject

NAME = "versions"
# packages whose versions are shown
SHOWN = ("jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint")
PLUGIN = re.compile(r"jax-cuda\d+-(?:plugin|pjrt)")


class KnownBad(NamedTuple):
    """Versions of a package with a known fault on GPUs."""

    package: str  # pattern of its name
    versions: str
    grade: str
    fault: str
    way_out: str
    source: str
    capability: float = 0.0  # GPUs of this compute capability or a higher one


KNOWN_BAD = (
    KnownBad(
        r"nvidia-cuda-nvcc(-cu12)?",
        ">=12.0,<12.6.85",
        FAIL,
        "compiles some clamps wrongly on Hopper and later GPUs",
        'pip install -U "nvidia-cuda-nvcc-cu12>=12.6.85"',
        "github.com/openxla/xla/pull/19927",
        capability=9.0,
    ),
    KnownBad(
        r"nvidia-cudnn-cu1[23]",
        "==9.20.*",
        NOTE,
        "its attention with a mask gave gradients that are no numbers where all logits are far "
        "below zero and the length is 64 more than a multiple of 128",
        "see the line attention, or set model.attention=xla",
        "github.com/pytorch/pytorch/issues/196678",
    ),
    KnownBad(
        r"nvidia-cudnn-cu1[23]",
        ">=9.13,<9.15",
        NOTE,
        "its attention without a causal mask read memory out of bounds in CUDA graphs beyond 1024 "
        "keys",
        "pip install -U the package, or set model.attention=xla",
        "github.com/NVIDIA/TransformerEngine/pull/2344",
    ),
)


def installed() -> dict[str, str]:
    """{name: version} of all packages; of several of a name the first is the one imported."""
    found: dict[str, str] = {}
    for one in metadata.distributions():
        if one.name:
            found.setdefault(re.sub(r"[-_.]+", "-", one.name).lower(), one.version)
    return found


def requirements() -> list[Requirement]:
    """What the project needs, from its own list; none where the list is not here."""
    path = project.ROOT / "requirements-run.txt"
    lines = path.read_text().splitlines() if path.is_file() else []
    texts = (line.partition("#")[0].strip() for line in lines)
    return [Requirement(text) for text in texts if text]


def check(subject: Subject) -> Record:
    """The worst finding about this process's packages, for the devices of the subject."""
    device = subject.setup.mesh.devices.flat[0]
    return judge(installed(), device.platform, capability_of(device))


def capability_of(device) -> float:
    """A GPU's compute capability; 0 for other devices and for GPUs of AMD."""
    text = str(getattr(device, "compute_capability", ""))
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0


def judge(found: dict[str, str], device: str, capability: float = 0.0) -> Record:
    """The record of these packages on devices of this platform ("cpu", "gpu", "tpu")."""
    faults = [
        *unmet(found),
        *plugin_faults(found, device),
        *known_faults(found, device, capability),
    ]
    if not faults:
        shown = [f"{name} {found[name]}" for name in SHOWN if name in found]
        return Record(NAME, OK, f"python {platform.python_version()}, {', '.join(shown)}")
    faults.sort(key=lambda record: record.grade != FAIL)
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return faults[0]._replace(text=faults[0].text + more)


def unmet(found: dict[str, str]) -> list[Record]:
    """Packages that are missing, or of a version that the project does not take."""
    wrong = []
    for needed in requirements():
        name = re.sub(r"[-_.]+", "-", needed.name).lower()
        if not needed.specifier.contains(found.get(name, "0"), prereleases=True):
            text = f"{name} is {found.get(name, 'not installed')}, needed is {needed.specifier}"
            wrong.append(Record(NAME, FAIL, text, f'pip install "{needed}"'))
    return wrong


def plugin_faults(found: dict[str, str], device: str) -> list[Record]:
    """jax's parts for NVIDIA GPUs: of another version than jaxlib they are not used, or crash.

    Sources: jaxlib/plugin_support.py compares the numbers; github.com/jax-ml/jax/issues/24901.
    """
    plugins = {name: version for name, version in found.items() if PLUGIN.fullmatch(name)}
    number = lambda version: re.match(r"[\d.]*", version)[0]
    jaxlib = found.get("jaxlib", "")
    faults = [
        Record(
            NAME,
            FAIL,
            f"{name} is {version}, jaxlib is {jaxlib}: jax does not use it, or crashes",
            f'pip install "{name}=={jaxlib}"',
        )
        for name, version in plugins.items()
        if number(version) != number(jaxlib)
    ]
    if plugins and device == "cpu" and not faults:
        text = f"{', '.join(sorted(plugins))} are installed, but jax computes on the CPU"
        way_out = f"unset JAX_PLATFORMS, see nvidia-smi; jax can start: {startable()}"
        faults.append(Record(NAME, NOTE, text, way_out))
    return faults


def startable() -> str:
    """Names of the platforms that jax can start here."""
    return ", ".join(platforms.startable()) or "none"


def known_faults(found: dict[str, str], device: str, capability: float) -> list[Record]:
    """The lines of KNOWN_BAD that these packages match, on GPUs."""
    return [
        Record(NAME, bad.grade, f"{name} {version} {bad.fault} ({bad.source})", bad.way_out)
        for bad in KNOWN_BAD
        for name, version in found.items()
        if device == "gpu"
        and capability >= bad.capability
        and re.fullmatch(bad.package, name)
        and SpecifierSet(bad.versions).contains(version)
    ]
