"""Refilled slots sample what the plain plan does, on one device and on several."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.data.batches import Prompts, prompt_batch
from bridge_jax.distributed import sharding
from bridge_jax.distributed.sharding import MeshConfig
from bridge_jax.models import layers, params
from bridge_jax.sampling import decode_plan, refill, sampler, slots
from bridge_jax.sampling.decode_plan import DecodePlan
from bridge_jax.sampling.draw import Sampling, row_keys
from bridge_jax.sampling.refill import Request
from bridge_jax.types import Problem
from tests import toys
from tests.dropin import sandwich

T, M, BUCKETS, SEED = 12, 2, (4, 8), 5
EOS = (4, 9, 20, 25, 30)


@functools.cache
def prompts(count: int = 9) -> Prompts:
    """Ragged prompts in two buckets."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, BUCKETS[-1] + 1, count)
    tokens = tuple(rng.integers(1, 32, n).astype(np.int32) for n in lengths)
    return Prompts(tuple(Problem(40 + i, "", "", "", 0) for i in range(count)), tokens)


# layers with and without a sliding window
WINDOWS = dataclasses.replace(
    sandwich.Config(
        **{f.name: getattr(toys.CFG, f.name) for f in dataclasses.fields(layers.Config)}
    ),
    family="sandwich",
    window=3,
)


@functools.cache
def weights(cfg):
    """Sharp weights of the family."""
    return jax.jit(lambda key: params.init(cfg, key))(jax.random.key(0))


@functools.cache
def _plain(cfg, temperature: float):
    """Every prompt's samples by sampler.sample under the plain plan."""
    batch = prompt_batch(prompts(), range(len(prompts().tokens)), BUCKETS)
    keys = row_keys(jax.random.key(SEED), 0, jnp.asarray(batch.ids_P), M)
    chosen = Sampling(jnp.float32(temperature), jnp.asarray(EOS, jnp.int32), jnp.int32(T))
    given = weights(cfg), batch.prompt_PS, batch.prompt_len_P, keys, chosen
    return jax.device_get(_sample(cfg)(*given))


@functools.cache
def _sample(cfg):
    return jax.jit(functools.partial(sampler.sample, cfg, plan=DecodePlan(T)))


def expected(request: Request, cfg):
    """(tokens, log-probabilities, stopped) of one request: the plain row, cut at its limit."""
    samples = _plain(cfg, request.temperature)
    row = request.prompt * M + request.sample
    length = min(int(samples.seqs.length_B[row]), request.limit)
    whole = length == samples.seqs.length_B[row]
    return (
        samples.seqs.tokens_BT[row, :length],
        samples.logp_BT[row, :length],
        bool(samples.stopped_B[row] and whole),
    )


def requests(temperatures=(2.0, 0.0, 0.7), limits=(T, 1, 5, T)) -> list[Request]:
    """All samples of all prompts; temperatures and limits in turn."""
    return [
        Request(p, m, temperatures[(p + m) % len(temperatures)], limits[(p * M + m) % len(limits)])
        for p in range(len(prompts().tokens))
        for m in range(M)
    ]


def run(plan: DecodePlan, asked: list[Request], rows: int, cfg=toys.CFG):
    """(rows that ended, decode steps)."""
    steps, made = [], refill.make(compiled(cfg, plan), plan, weights(cfg), SEED, EOS, BUCKETS)
    ended = [row for part in made(prompts(), asked, rows, steps.append) for row in part]
    return ended, sum(steps)


@functools.cache
def compiled(cfg, plan: DecodePlan) -> slots.Programs:
    """Shared by the tests."""
    return slots.compiled(cfg, plan)


def check(ended, asked, cfg=toys.CFG) -> None:
    """Every request once, with the tokens of the plain plan."""
    assert sorted(row.request for row in ended) == sorted(asked)
    for row in ended:
        tokens, logp, stopped = expected(row.request, cfg)
        np.testing.assert_array_equal(row.tokens_T, tokens)
        np.testing.assert_allclose(row.logp_T, logp, atol=1e-5)
        assert row.stopped == stopped


def one_device() -> DecodePlan:
    """The plan of one CPU device, with cache segments that so few tokens would not have."""
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    return dataclasses.replace(decode_plan.choose(mesh, T), loops=((4, T),))


def eight_devices(tensor: int) -> DecodePlan:
    """The plan of eight, of which `tensor` share the heads."""
    mesh = sharding.make_mesh(MeshConfig(data=8 // tensor, fsdp=1, tensor=tensor))
    return dataclasses.replace(decode_plan.choose(mesh, T), loops=((6,), (T,)))


@pytest.mark.parametrize("rows", [6, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 40))])
def test_refilled_slots_sample_what_the_plain_plan_does(rows):
    """Ragged prompts of two buckets, greedy and sampled rows at once, limits of their own; with
    fewer slots than rows, and with more.
    """
    asked = requests()
    ended, _ = run(one_device(), asked, rows)
    check(ended, asked)
    assert len({len(row.tokens_T) for row in ended}) > 5


@pytest.mark.slow
@pytest.mark.parametrize("by_row", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_sliding_windows(by_row):
    """A window of three positions, across the border of prompt and completion."""
    plan, asked = dataclasses.replace(DecodePlan(T), row_by_row=by_row), requests((2.0,), (T,))[:12]
    check(run(plan, asked, 5, WINDOWS)[0], asked, WINDOWS)


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4))])
def test_eight_devices(tensor):
    """Slots on 8, 4 and 2 devices; heads shared by the others, 4 by 2 kv heads."""
    asked = requests()
    check(run(eight_devices(tensor), asked, 8)[0], asked)


def test_no_device_sends_its_slots():
    """On eight devices: filling slots sends nothing; decoding nothing of a cache's size."""
    plan, cfg, phi = eight_devices(2), toys.CFG, weights(toys.CFG)
    programs, (P, S) = compiled(cfg, plan), (4, BUCKETS[1])
    state = jax.eval_shape(lambda: slots.empty(cfg, plan, 8, S, jnp.float32))
    state = _with_shardings(plan, state, slots.slot_specs(state))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (P, M)))
    entries = programs.prefill.eval_shape(phi, *prompt_batch(prompts(), range(P), (S,))[:2], keys)
    entries = _with_shardings(plan, entries, slots.entry_specs())
    ints, floats = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.float32)
    rows = slots.NewRows(ints, ints, ints, floats, ints)
    filling = programs.fill.lower(state, entries, rows).compile().as_text()
    assert not _collectives(filling)
    ends = jax.ShapeDtypeStruct((len(EOS),), jnp.int32)
    decoding = programs.decode_some.lower(phi, state, ends, ints.update(shape=())).compile()
    sent = _collectives(decoding.as_text())
    cache_of_one = cfg.kv_heads // 2 * cfg.head_dim * T
    assert sent and max(sent) < 2 * cache_of_one


def _with_shardings(plan: DecodePlan, shapes, specs):
    place = lambda x, spec: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=jax.sharding.NamedSharding(plan.mesh, spec)
    )
    return jax.tree.map(place, shapes, specs)


def _collectives(program: str) -> list[int]:
    """Numbers of elements of what the program's collectives make."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    made = re.findall(rf"= \(?\w+\[([\d,]*)\]\S* (?:{kinds})", program)
    return [math.prod(int(n) for n in dims.split(",") if n) for dims in made]


@pytest.mark.slow
def test_steps_are_those_of_the_tokens():
    """18 rows in 4 slots: few more steps than tokens / 4; batches of 4 take those of their longest
    rows.
    """
    asked = requests((2.0,), (1, 1, 2, 1, 3, T))
    ended, steps = run(one_device(), asked, 4)
    tokens = sum(len(row.tokens_T) for row in ended)
    batches = sum(
        max(len(expected(request, toys.CFG)[0]) for request in asked[first : first + 4])
        for first in range(0, len(asked), 4)
    )
    assert tokens / 4 <= steps < 1.5 * tokens / 4 + T and steps < batches


def test_nothing_is_asked():
    """No request, no program."""
    plan = DecodePlan(T)
    assert run(plan, [], 4) == ([], 0)
