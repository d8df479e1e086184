"""The compiled programs of a run: policies, samplers, updates.

There is one program per prompt bucket, compiled from shapes alone before the first step, so that
nothing compiles during training (`compile_count` is logged with every step). Left out: programs for
evaluation outside a run (evaluation/generate.py).
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bridge_jax import objectives
from bridge_jax.distributed import sharding
from bridge_jax.distributed.compiler import compiler_options
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
    """The compiled programs, for each prompt bucket."""

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
    """Number of programs that this process has compiled or read from the compilation cache."""
    return _compiled[True]


def abstract_rows(P: int, S: int, T: int, B: int = 0, pack: int = 0) -> Sequences:
    """Shapes of B (default P) completions of P prompts, packed where `pack` is not 0."""
    ints, B = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32), B or P
    return Sequences(
        ints(P, S), ints(P), ints(B, T), ints(B), Packing(ints(B, pack), ints()) if pack else None
    )


def abstract_batch(setup: Setup, bucket: int, spec: BatchSpec) -> Batch:
    """Shapes of the batch of one kind of step."""
    s, T = setup.settings, setup.settings.rollout.max_new
    rows = lambda P, B, T: abstract_rows(P, bucket, T, B, s.batch.pack)
    P, B = s.batch.prompts_per_step, s.batch.rollout_rows
    floats = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    samples = {
        name: Rollouts(rows(P, B, T), floats(B, T), floats(B), floats()) for name in spec.sampled_by
    }
    D = s.batch.demos_per_step + s.batch.demo_padding
    return Batch(rows(D, D, s.max_demo) if spec.demos else None, samples)


def with_shardings(tree, layout):
    """Shapes with their shardings."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        layout,
    )


def trace_policy(setup: Setup, state: TrainState, name: str) -> jax.stages.Traced:
    """The weights of a sampling policy, sharded for sampling; the state may be abstract."""
    layout = build.theta_shardings(setup, setup.decode_mesh)
    return jax.jit(lambda params: setup.method.policy(params, name), out_shardings=layout).trace(
        state.params
    )


def decode_plan_of(setup: Setup) -> decode_plan.DecodePlan:
    """The decode plan for the run's settings and devices."""
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

    phi: weights from trace_policy, or their shapes.
    """
    s, mesh = setup.settings, setup.decode_mesh
    number = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
    keys = jax.eval_shape(lambda: row_keys(jax.random.key(s.seed), 0, jnp.zeros(P, jnp.int32), M))
    rows = (number(jnp.int32, P, bucket), number(jnp.int32, P), keys)
    sample = functools.partial(sampling_sampler.sample, setup.cfg, plan=decode_plan_of(setup))
    how = Sampling(number(jnp.float32), number(jnp.int32, len(setup.eos_ids)), number(jnp.int32))
    return jax.jit(sample).trace(phi, *with_shardings(rows, sharding.of_rows(mesh, rows)), how)


def trace_update(
    setup: Setup, state: TrainState, bucket: int, spec: BatchSpec
) -> jax.stages.Traced:
    """The update of one kind of step; the state is donated."""
    layout, batch = (
        jax.tree.map(lambda leaf: leaf.sharding, state),
        abstract_batch(setup, bucket, spec),
    )
    # applies to the backward passes too
    precise = jax.default_matmul_precision(
        matmul_precision(settings.dtype_of("model.dtype", setup.settings.model.dtype))
    )
    update = jax.jit(precise(setup.method.update), donate_argnums=0, out_shardings=(layout, None))
    return update.trace(state, with_shardings(batch, sharding.of_rows(setup.mesh, batch)))


def abstract_phi(setup: Setup, state: TrainState):
    """Shapes and shardings of the sampler's weights."""
    return with_shardings(
        jax.eval_shape(lambda params: setup.method.policy(params, "theta"), state.params),
        build.theta_shardings(setup, setup.decode_mesh),
    )


def compile_traced(traced: jax.stages.Traced, emitters: bool = False) -> Callable:
    """The traced program, compiled for the devices that its arguments are on."""
    return traced.lower().compile(compiler_options=compiler_options(emitters))


def trace_keys(setup: Setup, P: int, M: int) -> jax.stages.Traced:
    """(step, prompt ids [P], first sample id [P]) -> keys [P * M], sharded over the decode mesh."""
    root = jax.random.key(setup.settings.seed)
    keys = lambda step, ids, first: row_keys(root, step, ids, M, first)
    number = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    layout = sharding.of_rows(setup.decode_mesh, jax.eval_shape(keys, 0, number(P), number(P)))
    return jax.jit(keys, out_shardings=layout).trace(number(), number(P), number(P))


def trace_paired_keys(setup: Setup) -> jax.stages.Traced:
    """(prompt ids [eval.rows], sample id) -> keys of one sample each, independent of all steps."""
    root, rows = jax.random.key(setup.settings.seed), setup.settings.eval.rows
    # no step of training has this number
    keys = lambda ids, sample: row_keys(root, 2**30, ids, 1, sample)
    number = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    layout = sharding.of_rows(setup.decode_mesh, jax.eval_shape(keys, number(rows), number()))
    return jax.jit(keys, out_shardings=layout).trace(number(rows), number())


def trace_demo_logp(setup: Setup, phi, bucket: int) -> jax.stages.Traced:
    """Mean log-probability of the tokens of eval.rows demos."""
    rows = abstract_rows(setup.settings.eval.rows, bucket, setup.settings.max_demo)
    mean_logp = lambda phi, seqs: objectives.mean_tokens(
        setup.policy.logp(phi, seqs, jnp.float32(1.0))[0], seqs
    )
    return jax.jit(mean_logp).trace(
        phi, with_shardings(rows, sharding.of_rows(setup.decode_mesh, rows))
    )


def compile_programs(setup: Setup, state: TrainState, demo_logp: bool = False) -> Programs:
    """Compiles policies, samplers and updates for every bucket; `state` may be abstract.

    demo_logp: whether there are held-out demos to score.
    """
    s, method, buckets = setup.settings, setup.method, setup.buckets
    phi, policies = abstract_phi(setup, state), method.sampling_policies
    parts, M = s.batch.prompts_per_step // s.rollout.calls, s.batch.samples_per_prompt
    shadow = ("theta_hat",) if s.eval.measured_gain and state.params.theta_hat is not None else ()
    sampler = lambda *shape: compile_traced(trace_sampler(setup, phi, *shape), emitters=True)
    first = jnp.zeros(s.eval.rows, jnp.int32)
    return Programs(
        policy={
            name: compile_traced(trace_policy(setup, state, name))
            for name in {"theta", *policies, *shadow}
        },
        keys=trace_keys(setup, parts, M).lower().compile(),
        sample={bucket: sampler(bucket, parts, M) for bucket in buckets if policies},
        greedy={bucket: sampler(bucket, s.eval.rows, 1) for bucket in buckets if s.eval.every},
        update={
            (bucket, spec): compile_traced(trace_update(setup, state, bucket, spec))
            for bucket in buckets
            for spec in method.step_kinds
        },
        eval_keys=trace_keys(setup, s.eval.rows, 1).lower().compile()(jnp.int32(0), first, first),
        paired_keys=trace_paired_keys(setup).lower().compile(),
        demo_logp={
            bucket: compile_traced(trace_demo_logp(setup, phi, bucket))
            for bucket in buckets[-1:]
            if demo_logp
        },
    )
