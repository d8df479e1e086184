"""Everything that a run computes on the device, compiled before its first step: policies, samplers,
updates.

One program per prompt bucket, from shapes alone, so that nothing compiles once training is under
way (`compile_count` is logged with every step). Left out: what is compiled for evaluation outside a
run (experiments/evaluate.py).
"""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bridge_jax import objectives
from bridge_jax.distributed import sharding
from bridge_jax.models import attention, layers
from bridge_jax.models.precision import matmul_precision
from bridge_jax.sampling import decode_plan
from bridge_jax.sampling import sampler as sampling_sampler
from bridge_jax.sampling.draw import Sampling, row_keys
from bridge_jax.training import build, settings
from bridge_jax.training.build import Setup
from bridge_jax.types import Batch, BatchSpec, Packing, Rollouts, Sequences, TrainState

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class Programs(NamedTuple):
    """Everything that runs on the device, compiled before the first step for each prompt bucket."""

    policy: dict[str, Callable]  # name of a policy -> params -> phi
    keys: Callable  # (step, prompt ids [P], first sample id [P]) -> keys [P * M]
    # bucket -> (phi, prompt_PS, prompt_len_P, keys, Sampling) -> Samples
    sample: dict[int, Callable]
    greedy: dict[int, Callable]  # the same for evaluation, one row per prompt
    # (bucket, kind of step) -> (state, Batch) -> (state, metrics); donates the state
    update: dict[tuple[int, BatchSpec], Callable]
    eval_keys: jax.Array
    # (prompt ids [eval.rows], sample id) -> keys, the same for every policy
    paired_keys: Callable
    # bucket -> (phi, Sequences of eval.rows demos) -> mean log-probability of their tokens; empty
    # where there are no held-out demos
    demo_logp: dict[int, Callable]


_compiled = collections.Counter()


def _count(event: str, *_, **__) -> None:
    _compiled[event == COMPILE_EVENT] += 1


jax.monitoring.register_event_duration_secs_listener(_count)


def compile_count() -> int:
    """Programs compiled (or fetched from the compilation cache) by this process so far."""
    return _compiled[True]


def compiler_options(emitters: bool = False) -> dict[str, Any]:
    """On a CPU, cheaper code generation, unless XLA_FLAGS decide.

    emitters: XLA's newer ones for what is no matmul.

    Measured on the quickstart's grpo update: 7.6 s of compilation instead of 21.6, the update as
    fast (1.1 s). Samplers gain from the emitters, whose copies of weights and cache are faster: a
    step of SmolLM2-135M with 64 rows takes .177 s instead of .200, and .099 instead of .122 in
    bfloat16.
    """
    cheap = {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": emitters}
    flags = os.environ.get("XLA_FLAGS", "")
    return (
        {key: value for key, value in cheap.items() if key not in flags}
        if jax.default_backend() == "cpu"
        else {}
    )


def abstract_rows(P: int, S: int, T: int, B: int = 0, pack: int = 0) -> Sequences:
    """Shapes of B (default P) completions of P prompts, packed where `pack` is not 0."""
    ints, B = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32), B or P
    return Sequences(
        ints(P, S), ints(P), ints(B, T), ints(B), Packing(ints(B, pack), ints()) if pack else None
    )


def abstract_batch(setup: Setup, bucket: int, spec: BatchSpec) -> Batch:
    """Shapes of what one update of this kind reads."""
    s, T = setup.settings, setup.settings.rollout.max_new
    rows = lambda P, B: abstract_rows(P, bucket, T, B, s.batch.pack)
    P, B = s.batch.prompts_per_step, s.batch.rollout_rows
    floats = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    samples = {
        actor: Rollouts(rows(P, B), floats(B, T), floats(B), floats()) for actor in spec.sampled_by
    }
    D = s.batch.demos_per_step + s.batch.demo_padding
    return Batch(rows(D, D) if spec.demos else None, samples)


def placed(tree, layout):
    """Shapes with their shardings."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        layout,
    )


def trace_policy(setup: Setup, state: TrainState, actor: str) -> jax.stages.Traced:
    """The weights that this actor samples with, sharded for sampling; the state may be abstract."""
    layout = build.theta_shardings(setup, setup.decode_mesh)
    return jax.jit(lambda params: setup.method.policy(params, actor), out_shardings=layout).trace(
        state.params
    )


def plan_of(setup: Setup) -> decode_plan.DecodePlan:
    """How this run decodes, by its settings and its devices."""
    s, mesh = setup.settings, setup.decode_mesh
    return decode_plan.choose(
        mesh,
        s.rollout.max_new,
        settings.dtype_of("rollout.cache_dtype", s.rollout.cache_dtype),
        s.rollout.compactions,
        s.rollout.cache_segments,
        attention.choose(s.model.attention, mesh, layers.has_windows(setup.cfg)),
    )


def trace_sampler(setup: Setup, phi, bucket: int, P: int, M: int) -> jax.stages.Traced:
    """M completions of each of P prompts of up to `bucket` tokens.

    phi: weights of trace_policy, or their shapes.
    """
    s, mesh = setup.settings, setup.decode_mesh
    number = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
    keys = jax.eval_shape(lambda: row_keys(jax.random.key(s.seed), 0, jnp.zeros(P, jnp.int32), M))
    rows = (number(jnp.int32, P, bucket), number(jnp.int32, P), keys)
    sample = functools.partial(sampling_sampler.sample, setup.cfg, plan=plan_of(setup))
    how = Sampling(number(jnp.float32), number(jnp.int32, len(setup.eos_ids)), number(jnp.int32))
    return jax.jit(sample).trace(phi, *placed(rows, sharding.of_rows(mesh, rows)), how)


def trace_update(
    setup: Setup, state: TrainState, bucket: int, spec: BatchSpec
) -> jax.stages.Traced:
    """One update of this kind, which takes the place of the state it is given."""
    layout, batch = (
        jax.tree.map(lambda leaf: leaf.sharding, state),
        abstract_batch(setup, bucket, spec),
    )
    # backward passes too
    precise = jax.default_matmul_precision(
        matmul_precision(settings.dtype_of("model.dtype", setup.settings.model.dtype))
    )
    update = jax.jit(precise(setup.method.update), donate_argnums=0, out_shardings=(layout, None))
    return update.trace(state, placed(batch, sharding.of_rows(setup.mesh, batch)))


def abstract_phi(setup: Setup, state: TrainState):
    """Shapes and shardings of what the sampler is given."""
    return placed(
        jax.eval_shape(lambda params: setup.method.policy(params, "theta"), state.params),
        build.theta_shardings(setup, setup.decode_mesh),
    )


def compiled(traced: jax.stages.Traced, emitters: bool = False) -> Callable:
    """The traced program, compiled for the devices that its arguments are on."""
    return traced.lower().compile(compiler_options=compiler_options(emitters))


def trace_keys(setup: Setup, P: int, M: int) -> jax.stages.Traced:
    """(step, prompt ids [P], first sample id [P]) -> keys of M samples of each prompt, over the
    devices that sample.
    """
    root = jax.random.key(setup.settings.seed)
    keys = lambda step, ids, first: row_keys(root, step, ids, M, first)
    number = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    layout = sharding.of_rows(setup.decode_mesh, jax.eval_shape(keys, 0, number(P), number(P)))
    return jax.jit(keys, out_shardings=layout).trace(number(), number(P), number(P))


def trace_paired_keys(setup: Setup) -> jax.stages.Traced:
    """(prompt ids [eval.rows], sample id) -> keys of one sample each, in no step's stream."""
    root, rows = jax.random.key(setup.settings.seed), setup.settings.eval.rows
    # no step of training has this number
    keys = lambda ids, sample: row_keys(root, 2**30, ids, 1, sample)
    number = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    layout = sharding.of_rows(setup.decode_mesh, jax.eval_shape(keys, number(rows), number()))
    return jax.jit(keys, out_shardings=layout).trace(number(rows), number())


def trace_demo_logp(setup: Setup, phi, bucket: int) -> jax.stages.Traced:
    """Mean log-probability of the tokens of eval.rows demos."""
    rows = abstract_rows(setup.settings.eval.rows, bucket, setup.settings.rollout.max_new)
    mean_logp = lambda phi, seqs: objectives.mean_tokens(
        setup.policy.logp(phi, seqs, jnp.float32(1.0))[0], seqs
    )
    return jax.jit(mean_logp).trace(phi, placed(rows, sharding.of_rows(setup.decode_mesh, rows)))


def compile_programs(setup: Setup, state: TrainState, demo_logp: bool = False) -> Programs:
    """Compile policy, sampler and update for every bucket, from shapes alone (`state` may be
    abstract).

    demo_logp: whether there are held-out demos to score.
    """
    s, method, buckets = setup.settings, setup.method, setup.buckets
    phi, actors = abstract_phi(setup, state), method.sampling_policies
    parts, M = s.batch.prompts_per_step // s.rollout.calls, s.batch.samples_per_prompt
    shadow = ("theta_hat",) if s.eval.cooperation and state.params.theta_hat is not None else ()
    sampler = lambda *shape: compiled(trace_sampler(setup, phi, *shape), emitters=True)
    first = jnp.zeros(s.eval.rows, jnp.int32)
    return Programs(
        policy={
            name: compiled(trace_policy(setup, state, name)) for name in {"theta", *actors, *shadow}
        },
        keys=trace_keys(setup, parts, M).lower().compile(),
        sample={bucket: sampler(bucket, parts, M) for bucket in buckets if actors},
        greedy={bucket: sampler(bucket, s.eval.rows, 1) for bucket in buckets if s.eval.every},
        update={
            (bucket, spec): compiled(trace_update(setup, state, bucket, spec))
            for bucket in buckets
            for spec in method.step_kinds
        },
        eval_keys=trace_keys(setup, s.eval.rows, 1).lower().compile()(jnp.int32(0), first, first),
        paired_keys=trace_paired_keys(setup).lower().compile(),
        demo_logp={
            bucket: compiled(trace_demo_logp(setup, phi, bucket))
            for bucket in buckets[-1:]
            if demo_logp
        },
    )
