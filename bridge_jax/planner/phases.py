"""The programs of one training step, compiled for real or described devices, with their costs.

Phases: merge (the sampler's weights, once per rollout and sampling policy), prefill and decode (one
call of the sampler, whose program contains both), logp (a forward pass over the samples), and one
update per kind of step. Memory, collectives and the compiler's cost analysis come from the compiled
program. FLOPs and bytes are counted (flops.py). Time is a roofline: the maximum of FLOPs, memory
traffic and communication at peak rates, a lower bound rather than a forecast. Assumed: all prompts
and completions have full length.
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
from bridge_jax.planner import buffers, chips, cudnn_workspace, flops, hlo
from bridge_jax.training import build, programs
from bridge_jax.training.build import Setup
from bridge_jax.types import BatchSpec, Tree


class Typical(NamedTuple):
    """What is usual beside a roofline: from fast to slow."""

    sampling: tuple[float, float] = (1.7, 2.0)  # times the roofline
    update: tuple[float, float] = (0.6, 0.4)  # share of the peak


TYPICAL = Typical()
LARGEST = 12  # number of buffers that are listed
# keys of a phase that follow from its program alone
COMPILED = (
    "compile_s",
    "memory",
    "collectives",
    "compiler",
    "refused",
)
# hash of program and compiler -> values of the keys COMPILED
CompiledPrograms = dict[str, dict[str, Any]]


class Phase(NamedTuple):
    """One program of a step, and the function that counts its work."""

    name: str
    trace: Callable[[], jax.stages.Traced]
    # of the traced program, which only an update's work depends on
    work: Callable[[jax.stages.Traced | None], flops.Work]
    # bytes per device in addition to the program's own, such as the training state during sampling
    resident: int = 0
    # bytes per device that the kernel of attention takes and the compiler does not see
    workspace: int = 0
    # mean trip count of the loops of unknown length, in a phase whose code outside of them is
    # counted in another phase
    loop: float | None = None
    # trip count of the loop over micro-batches of packed rows
    packed: float = 1.0


class Target(NamedTuple):
    """What a phase is compiled for."""

    chip: chips.Chip | None  # None: no peaks are known of it
    network: float  # bytes per second that a chip can receive
    devices: int
    dtype: str  # of the matmuls
    compiler: str  # all that determines the compiled program besides the program itself


def step_kind_name(spec: BatchSpec) -> str:
    """The name of a kind of step."""
    return "+".join(["demos"] * spec.demos + ["samples"] * bool(spec.sampled_by))


def phases(setup: Setup, state: Tree) -> list[Phase]:
    """All phases of a step at the longest bucket; state: from build.abstract_state."""
    sampled = sampling_phases(setup, state) if setup.method.sampling_policies else []
    return sampled + update_phases(setup, state)


def sampling_phases(setup: Setup, state: Tree) -> list[Phase]:
    """Merging, sampling, and the log-probabilities of what was sampled."""
    s, bucket = setup.settings, setup.buckets[-1]
    P, M = s.batch.prompts_per_step // s.rollout.calls, s.batch.samples_per_prompt
    phi, resident = programs.abstract_phi(setup, state), flops.chip_bytes(state)
    moved = flops.chip_bytes(state.params) + flops.chip_bytes(phi)
    # the weights of all sampling policies are merged before the first of them samples
    policies = max(len(spec.sampled_by) for spec in setup.method.step_kinds)
    sampling = resident + (policies - 1) * flops.chip_bytes(phi)
    return [
        Phase(
            "merge",
            lambda: programs.trace_policy(setup, state, "theta"),
            lambda traced: flops.Work(0.0, float(moved) * setup.mesh.size),
            # the merge program's own arguments are not resident a second time
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
            packed=packed_microbatches(setup),
        ),
    ]


def update_phases(setup: Setup, state: Tree) -> list[Phase]:
    """The update of each kind of step."""
    kinds, bucket = setup.method.step_kinds, setup.buckets[-1]
    fused = flops.form_of_training(setup) == "cudnn"
    workspace = cudnn_workspace.of_update(setup, bucket) if fused else 0
    return [
        Phase(
            "update" if len(kinds) == 1 else f"update {step_kind_name(spec)}",
            lambda spec=spec: programs.trace_update(setup, state, bucket, spec),
            lambda traced, spec=spec: update_work(setup, state, bucket, spec, traced),
            workspace=workspace,
            packed=packed_microbatches(setup),
        )
        for spec in kinds
    ]


def packed_microbatches(setup: Setup) -> float:
    """Micro-batches of packed rollouts; 1 where each row holds one completion."""
    batch = setup.settings.batch
    return float(batch.rollout_microbatches if batch.pack else 1)


def trace_prefill(setup: Setup, phi: Tree, bucket: int, P: int) -> jax.stages.Traced:
    """The prefill of one call of the sampler."""
    plan = programs.decode_plan_of(setup)
    rows = (jax.ShapeDtypeStruct((P, bucket), jnp.int32), jax.ShapeDtypeStruct((P,), jnp.int32))
    precise = jax.default_matmul_precision(matmul_precision(phi["embed"].dtype))

    def prefill(phi, *rows):
        hidden_PD, cache = precise(layers.prefill)(
            setup.cfg, plan.to_storage(phi), *rows, plan.storage_dtype, plan.prefill_attention
        )
        return hidden_PD, plan.place_cache(cache)

    return jax.jit(prefill).trace(
        phi, *programs.with_shardings(rows, sharding.of_rows(setup.decode_mesh, rows))
    )


def trace_logp(setup: Setup, state: Tree, bucket: int) -> jax.stages.Traced:
    """Log-probabilities of a step's samples, micro-batched as in an update."""
    spec = next(spec for spec in setup.method.step_kinds if spec.sampled_by)
    rollouts = programs.abstract_batch(setup, bucket, spec).rollouts[spec.sampled_by[0]]
    phi = jax.eval_shape(lambda params: setup.method.policy(params, "theta"), state.params)
    score = jax.jit(
        lambda phi, rollouts: objectives.logp_of(
            setup.policy, phi, rollouts, setup.settings.batch.microbatch
        )
    )
    return score.trace(
        programs.with_shardings(phi, build.theta_shardings(setup)),
        programs.with_shardings(rollouts, sharding.of_rows(setup.mesh, rollouts)),
    )


def update_work(
    setup: Setup, state: Tree, bucket: int, spec: BatchSpec, traced: jax.stages.Traced
) -> flops.Work:
    """Work of one update, from the method's own token counts (budget/*).

    The mean over the steps of a period, where theta_hat learns in every n-th step alone.
    """

    def work(step: int) -> flops.Work:
        ledger = flops.passes(
            traced,
            programs.abstract_batch(setup, bucket, spec),
            bucket,
            setup.settings.rollout.max_new,
            setup.settings.max_demo,
            step,
        )
        return flops.update(setup, ledger, bucket, state)

    period = setup.method.period
    if period == 1:
        return work(0)
    first, rest = work(0), work(1)
    mean = lambda first, rest: (first + (period - 1) * rest) / period
    return flops.Work(mean(first.flops, rest.flops), mean(first.bytes, rest.bytes))


def count_phase(phase: Phase, target: Target) -> dict[str, Any]:
    """The counted work of a phase, and its roofline without links; nothing is compiled."""
    # only an update's work is read from its program
    work = phase.work(phase.trace() if phase.name.startswith("update") else None)
    found = {
        "phase": phase.name,
        "flops": work.flops / target.devices,
        "bytes": work.bytes / target.devices,
        "resident": phase.resident,
    }
    return found if target.chip is None else found | roofline(found, target)


def compile_phase(
    phase: Phase,
    target: Target,
    options: dict,
    cache: CompiledPrograms,
) -> dict[str, Any]:
    """Compiles a phase and returns its costs as JSON.

    Where the program does not fit, the key "refused" has the compiler's message.
    """
    began = time.monotonic()
    traced = phase.trace()
    work = phase.work(traced)
    lowered, traced_s = traced.lower(), time.monotonic() - began
    program = hashlib.sha256(
        f"{target.compiler} {options} {lowered.as_text()}".encode()
    ).hexdigest()[:16]
    if program not in cache:
        cache[program] = compile_program(lowered, phase, options)
    found = {
        "phase": phase.name,
        "program": program,
        "flops": work.flops / target.devices,
        "bytes": work.bytes / target.devices,
        "resident": phase.resident,
        "workspace": phase.workspace,
        "trace_s": traced_s,
    } | cache[program]
    if "refused" in found:
        return found | {"fits": False}
    found["peak"] = found["memory"]["peak"] + phase.resident + phase.workspace
    if target.chip is None:
        return found
    return found | {"fits": found["peak"] <= target.chip.hbm} | roofline(found, target)


def compile_program(lowered: jax.stages.Lowered, phase: Phase, options: dict) -> dict[str, Any]:
    """Compiles the program of a phase; values of the keys COMPILED."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            compiled = lowered.compile(compiler_options=options | {"xla_dump_to": folder})
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return {"compile_s": time.monotonic() - began, "refused": compile_error(str(error))}
        seconds, module = time.monotonic() - began, hlo.parse(text_of(compiled, Path(folder)))
    return {
        "compile_s": seconds,
        "memory": memory_of(compiled, module),
        "collectives": communication(module, phase),
        "compiler": {
            key: value
            for key, value in (compiled.cost_analysis() or {}).items()
            if key in ("flops", "bytes accessed", "optimal_seconds")
        },
    }


def text_of(compiled, folder: Path) -> str:
    """The text of the compiled program: the TPU compiler's dump in `folder`, otherwise jaxlib's.

    jaxlib cannot read asynchronous instructions of a newer libtpu (seen with jaxlib 0.10.2 and
    libtpu 0.0.52 on v5p).
    """
    for stage in ("after_codegen", "after_optimizations"):
        if written := sorted(folder.glob(f"*.{stage}.txt"), key=lambda path: path.stat().st_size):
            return written[-1].read_text()
    return compiled.as_text()


def compiled_programs(plans: list[dict]) -> CompiledPrograms:
    """The compiled programs of earlier plans."""
    return {
        phase["program"]: {key: phase[key] for key in COMPILED if key in phase}
        for plan in plans
        for phase in plan["phases"]
        if "program" in phase
    }


def compile_error(message: str) -> dict[str, Any]:
    """The compiler's message about a program that is too large, with sizes in bytes if given."""
    unit = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    sizes = [
        float(number) * unit[letter]
        for number, letter in re.findall(r"\(?(\d+\.?\d*)([KMGT]?)B?\)", message)
    ]
    return {"message": message.split("\n")[0][:300]} | (
        {"asked": sizes[0], "available": sizes[1]} if len(sizes) > 1 else {}
    )


def memory_of(compiled, module: hlo.Module) -> dict[str, Any]:
    """Bytes per device from the compiler, and the buffers alive at the peak (buffers.py)."""
    walked = buffers.peak(module)
    return program_memory(compiled) | {
        "walked": walked.bytes,
        "largest": [one._asdict() for one in walked.alive[:LARGEST]],
    }


def program_memory(compiled) -> dict[str, int]:
    """Bytes per device of a program's arguments, outputs and temporaries, and its peak.

    XLA's CPU backend leaves temporaries out of its peak; there the peak is the sum of all parts, an
    upper bound.
    """
    analysis = compiled.memory_analysis()
    size = lambda name: int(getattr(analysis, f"{name}_in_bytes"))
    found = {name: size(f"{name}_size") for name in ("argument", "output", "alias", "temp")}
    own = found["argument"] + found["output"] - found["alias"] + found["temp"]
    peak = size("peak_memory")
    return found | {"peak": own if peak < found["argument"] + found["temp"] / 2 else peak}


def communication(module: hlo.Module, phase: Phase) -> dict[str, dict]:
    """Per kind of collective: instructions, times, bytes received per device."""
    found = hlo.collectives(module)
    if phase.loop is not None:
        return hlo.totals([one for one in found if one.unknown], phase.loop)
    unknown = sum(one.unknown > 0 for one in found) if phase.packed == 1 else 0
    return hlo.totals(found, phase.packed) | (
        {"unknown_loops": {"instructions": unknown}} if unknown else {}
    )


def roofline(phase: dict, target: Target) -> dict[str, float]:
    """Seconds at peak rates of FLOPs, memory and interconnect, and their maximum.

    Of a phase that was not compiled, without the interconnect.
    """
    chip, network = target.chip, target.network
    received = sum(row.get("bytes", 0.0) for row in phase.get("collectives", {}).values())
    parts = {
        "compute_s": phase["flops"] / chip.flops_of(target.dtype),
        "memory_s": phase["bytes"] / chip.memory,
        "network_s": received / network if network else 0.0,
    }
    return parts | {"seconds": max(parts.values())}


def step_seconds(found: list[dict], calls: int, policies: int, grading: float) -> dict[str, float]:
    """Roofline seconds of each kind of step, of the rollout, and of grading.

    policies: number of sampling policies. {} where a phase was left out, does not fit, or has no
    roofline.
    """
    by_name = {phase["phase"]: phase for phase in found}
    needed = ("merge", "prefill", "decode") if policies else ()
    if any("seconds" not in phase for phase in found) or any(
        name not in by_name for name in needed
    ):
        return {}
    seconds = lambda name: by_name[name]["seconds"]
    rollout = (
        policies * (seconds("merge") + calls * (seconds("prefill") + seconds("decode")))
        if policies
        else 0.0
    )
    updates = {name: seconds(name) for name in by_name if name.startswith("update")}
    samples = lambda name: name == "update" or name.endswith("samples")
    return {
        name: value + (rollout + grading) * (policies > 0 and samples(name))
        for name, value in updates.items()
    } | {"rollout": rollout, "grading": grading}


def typical_seconds(step: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Seconds of each kind of step that engines reach, from the rooflines of step_seconds.

    Sampling takes 1.7 to 2 times its bound of memory in engines that were measured (vLLM on a TPU
    and on an A6000), and updates reach 40 to 60% of the peak (TYPICAL). No run of ours is behind
    it.
    """
    rest = step.get("rollout", 0.0), step.get("grading", 0.0)
    found = {}
    for name, seconds in step.items():
        if name.startswith("update"):
            sampled = seconds > sum(rest) > 0
            rollout, grading = rest if sampled else (0.0, 0.0)
            update = seconds - rollout - grading
            found[name] = tuple(
                slower * rollout + grading + update / share
                for slower, share in zip(TYPICAL.sampling, TYPICAL.update)
            )
    return found


def state_bytes(setup: Setup, devices: int, on_host: bool = False) -> int:
    """Bytes of the training state per device, on `devices` devices along fsdp, from the shardings.

    on_host: the part in host memory between steps instead (method.bridge.shadow.offload).
    """
    return flops.chip_bytes(
        build.abstract_state(setup, AbstractMesh((1, devices, 1), sharding.AXES)), on_host
    )


def largest_that_fits(candidates: list[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of rising candidates that fits, by bisection; memory must grow with them."""
    low, high, best = 0, len(candidates) - 1, None
    while low <= high:
        middle = (low + high) // 2
        if fits(candidates[middle]):
            best, low = candidates[middle], middle + 1
        else:
            high = middle - 1
    return best


def parameters(setup: Setup) -> int:
    """Number of parameters of the base model."""
    return sum(leaf.size for leaf in jax.tree.leaves(params.abstract(setup.cfg)))
