"""The decode loop stops when all rows are done; segments and compaction change no token."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.distributed import sharding
from bridge_jax.distributed.sharding import MeshConfig
from bridge_jax.models import layers
from bridge_jax.sampling import decode_plan, sampler
from bridge_jax.sampling.decode_plan import DecodePlan
from bridge_jax.sampling.draw import row_keys
from tests import toys
from tests.sampling.samples import PROMPTS, M, T, pad, run, settings


@pytest.mark.parametrize("every", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_loop_stops_when_all_rows_are_done(phi, monkeypatch, every):
    """Decode steps are counted: as many as the longest row needs, not T; where rows are looked at
    every third token, up to the next look or the limit, and the samples are the same.
    """
    steps, decode = [], layers.decode

    def counted(cfg, phi, token_B, t, *rest):
        jax.debug.callback(lambda t: steps.append(int(t)), t)
        return decode(cfg, phi, token_B, t, *rest)

    monkeypatch.setattr(layers, "decode", counted)
    fresh = jax.jit(
        lambda keys, chosen: sampler.sample(
            toys.CFG, phi, *pad(PROMPTS, 5), keys, chosen, DecodePlan(T, check_every=every)
        )
    )
    keys = row_keys(jax.random.key(0), 0, jnp.array([11, 12, 13]), M)
    some = settings(eos=jnp.arange(1, 33), temperature=3.0)
    for chosen in (settings(eos=jnp.arange(32)), some, settings(eos=jnp.full(32, -1), limit=4)):
        steps.clear()
        samples = jax.block_until_ready(fresh(keys, chosen))
        jax.effects_barrier()
        needed, limit = int(samples.seqs.length_B.max()), min(T, int(chosen.limit))
        assert sorted(steps) == list(range(min(-(-needed // every) * every, limit)))
        assert len(steps) < T
        alone = sampler.sample(toys.CFG, phi, *pad(PROMPTS, 5), keys, chosen, DecodePlan(T))
        assert toys.same_bits(samples, alone)


@pytest.mark.parametrize(
    "compactions",
    [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("limit", [T, 3, 1])
def test_rows_that_are_done_leave_and_nothing_changes(phi, compactions, limit):
    """9 rows, then the 4, 2, 1 that are left: the same tokens in the same places; some stop early,
    some run into the limit.
    """
    chosen = dict(temperature=2.0, eos=[4, 9, 20, 25, 30], limit=limit)
    whole = run(phi, **chosen)
    cut = run(phi, plan=DecodePlan(T, compactions=compactions), **chosen)
    assert (
        limit < T or len(set(np.asarray(whole.seqs.length_B))) > 4
    )  # the rows do leave one after the other
    np.testing.assert_array_equal(cut.seqs.tokens_BT, whole.seqs.tokens_BT)
    np.testing.assert_array_equal(cut.seqs.length_B, whole.seqs.length_B)
    np.testing.assert_array_equal(cut.stopped_B, whole.stopped_B)
    np.testing.assert_allclose(cut.logp_BT, whole.logp_BT, atol=1e-5)


@pytest.mark.slow
def test_later_steps_decode_the_rows_that_are_left_alone(phi, monkeypatch):
    """The number of rows of every decode step: never more than twice those that are not done."""
    steps, decode = [], layers.decode

    def counted(cfg, phi, token_B, t, *rest):
        jax.debug.callback(lambda t, rows=len(token_B): steps.append((int(t), rows)), t)
        return decode(cfg, phi, token_B, t, *rest)

    monkeypatch.setattr(layers, "decode", counted)
    keys = row_keys(jax.random.key(0), 0, jnp.array([11, 12, 13]), M)
    samples = jax.block_until_ready(
        jax.jit(
            lambda keys: sampler.sample(
                toys.CFG,
                phi,
                *pad(PROMPTS, 5),
                keys,
                settings(2.0, [4, 9, 20, 25, 30]),
                DecodePlan(T, compactions=3),
            )
        )(keys)
    )
    jax.effects_barrier()
    length_B = np.asarray(samples.seqs.length_B)
    assert [t for t, _ in sorted(steps)] == list(range(length_B.max()))
    for t, rows in steps:
        left = (length_B > t).sum()
        assert rows == next(size for size in (1, 2, 4, 9) if size >= left), (t, rows, left)


@pytest.mark.parametrize(
    "compactions, loops",
    [
        pytest.param(0, ((2,), (4,), (6,), (8,)), marks=pytest.mark.slow),
        pytest.param(2, ((2,), (4,), (6,), (8,)), marks=pytest.mark.slow),
        (2, ((2, 4, 6, 8),)),
        pytest.param(0, ((4,), (6, 8)), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "limit", [T, pytest.param(5, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow)]
)
def test_a_segment_reads_what_it_can_have_filled_and_nothing_changes(
    phi, monkeypatch, compactions, loops, limit
):
    """8 tokens in segments: a loop goes to the end of its last, reads by its own, and samples the
    same tokens.
    """
    steps, decode = [], layers.decode

    def counted(cfg, phi, token_B, t, *rest):
        jax.debug.callback(
            lambda t, ends=rest[-1].keywords["ends"]: steps.append((int(t), ends)), t
        )
        return decode(cfg, phi, token_B, t, *rest)

    chosen = dict(temperature=2.0, eos=[4, 9, 20, 25, 30], limit=limit)
    whole = run(phi, **chosen)
    monkeypatch.setattr(layers, "decode", counted)
    keys = row_keys(jax.random.key(0), 0, jnp.array([11, 12, 13]), M)
    cut = jax.block_until_ready(
        jax.jit(
            lambda keys: sampler.sample(
                toys.CFG,
                phi,
                *pad(PROMPTS, 5),
                keys,
                settings(**chosen),
                DecodePlan(T, loops=loops, compactions=compactions),
            )
        )(keys)
    )
    jax.effects_barrier()
    assert sorted(steps) == [
        (t, next(ends for ends in loops if t < ends[-1]))
        for t in range(int(whole.seqs.length_B.max()))
    ]
    np.testing.assert_array_equal(cut.seqs.tokens_BT, whole.seqs.tokens_BT)
    np.testing.assert_array_equal(cut.seqs.length_B, whole.seqs.length_B)
    np.testing.assert_allclose(cut.logp_BT, whole.logp_BT, atol=1e-5)


@pytest.mark.parametrize(
    "t, end",
    [
        pytest.param(1, 2, marks=pytest.mark.slow),
        pytest.param(2, 4, marks=pytest.mark.slow),
        (7, 8),
    ],
)
def test_what_lies_behind_the_first_end_above_is_not_read(phi, t, end):
    """Of 8 positions all from `end` on are not a number, and so would be what is read of them."""
    prompt_PS, length_P = pad(PROMPTS, 5)
    _, prompt_cache = layers.prefill(toys.CFG, phi, prompt_PS, length_P, jnp.float32)
    keys, values = (
        jax.random.normal(jax.random.key(7), x.shape)
        for x in layers.empty_cache(toys.CFG, 3, T, jnp.float32)
    )
    after = lambda cache, *ends: jax.jit(layers.decode, static_argnums=(0, 7))(
        toys.CFG,
        phi,
        jnp.array([5, 6, 7]),
        t,
        length_P,
        prompt_cache,
        cache,
        DecodePlan(T).cache_attention(ends),
    )[0]
    spoilt = keys.at[..., end:].set(jnp.nan), values.at[..., end:, :].set(jnp.nan)
    np.testing.assert_allclose(
        after(spoilt, 2, 4, 8), after((keys, values), 8), rtol=1e-5, atol=1e-6
    )
    assert end == 8 or np.isnan(after(spoilt, 8)).all()


@pytest.mark.slow
@pytest.mark.parametrize("limit", [T, 5])
def test_a_chosen_plan_samples_what_the_plain_one_does(phi, limit):
    """The plan of one CPU device, of eight, and with segments and compactions at once, fp32."""
    chosen = dict(temperature=2.0, eos=[4, 9, 20, 25, 30], limit=limit)
    plain = run(phi, **chosen)
    one = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    plans = (
        decode_plan.choose(one, T),
        decode_plan.choose(sharding.make_mesh(MeshConfig(fsdp=8)), T),
        dataclasses.replace(decode_plan.choose(one, T), loops=((2, 4), (6, 8))),
    )
    for plan in plans:
        fast = run(phi, plan=plan, **chosen)
        np.testing.assert_array_equal(fast.seqs.tokens_BT, plain.seqs.tokens_BT)
        np.testing.assert_array_equal(fast.seqs.length_B, plain.seqs.length_B)
        np.testing.assert_array_equal(fast.stopped_B, plain.stopped_B)
        np.testing.assert_allclose(fast.logp_BT, plain.logp_BT, atol=1e-5)
