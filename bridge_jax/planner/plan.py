"""A plan: all phases of a config on a topology, as one JSON object, and the same as a table."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent import futures
from importlib import metadata
from typing import Any

from ml_collections import ConfigDict

from bridge_jax.planner import chips, flops, phases
from bridge_jax.training import build, programs
from bridge_jax.training.build import Setup

CHIP_COUNTS = (16, 32, 64, 128, 256)  # of the table of state memory
GB = 1e9
AT_A_TIME = 2  # programs compiled: one keeps little more than a core busy


def make(
    config: ConfigDict,
    topology: chips.Topology,
    devices: list,
    grading: float = 0.0,
    only: Callable[[str], bool] = lambda phase: True,
    tell: Callable[[str], None] = lambda line: None,
    known: phases.Known | None = None,
) -> dict[str, Any]:
    """Compile the phases whose names `only` wants; tell: called with a line for each that is done.

    known: programs that need no compiling (phases.known_of); those that were compiled are added to
    it.
    """
    began, known = time.monotonic(), {} if known is None else known
    setup = build.sketch(config, devices)
    state = build.abstract_state(setup)
    chip = chips.chip_of(topology, devices)
    network = chips.interconnect(topology, chip) if chip else 0.0
    sampling = lambda phase: phase.name in ("prefill", "decode")
    options = lambda phase: (
        programs.compiler_options(emitters=sampling(phase)) if topology.kind == "cpu" else {}
    )

    def compiled(phase: phases.Phase) -> dict[str, Any]:
        made = phases.compile_phase(
            phase, chip, network, len(devices), options(phase), compiler_of(topology), known
        )
        tell(line_of(made))
        return made

    # the update takes longest and comes last: it begins first
    with futures.ThreadPoolExecutor(AT_A_TIME) as pool:
        begun = [
            pool.submit(compiled, phase)
            for phase in reversed(phases.phases(setup, state))
            if only(phase.name)
        ]
    found = [one.result() for one in reversed(begun)]
    actors = max(len(spec.sampled_by) for spec in setup.method.step_kinds)
    return about(setup, topology, devices) | {
        "chip": None if chip is None else chip._asdict() | {"interconnect": network},
        "phases": found,
        "peak": max((phase.get("peak", float("inf")) for phase in found), default=0),
        "step": phases.step_seconds(found, setup.settings.rollout.calls, actors, grading),
        "state_by_chips": {str(n): phases.state_bytes(setup, n) for n in CHIP_COUNTS},
        "host_bytes": flops.chip_bytes(state, on_host=True),
        "host_state_by_chips": {
            str(n): phases.state_bytes(setup, n, on_host=True) for n in CHIP_COUNTS
        },
        "planned_s": time.monotonic() - began,
    }


def compiler_of(topology: chips.Topology) -> str:
    """Everything but the program on which a compiled program depends."""
    packages = [name for name in ("jax", "jaxlib", "libtpu") if name != "libtpu" or topology.tpu]
    return " ".join([topology.name, *(f"{name} {metadata.version(name)}" for name in packages)])


def about(setup: Setup, topology: chips.Topology, devices: list) -> dict[str, Any]:
    """What a plan is of."""
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


def line_of(phase: dict) -> str:
    """A phase in one line."""
    if "memory" not in phase:
        return f"{phase['phase']}: does not fit ({phase['refused']['message']}; compiled {phase['compile_s']:.0f} s)"
    seconds = f", roofline {phase['seconds']:.3g} s" if "seconds" in phase else ""
    return f"{phase['phase']}: peak {phase['peak'] / GB:.2f} GB per device{seconds} (compiled {phase['compile_s']:.0f} s)"


def fit(
    config: ConfigDict,
    topology: chips.Topology,
    devices: list,
    tell: Callable[[str], None],
    known: phases.Known | None = None,
) -> int | None:
    """The largest batch.microbatch_rows with which everything fits the chip, found by compiling.

    None: not even the least.

    Sampling does not depend on it, and is compiled once. known: as make's.
    """
    known = {} if known is None else known

    def fits(rows: int) -> bool:
        made = make(
            with_rows(config, rows),
            topology,
            devices,
            tell=lambda line: tell(f"microbatch_rows={rows}: {line}"),
            known=known,
        )
        return all(phase["fits"] for phase in made["phases"])

    return phases.largest_that_fits(microbatch_candidates(config, devices), fits)


def with_rows(config: ConfigDict, rows: int) -> ConfigDict:
    """The config with so many rows in a micro-batch."""
    tried = config.copy_and_resolve_references()
    tried.batch.microbatch_rows = rows
    return tried


def microbatch_candidates(config: ConfigDict, devices: list) -> list[int]:
    """Every batch.microbatch_rows with which a run would begin, rising.

    ValueError where the config is refused as it stands.
    """
    batch, found = build.sketch(config, devices).settings.batch, []
    for rows in range(1, batch.rollout_rows // batch.devices + 1):
        try:
            build.sketch(with_rows(config, rows), devices)
        except ValueError:
            continue  # rows or demonstrations that do not come out even
        found.append(rows)
    return found
