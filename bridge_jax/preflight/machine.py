"""Memory beside what the run needs, the grader, and the hosts."""

from __future__ import annotations

import time

from bridge_jax.distributed import consistency, memory_pools, multihost, peaks
from bridge_jax.grading import selftest
from bridge_jax.grading.pool import PoolError
from bridge_jax.planner import flops
from bridge_jax.preflight.record import FAIL, NOTE, OK, Record, graded
from bridge_jax.preflight.subject import Subject
from bridge_jax.training import build, programs, trainer
from bridge_jax.training.build import Setup

GB = 1e9
# share of the pool above which a run may not fit beside activations and programs
TIGHT = 0.8
# share of a GPU's memory that the pool should have
POOL_SHARE = 0.8
LESS = (
    "lower batch.microbatch_rows, or see the question on memory in docs/faq.md; experiments.plan "
    "says what fits"
)


def memory(subject: Subject) -> Record:
    """The pool of a device against the least that the run needs: state, weights, cache.

    Activations are left out: they take a compilation (--real, experiments.plan).
    """
    setup, name = subject.setup, "memory"
    device = setup.mesh.local_devices[0]
    pool, need = pool_of(device, len(setup.mesh.local_devices)), least(setup)
    text = (
        f"{need / GB:.3g} of {pool / GB:.3g} GB a device for state, weights and cache, activations "
        f"not counted"
    )
    if need > pool:
        return Record(name, FAIL, text, LESS)
    chip = peaks.of_device(device)
    if device.platform == "gpu" and chip and pool < POOL_SHARE * chip.hbm:
        return Record(
            name,
            NOTE,
            f"{text}; the pool has {pool / chip.hbm:.0%} of the GPU's {chip.hbm / GB:.3g} GB",
            f"set {memory_pools.FRACTION}={memory_pools.SHARE_OF_GPU}, and end other processes "
            "on the GPU (nvidia-smi)",
        )
    return graded(name, text, need <= TIGHT * pool, "compile the run with --real", NOTE)


def pool_of(device, local_devices: int) -> float:
    """Bytes that this process may take of a device; of CPU devices their share of the machine."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit", memory_pools.host_memory() / local_devices)


def least(setup: Setup) -> int:
    """Bytes a device: the state, the sampler's weights, and the cache of one of its calls."""
    s, state = setup.settings, build.abstract_state(setup)
    held = flops.chip_bytes(state) + flops.chip_bytes(programs.abstract_phi(setup, state))
    if not setup.method.sampling_policies:
        return held
    prompts, shape = s.batch.prompts_per_step // s.rollout.calls, setup.decode_mesh.shape
    positions = prompts * (setup.buckets[-1] + s.batch.samples_per_prompt * s.rollout.max_new)
    return held + positions * flops.token_cache(setup) // (shape["data"] * shape["tensor"])


def grader(subject: Subject) -> Record:
    """The grader's self-test, and the seconds that it takes with its worker processes."""
    began, name = time.monotonic(), "grader"
    try:
        with trainer.grader(subject.config) as pool:
            if pool is None:
                return Record(name, OK, f"{subject.setup.settings.task_name} needs no workers")
            started = time.monotonic()
            selftest.check(pool)
            return Record(
                name,
                OK,
                f"{len(selftest.EQUAL) + len(selftest.DIFFERENT) + len(selftest.OTHERS)} known "
                f"pairs are graded rightly, in {time.monotonic() - started:.2g} s; workers started "
                f"in {started - began:.2g} s",
            )
    except (selftest.GraderBroken, PoolError) as error:
        return Record(name, FAIL, str(error).splitlines()[0], "pip install -r requirements-run.txt")


def hosts(subject: Subject) -> Record:
    """All hosts have the same code, config and versions and see the folder; time of a barrier."""
    name, count = "hosts", multihost.count()
    if count == 1:
        return Record(name, OK, f"one process, {subject.setup.mesh.size} device(s)")
    try:
        consistency.check("configs, code and versions", consistency.identity(subject.config))
        consistency.check_shared(subject.folder)
    except ValueError as error:
        return Record(name, FAIL, str(error), "make the hosts alike: docs/launch.md")
    multihost.barrier("the first barrier of the checks")
    began = time.monotonic()
    multihost.barrier("a barrier of the checks")
    text = f"{count} hosts agree, {subject.setup.mesh.size} devices; a barrier takes "
    return Record(name, OK, text + f"{1000 * (time.monotonic() - began):.3g} ms")
