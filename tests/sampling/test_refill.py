"""Refilled slots sample what the plain plan does, on one device and on several."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.data.batches import Prompts, prompt_batch
from bridge_jax.distributed import sharding
from bridge_jax.distributed.sharding import MeshConfig
from bridge_jax.sampling import decode_plan, refill, sampler, slots
from bridge_jax.sampling.decode_plan import DecodePlan
from bridge_jax.sampling.draw import Sampling, row_keys
from bridge_jax.sampling.refill import Request
from bridge_jax.types import Problem
from tests import toys

T, M, BUCKETS, SEED = 12, 3, (4, 8), 5
EOS = (4, 9, 20, 25, 30)


@functools.cache
def prompts(count: int = 9) -> Prompts:
    """Ragged prompts in two buckets."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, BUCKETS[-1] + 1, count)
    tokens = tuple(rng.integers(1, 32, n).astype(np.int32) for n in lengths)
    return Prompts(tuple(Problem(40 + i, "", "", "", 0) for i in range(count)), tokens)


@functools.cache
def _plain(cfg, temperature: float):
    """(tokens, logp, stopped) of every prompt's samples by sampler.sample under the plain plan."""
    phi = toys.transformer_theta()
    batch = prompt_batch(prompts(), range(len(prompts().tokens)), BUCKETS)
    keys = row_keys(jax.random.key(SEED), 0, jnp.asarray(batch.ids_P), M)
    chosen = Sampling(jnp.float32(temperature), jnp.asarray(EOS, jnp.int32), jnp.int32(T))
    sample = jax.jit(functools.partial(sampler.sample, cfg, plan=DecodePlan(T)))
    return jax.device_get(sample(phi, batch.prompt_PS, batch.prompt_len_P, keys, chosen))


def expected(request: Request, cfg=toys.CFG):
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


def requests(temperatures=(2.0, 0.0), limits=(T,)) -> list[Request]:
    """All samples of all prompts; temperatures and limits in turn."""
    return [
        Request(p, m, temperatures[(p + m) % len(temperatures)], limits[(p * M + m) % len(limits)])
        for p in range(len(prompts().tokens))
        for m in range(M)
    ]


def run(plan: DecodePlan, asked: list[Request], rows: int, cfg=toys.CFG):
    """(rows that ended, decode steps)."""
    phi, steps = toys.transformer_theta(), []
    made = refill.make(slots.compiled(cfg, plan), plan, phi, SEED, EOS, BUCKETS)
    ended = [row for part in made(prompts(), asked, rows, steps.append) for row in part]
    return ended, sum(steps)


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
    return dataclasses.replace(decode_plan.choose(mesh, T), loops=((3, 6, T),))


@pytest.mark.parametrize("rows", [1, 5, 16, 64])
def test_refilled_slots_sample_what_the_plain_plan_does(rows):
    """Ragged prompts of two buckets, greedy and sampled rows at once, any number of slots."""
    asked = requests(limits=(T, 1, 5, T))
    ended, _ = run(one_device(), asked, rows)
    check(ended, asked)
    assert len({len(row.tokens_T) for row in ended}) > 5


def test_the_plain_form_of_attention():
    """The same in one matmul for all rows, without segments, bits or compactions."""
    asked = requests()
    check(run(DecodePlan(T), asked, 6)[0], asked)


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_eight_devices(tensor):
    """8, 4 and 2 devices with slots of their own; heads shared by the others."""
    mesh = sharding.make_mesh(MeshConfig(data=8 // tensor, fsdp=1, tensor=tensor))
    plan = dataclasses.replace(decode_plan.choose(mesh, T), loops=((6,), (T,)))
    asked = requests(limits=(T, 5))
    check(run(plan, asked, 8)[0], asked)
