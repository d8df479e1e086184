"""A plan: all phases of a config on a topology, compiled ahead of time, as one JSON object."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from concurrent import futures
from importlib import metadata
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import bridge_jax
from bridge_jax.config import schema
from bridge_jax.distributed.compiler import compiler_options
from bridge_jax.planner import chips, flops, gpus, phases
from bridge_jax.training import build
from bridge_jax.training.build import Setup

CHIP_COUNTS = (16, 32, 64, 128, 256)  # of the table of state memory
GB = 1e9
# whose code makes the programs of a step
ROOMS = ("methods", "models", "objectives", "optim", "sampling", "training")
PARALLEL_COMPILATIONS = 2  # one compilation uses little more than one core


def make(
    config: ConfigDict,
    topology: chips.Topology,
    devices: list,
    grading: float = 0.0,
    only: Callable[[str], bool] = lambda phase: True,
    report: Callable[[str], None] = lambda line: None,
    cache: phases.CompiledPrograms | None = None,
    compile: bool = True,
) -> dict[str, Any]:
    """Compiles the phases whose names satisfy `only`, and returns the plan as a JSON object.

    grading: seconds of grading per step. report: called with one line for each compiled phase.
    cache: programs of earlier plans (phases.compiled_programs); new ones are added. compile: False
    for the counted work alone, without memory and interconnect.
    """
    began, cache = time.monotonic(), {} if cache is None else cache
    setup = build.make_setup(config, devices)
    state = build.abstract_state(setup)
    refuse_host_memory(setup, topology)
    chip = chips.chip_of(topology, devices)
    network = chips.interconnect(topology, chip) if chip else 0.0
    dtype, compiler = setup.settings.model.dtype, compiler_of(topology)
    target = phases.Target(chip, network, len(devices), dtype, compiler)
    sampling = lambda phase: phase.name in ("prefill", "decode")
    options = lambda phase: (
        compiler_options(emitters=sampling(phase)) if topology.kind == "cpu" else {}
    )

    def compile_one(phase: phases.Phase) -> dict[str, Any]:
        if not compile:
            return phases.count_phase(phase, target)
        result = phases.compile_phase(phase, target, options(phase), cache)
        report(phase_line(result))
        return result

    # The update is the last phase and takes the longest to compile, so it is submitted first.
    with futures.ThreadPoolExecutor(PARALLEL_COMPILATIONS) as pool:
        jobs = [
            pool.submit(compile_one, phase)
            for phase in reversed(phases.phases(setup, state))
            if only(phase.name)
        ]
    found = [one.result() for one in reversed(jobs)]
    policies = max(len(spec.sampled_by) for spec in setup.method.step_kinds)
    step = phases.step_seconds(found, setup.settings.rollout.calls, policies, grading)
    return describe(setup, topology, devices) | {
        "code": code_of_programs(),
        "compiled": compile,
        "chip": None if chip is None else chip._asdict() | {"interconnect": network},
        "phases": found,
        "peak": max((phase.get("peak", float("inf")) for phase in found), default=0)
        if compile
        else None,
        "step": step,
        "typical": phases.typical_seconds(step),
        "state_by_chips": {str(n): phases.state_bytes(setup, n) for n in CHIP_COUNTS},
        "host_bytes": flops.chip_bytes(state, on_host=True),
        "host_state_by_chips": {
            str(n): phases.state_bytes(setup, n, on_host=True) for n in CHIP_COUNTS
        },
        "planned_s": time.monotonic() - began,
    }


def compiler_of(topology: chips.Topology) -> str:
    """All that determines the compiled program besides the program: topology and versions."""
    packages = ["jax", "jaxlib", *["libtpu"] * topology.tpu]
    if topology.described_gpu:
        packages += [name for name in gpus.COMPILERS if importlib.util.find_spec(name)]
    return " ".join([topology.name, *(f"{name} {metadata.version(name)}" for name in packages)])


def code_of_programs() -> str:
    """A fingerprint of the code that makes the programs; a plan of other code is an older one."""
    package = Path(bridge_jax.__file__).parent
    sources = [path for room in ROOMS for path in sorted((package / room).rglob("*.py"))]
    return schema.fingerprint([path.read_text() for path in sources])


def refuse_host_memory(setup: Setup, topology: chips.Topology) -> None:
    """ValueError where a part of the state is in host memory and the devices describe none."""
    if topology.described_gpu and setup.method.on_host:
        raise ValueError(
            f"method.bridge.shadow.offload=True cannot be planned for {topology.name}: described "
            "GPUs have no host memory, so that the compiler would count it as the GPU's own. Plan "
            "it without, or on a machine with GPUs (--topology=gpu)"
        )


def describe(setup: Setup, topology: chips.Topology, devices: list) -> dict[str, Any]:
    """The part of a plan that describes the run: topology, model, method, batch."""
    s = setup.settings
    return {
        "topology": topology.name,
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "model": setup.cfg.family,
        "parameters": phases.parameters(setup),
        "method": s.method_name,
        "mesh": dict(setup.mesh.shape),
        "decode_mesh": dict(setup.decode_mesh.shape),
        "prompts": s.batch.prompts_per_step,
        "samples": s.batch.samples_per_prompt,
        "demos": s.batch.demos_per_step,
        "calls": s.rollout.calls,
        "bucket": setup.buckets[-1],
        "max_new": s.rollout.max_new,
        "microbatch_rows": s.batch.microbatch_rows,
        "remat": s.model.remat,
        "dtype": s.model.dtype,
        "attention": s.model.attention,
    }


def phase_line(phase: dict) -> str:
    """A phase in one line."""
    compiled = f"compiled {phase['compile_s']:.0f} s"
    if "memory" not in phase:
        return f"{phase['phase']}: does not fit ({phase['refused']['message']}; {compiled})"
    seconds = f", roofline {phase['seconds']:.3g} s" if "seconds" in phase else ""
    return f"{phase['phase']}: peak {phase['peak'] / GB:.2f} GB per device{seconds} ({compiled})"


def fit(
    config: ConfigDict,
    topology: chips.Topology,
    devices: list,
    report: Callable[[str], None],
    cache: phases.CompiledPrograms | None = None,
) -> int | None:
    """The largest batch.microbatch_rows with which all phases fit the chip, or None.

    Found by compiling. Sampling does not depend on it, so it is compiled once. cache: as in `make`.
    """
    cache = {} if cache is None else cache

    def fits(rows: int) -> bool:
        result = make(
            with_rows(config, rows),
            topology,
            devices,
            report=lambda line: report(f"microbatch_rows={rows}: {line}"),
            cache=cache,
        )
        return all(phase["fits"] for phase in result["phases"])

    return phases.largest_that_fits(microbatch_candidates(config, devices), fits)


def with_rows(config: ConfigDict, rows: int) -> ConfigDict:
    """The config with this batch.microbatch_rows."""
    tried = config.copy_and_resolve_references()
    tried.batch.microbatch_rows = rows
    return tried


def microbatch_candidates(config: ConfigDict, devices: list) -> list[int]:
    """All valid values of batch.microbatch_rows, in rising order.

    ValueError where the config itself is invalid.
    """
    batch, found = build.make_setup(config, devices).settings.batch, []
    for rows in range(1, batch.rollout_rows // batch.devices + 1):
        try:
            build.make_setup(with_rows(config, rows), devices)
        except ValueError:
            # rows or demonstrations are not divisible
            continue
        found.append(rows)
    return found
