"""The programs of one training step, compiled for devices that may only be described, and what each
takes.

Phases: merge (the weights handed to the sampler, once a rollout for each actor), prefill and decode
(one call of the sampler; its program holds both), logp (the sampled rows once more, forward only),
and one update for every kind of step the method has. Memory, collectives and the compiler's own
figures are of the compiled program; work is counted (count.py), and time a roofline: the longest of
FLOPs, memory and interconnect at their peaks. It says what a phase cannot beat, not what it will
take. Assumed: every prompt and completion has its full length, and all samples run to max_new
tokens.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from bridge_jax import objectives
from bridge_jax.distributed import sharding
from bridge_jax.models import layers, params
from bridge_jax.models.precision import matmul_precision
from bridge_jax.planner import buffers, chips, flops, hlo
from bridge_jax.training import build, programs
from bridge_jax.training.build import Setup
from bridge_jax.types import BatchSpec, Tree

LARGEST = 12  # buffers that are listed
# of a phase, what follows from its program alone
COMPILED = (
    "compile_s",
    "memory",
    "collectives",
    "compiler",
    "refused",
)
Known = dict[str, dict[str, Any]]  # these, by a hash of the program and its compiler


class Phase(NamedTuple):
    """One program and what is counted for it."""

    name: str
    trace: Callable[[], jax.stages.Traced]
    work: Callable[[jax.stages.Traced], flops.Work]
    # bytes per device that lie beside the program's own: the training state while samples are drawn
    resident: int = 0
    loop: float | None = (
        # most trips of its loops of unknown length, in the mean; what lies outside them is another
        # phase
        None
    )
    # the same of a loop over micro-batches of packed rows, beside what lies outside of it
    packed: float = 1.0


def kind_of(spec: BatchSpec) -> str:
    """How one kind of step is named."""
    return "+".join(["demos"] * spec.demos + ["samples"] * bool(spec.sampled_by))


def phases(setup: Setup, state: Tree) -> list[Phase]:
    """Everything that a step of this run computes, at its longest bucket.

    state: of setup.abstract_state.
    """
    s, bucket = setup.settings, setup.buckets[-1]
    P, M, resident = (
        s.batch.prompts_per_step // s.rollout.calls,
        s.batch.samples_per_prompt,
        flops.chip_bytes(state),
    )
    phi, packed = (
        programs.abstract_phi(setup, state),
        float(s.batch.rollout_microbatches if s.batch.pack else 1),
    )
    nothing = lambda traced: flops.Work(
        0.0, float(flops.chip_bytes(state.params) + flops.chip_bytes(phi)) * setup.mesh.size
    )
    found = []
    if setup.method.sampling_policies:
        # the weights of all actors are handed out before the first has sampled
        sampling = resident + (
            max(len(spec.sampled_by) for spec in setup.method.step_kinds) - 1
        ) * flops.chip_bytes(phi)
        # what it is given it counts itself
        found = [
            Phase(
                "merge",
                lambda: programs.trace_policy(setup, state, "theta"),
                nothing,
                sampling - flops.chip_bytes((state.params.theta, state.params.w)),
            ),
            Phase(
                "prefill",
                lambda: trace_prefill(setup, phi, bucket, P),
                lambda traced: flops.prefill(setup, bucket, P),
                sampling,
            ),
            Phase(
                "decode",
                lambda: programs.trace_sampler(setup, phi, bucket, P, M),
                lambda traced: flops.decode(setup, bucket, P),
                sampling,
                s.rollout.max_new / len(flops.loops(setup)),
            ),
            Phase(
                "logp",
                lambda: trace_logp(setup, state, bucket),
                lambda traced: flops.logp(setup, bucket),
                resident,
                packed=packed,
            ),
        ]
    for spec in setup.method.step_kinds:
        name = "update" if len(setup.method.step_kinds) == 1 else f"update {kind_of(spec)}"
        found.append(
            Phase(
                name,
                lambda spec=spec: programs.trace_update(setup, state, bucket, spec),
                lambda traced, spec=spec: of_update(setup, state, bucket, spec, traced),
                packed=packed,
            )
        )
    return found


def trace_prefill(setup: Setup, phi: Tree, bucket: int, P: int) -> jax.stages.Traced:
    """The prompts of one call of the sampler."""
    plan = programs.plan_of(setup)
    rows = (jax.ShapeDtypeStruct((P, bucket), jnp.int32), jax.ShapeDtypeStruct((P,), jnp.int32))
    precise = jax.default_matmul_precision(matmul_precision(phi["embed"].dtype))

    def prefill(phi, *rows):
        hidden_PD, cache = precise(layers.prefill)(
            setup.cfg, plan.to_storage(phi), *rows, plan.storage_dtype, plan.prefill_attention
        )
        return hidden_PD, plan.place_cache(cache)

    return jax.jit(prefill).trace(
        phi, *programs.placed(rows, sharding.of_rows(setup.decode_mesh, rows))
    )


def trace_logp(setup: Setup, state: Tree, bucket: int) -> jax.stages.Traced:
    """Log-probabilities of a step's samples under the current policy, micro-batched as in an
    update.
    """
    spec = next(spec for spec in setup.method.step_kinds if spec.sampled_by)
    rollouts = programs.abstract_batch(setup, bucket, spec).rollouts[spec.sampled_by[0]]
    phi = jax.eval_shape(lambda params: setup.method.policy(params, "theta"), state.params)
    score = jax.jit(
        lambda phi, rollouts: objectives.logp_of(
            setup.policy, phi, rollouts, setup.settings.batch.microbatch
        )
    )
    return score.trace(
        programs.placed(phi, build.theta_shardings(setup)),
        programs.placed(rollouts, sharding.of_rows(setup.mesh, rollouts)),
    )


def of_update(
    setup: Setup, state: Tree, bucket: int, spec: BatchSpec, traced: jax.stages.Traced
) -> flops.Work:
    """Work of one update, by the ledger that the method itself keeps."""
    spent = flops.passes(
        traced, programs.abstract_batch(setup, bucket, spec), bucket, setup.settings.rollout.max_new
    )
    return flops.update(setup, spent, bucket, state)


def compile_phase(
    phase: Phase,
    chip: chips.Chip | None,
    network: float,
    devices: int,
    options: dict,
    compiler: str,
    known: Known,
) -> dict[str, Any]:
    """Everything there is to say of one phase, as JSON.

    A program that the compiler cannot place says what it asked for.
    """
    began = time.monotonic()
    traced = phase.trace()
    work = phase.work(traced)
    lowered, traced_s = traced.lower(), time.monotonic() - began
    program = hashlib.sha256(f"{compiler} {options} {lowered.as_text()}".encode()).hexdigest()[:16]
    if program not in known:
        known[program] = of_program(lowered, phase, options)
    found = {
        "phase": phase.name,
        "program": program,
        "flops": work.flops / devices,
        "bytes": work.bytes / devices,
        "resident": phase.resident,
        "trace_s": traced_s,
    } | known[program]
    if "refused" in found:
        return found | {"fits": False}
    found["peak"] = found["memory"]["peak"] + phase.resident
    return found | (
        {"fits": found["peak"] <= chip.hbm} | roofline(found, chip, network) if chip else {}
    )


def of_program(lowered: jax.stages.Lowered, phase: Phase, options: dict) -> dict[str, Any]:
    """What the compiler makes of the program of a phase, under the keys COMPILED."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            compiled = lowered.compile(compiler_options=options | {"xla_dump_to": folder})
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return {"compile_s": time.monotonic() - began, "refused": refusal(str(error))}
        seconds, module = time.monotonic() - began, hlo.parse(text_of(compiled, Path(folder)))
    return {
        "compile_s": seconds,
        "memory": memory_of(compiled, module),
        "collectives": communicated(module, phase),
        "compiler": {
            key: value
            for key, value in (compiled.cost_analysis() or {}).items()
            if key in ("flops", "bytes accessed", "optimal_seconds")
        },
    }


def text_of(compiled, folder: Path) -> str:
    """The compiled program, as the TPU's compiler itself wrote it into the folder.

    Other compilers' as jaxlib reads it.

    jaxlib fails, and says so at length on stderr, at the asynchronous instructions of a libtpu that
    is newer (seen with jaxlib 0.10.2 and libtpu 0.0.52 on v5p).
    """
    for stage in ("after_codegen", "after_optimizations"):
        if written := sorted(folder.glob(f"*.{stage}.txt"), key=lambda path: path.stat().st_size):
            return written[-1].read_text()
    return compiled.as_text()


def known_of(plans: list[dict]) -> Known:
    """The programs of earlier plans, by what they were compiled from."""
    return {
        phase["program"]: {key: phase[key] for key in COMPILED if key in phase}
        for plan in plans
        for phase in plan["phases"]
        if "program" in phase
    }


def refusal(message: str) -> dict[str, Any]:
    """What the compiler says of a program that is too large for the device.

    Sizes in bytes where it gives them.
    """
    unit = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    sizes = [
        float(number) * unit[letter]
        for number, letter in re.findall(r"\(?(\d+\.?\d*)([KMGT]?)B?\)", message)
    ]
    return {"message": message.split("\n")[0][:300]} | (
        {"asked": sizes[0], "available": sizes[1]} if len(sizes) > 1 else {}
    )


def memory_of(compiled, module: hlo.Module) -> dict[str, Any]:
    """Bytes per device, by the compiler.

    And the buffers alive at the peak, by a walk through the schedule.

    XLA's CPU backend leaves temporaries out of its peak: there it is the sum of everything, which
    is an upper bound.
    """
    told = compiled.memory_analysis()
    size = lambda name: int(getattr(told, f"{name}_in_bytes"))
    found = {name: size(f"{name}_size") for name in ("argument", "output", "alias", "temp")}
    walked = buffers.peak(module)
    own = found["argument"] + found["output"] - found["alias"] + found["temp"]
    peak = size("peak_memory")
    return found | {
        "peak": own if peak < found["argument"] + found["temp"] / 2 else peak,
        "walked": walked.bytes,
        "largest": [one._asdict() for one in walked.alive[:LARGEST]],
    }


def communicated(module: hlo.Module, phase: Phase) -> dict[str, dict]:
    """Per kind of collective: instructions, times, bytes received per device."""
    found = hlo.collectives(module)
    if phase.loop is not None:
        return hlo.totals([one for one in found if one.unknown], phase.loop)
    unknown = sum(one.unknown > 0 for one in found) if phase.packed == 1 else 0
    return hlo.totals(found, phase.packed) | (
        {"unknown_loops": {"instructions": unknown}} if unknown else {}
    )


def roofline(phase: dict, chip: chips.Chip, network: float) -> dict[str, float]:
    """Seconds at the chip's peaks: of FLOPs, of memory, of the interconnect, and the longest of
    them.
    """
    moved = sum(row.get("bytes", 0.0) for row in phase["collectives"].values())
    parts = {
        "compute_s": phase["flops"] / chip.flops,
        "memory_s": phase["bytes"] / chip.memory,
        "network_s": moved / network if network else 0.0,
    }
    return parts | {"seconds": max(parts.values())}


def step_seconds(found: list[dict], calls: int, actors: int, grading: float) -> dict[str, float]:
    """One step by the rooflines: all actors' rollouts, grading, and each kind of update as a step
    of its own; {} where a phase of it was left out, does not fit, or has no roofline.
    """
    by_name = {phase["phase"]: phase for phase in found}
    needed = ("merge", "prefill", "decode") if actors else ()
    if any("seconds" not in phase for phase in found) or any(
        name not in by_name for name in needed
    ):
        return {}
    seconds = lambda name: by_name[name]["seconds"]
    rollout = (
        actors * (seconds("merge") + calls * (seconds("prefill") + seconds("decode")))
        if actors
        else 0.0
    )
    updates = {name: seconds(name) for name in by_name if name.startswith("update")}
    samples = lambda name: name == "update" or name.endswith("samples")
    return {
        name: value + (rollout + grading) * (actors > 0 and samples(name))
        for name, value in updates.items()
    } | {"rollout": rollout, "grading": grading}


def state_bytes(setup: Setup, devices: int, on_host: bool = False) -> int:
    """Of the training state per device on `devices` of them, all along fsdp, by the shardings
    alone; on_host: what each of them keeps in the host's memory between steps
    (method.bridge.shadow.offload).
    """
    return flops.chip_bytes(
        build.abstract_state(setup, AbstractMesh((1, devices, 1), sharding.AXES)), on_host
    )


def largest_that_fits(candidates: list[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of rising candidates that fits, by halving: what a size needs is taken to grow
    with it.
    """
    low, high, best = 0, len(candidates) - 1, None
    while low <= high:
        middle = (low + high) // 2
        if fits(candidates[middle]):
            best, low = candidates[middle], middle + 1
        else:
            high = middle - 1
    return best


def parameters(setup: Setup) -> int:
    """Of the base model."""
    return sum(leaf.size for leaf in jax.tree.leaves(params.abstract(setup.cfg)))
