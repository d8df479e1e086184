"""The trainer scores what was sampled, the batch changes nothing, and the loop stops."""

from __future__ import annotations

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.data import tokenizers
from bridge_jax.data.batches import PromptBatch
from bridge_jax.distributed import sharding
from bridge_jax.distributed.sharding import MeshConfig
from bridge_jax.models import layers, logprobs
from bridge_jax.sampling import decode_plan, sampler
from bridge_jax.sampling.decode_plan import DecodePlan
from bridge_jax.sampling.draw import Sampling, row_keys
from bridge_jax.types import Sequences
from tests import toys
from tests.sampling.samples import PROMPTS, M, T, pad, run, settings, traces


def scored(phi, seqs: Sequences, temperature: float):
    """The trainer's log-probabilities [B,T]."""
    return _scored(phi, seqs, temperature)


@jax.jit
def _scored(phi, seqs, temperature):
    hidden_BTD = layers.forward(toys.CFG, phi, seqs)
    return logprobs.token_logp(
        hidden_BTD, layers.head_weights(toys.CFG, phi), seqs.tokens_BT, temperature
    )[0]


def inside(seqs: Sequences) -> np.ndarray:
    """Mask [B,T] of sampled tokens."""
    return np.arange(T) < np.asarray(seqs.length_B)[:, None]


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_the_trainer_scores_what_was_sampled(phi, temperature):
    """fp32: 1e-4 on every sampled token, ragged prompts, early ends; 0 beyond the length."""
    samples = run(phi, temperature=temperature, eos=[4, 9, 20, 25, 30])
    mask = inside(samples.seqs)
    assert 0 < mask.sum() < mask.size and samples.logp_BT.dtype == jnp.float32
    np.testing.assert_allclose(
        samples.logp_BT[mask], scored(phi, samples.seqs, temperature)[mask], atol=1e-4
    )
    assert (
        not np.asarray(samples.logp_BT)[~mask].any()
        and not np.asarray(samples.seqs.tokens_BT)[~mask].any()
    )


def test_bf16_weights_and_cache(phi):
    """Measured here: 0, both round at the same places; the rounding of bf16 itself moves a
    log-probability by .01.
    """
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), phi)
    samples = run(half, plan=DecodePlan(T, jnp.bfloat16))
    error = np.abs(np.asarray(samples.logp_BT - scored(half, samples.seqs, 1.0)))
    assert error.max() < 0.05 and error.mean() < 0.005


@pytest.fixture(scope="module")
def sampled_by_real_weights(tmp_path_factory):
    """dtype -> the sampler's log-probabilities of SmolLM2-135M's tokens, the trainer's, and those
    with fp32 arithmetic, fp64 [n].
    """
    from bridge_jax.models import params
    from experiments import get_smollm2

    folder = os.environ.get("BRIDGE_SMOLLM2")
    if not folder:
        folder = tmp_path_factory.mktemp("smollm2") / "model"
        get_smollm2.get(str(folder))
    folder = params.locate(folder)
    cfg, tokenizer = params.read_config(params.hf_json(folder)), tokenizers.HFTokenizer(str(folder))
    questions = (f"What is {a} + {a * b}?" for a, b in ((3, 4), (17, 23), (5, 1000), (9, 9)))
    prompts = [
        tokenizer.render([{"role": "user", "content": question}]) for question in questions
    ]  # ragged
    keys, eos_E = (
        row_keys(jax.random.key(0), 0, jnp.arange(4), 4),
        jnp.asarray(tokenizer.eos_ids, jnp.int32),
    )

    @jax.jit
    def score(theta, seqs):
        return logprobs.token_logp(
            layers.forward(cfg, theta, seqs), layers.head_weights(cfg, theta), seqs.tokens_BT
        )[0]

    def logps(dtype):
        theta = jax.tree.map(lambda x: x.astype(dtype), params.load(cfg, folder))
        samples = jax.jit(lambda *given: sampler.sample(cfg, *given, DecodePlan(32, dtype)))(
            theta, *pad(prompts, 64), keys, Sampling(jnp.float32(1.0), eos_E, jnp.int32(32))
        )
        mask = np.arange(32) < np.asarray(samples.seqs.length_B)[:, None]
        exact = score(jax.tree.map(lambda x: x.astype(jnp.float32), theta), samples.seqs)
        return [
            np.asarray(logp_BT, np.float64)[mask]
            for logp_BT in (samples.logp_BT, score(theta, samples.seqs), exact)
        ]

    return logps


@pytest.mark.slow
def test_real_weights(sampled_by_real_weights):
    """SmolLM2-135M, 16 samples of up to 32 tokens behind ragged chat prompts, fp32. Measured:
    2.7e-5 and 4e-6.
    """
    sampled, trained, _ = sampled_by_real_weights(jnp.float32)
    error = np.abs(sampled - trained)
    assert error.size > 400 and error.max() < 1e-4 and error.mean() < 1e-5


@pytest.mark.slow
def test_real_weights_in_bfloat16(sampled_by_real_weights):
    """The sampler is as near to fp32 arithmetic on these weights as the trainer is. How near that
    is hangs on the tokens drawn, and most on the least likely of them, so that one is the measure
    of the other. Measured (three seeds, AMX): means of .021 to .024 beside .021 to .026, roots of
    mean squares .034 to .037 beside .035 to .042.
    """
    sampled, trained, exact = sampled_by_real_weights(jnp.bfloat16)
    error, usual = np.abs(sampled - exact), np.abs(trained - exact)
    rms = lambda x: np.sqrt(np.mean(x**2))
    print(
        f"\nmean {error.mean():.4f} beside {usual.mean():.4f}, rms {rms(error):.4f} beside {rms(usual):.4f}"
    )
    assert error.size > 400 and usual.mean() < 0.04
    assert error.mean() < 1.25 * usual.mean() and rms(error) < 1.5 * rms(usual)


@pytest.mark.slow
def test_bfloat16_is_stored_as_its_bits_on_a_cpu(phi):
    """As programs.py samples and compiles there: what the plain plan samples, without an fp32 copy
    of the cache or of the layers' weights, of which XLA's compiler else makes one for every slice
    (a test that has nothing to say once it does not).
    """
    phi, cfg = jax.tree.map(lambda x: x.astype(jnp.bfloat16), phi), toys.CFG
    given = (
        phi,
        *pad(PROMPTS, 5),
        row_keys(jax.random.key(0), 0, jnp.arange(3), M),
        settings(2.0, [4, 9, 20, 25, 30]),
    )
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    as_there = decode_plan.choose(mesh, T, jnp.bfloat16)
    assert as_there.as_bits and as_there.compactions == 2
    program = lambda plan: (
        jax.jit(lambda *given: sampler.sample(cfg, *given, plan))
        .lower(*given)
        .compile(compiler_options=toys.AS_USERS)
    )
    plain, as_bits = program(DecodePlan(T, jnp.bfloat16)), program(as_there)
    want, got = plain(*given), as_bits(*given)
    jax.tree.map(np.testing.assert_array_equal, got.seqs, want.seqs)
    np.testing.assert_allclose(
        got.logp_BT, want.logp_BT, atol=0.02
    )  # attention to fewer rows sums in another order
    rows = (3 * M, 3 * M // 2, 3 * M // 4)
    stacks = [
        f"f32[{cfg.layers},{cfg.width},{cfg.mlp}]",
        *(f"f32[{cfg.layers},{B},{cfg.kv_heads},{cfg.head_dim},{T}]" for B in rows),
    ]
    if stacks[0] not in plain.as_text() or stacks[1] not in plain.as_text():
        pytest.skip("this compiler makes no fp32 copies of bfloat16")
    assert not [stack for stack in stacks if stack in as_bits.as_text()]


def test_greedy_is_argmax_by_teacher_forcing(phi):
    """Temperature 0: every token is the trainer's argmax, whatever the key; log-probabilities are
    those at temperature 1.
    """
    samples = run(phi, temperature=0.0)
    hidden_BTD = jax.jit(layers.forward, static_argnums=0)(toys.CFG, phi, samples.seqs)
    logits = hidden_BTD @ layers.head_weights(toys.CFG, phi).T
    np.testing.assert_array_equal(samples.seqs.tokens_BT, jnp.argmax(logits, axis=-1))
    np.testing.assert_allclose(samples.logp_BT, scored(phi, samples.seqs, 1.0), atol=1e-4)
    rows_PMT = samples.seqs.tokens_BT.reshape(3, M, T)
    assert (rows_PMT == rows_PMT[:, :1]).all()


def test_a_prompts_samples_do_not_depend_on_the_batch(phi):
    """Other prompts, another order, more padding, other fillers, alone or not: bitwise the same
    tokens.
    """
    tokens = {i: np.asarray(run(phi).seqs.tokens_BT).reshape(3, M, T)[i] for i in range(3)}
    a, b, c = PROMPTS
    layouts = [
        ((c, a, b), (13, 11, 12), 5, 17),
        ((a, b, c), (11, 12, 13), 9, 30),
        ((b,), (12,), 5, 0),
        (([1, 1], c, [5], [6, 6, 6, 6, 6]), (90, 13, 91, 92), 5, 0),
    ]
    for prompts, ids, S, filler in layouts:
        again = np.asarray(run(phi, prompts, ids, S, filler).seqs.tokens_BT).reshape(
            len(prompts), M, T
        )
        for row, id in zip(again, ids):
            if id < 90:
                np.testing.assert_array_equal(row, tokens[id - 11])
    first_two = np.asarray(run(phi, samples=2).seqs.tokens_BT).reshape(
        3, 2, T
    )  # fewer samples: the same first ones
    np.testing.assert_array_equal(first_two[0], tokens[0][:2])


def test_samples_differ_between_rows_steps_and_ids(phi):
    """M samples of a prompt, two ids of one prompt, and two steps are all different draws."""
    same = ([3, 9, 4],) * 3
    rows = [
        tuple(row)
        for step in (0, 1)
        for row in np.asarray(run(phi, same, step=step).seqs.tokens_BT)
    ]
    assert len(set(rows)) == 2 * 3 * M
    keys = jax.random.key_data(row_keys(jax.random.key(0), 0, jnp.array([11, 12]), M))
    by_hand = functools.reduce(jax.random.fold_in, (0, 12, 2), jax.random.key(0))
    np.testing.assert_array_equal(keys[M + 2], jax.random.key_data(by_hand))


def test_ends_of_sequence(phi):
    """A row ends WITH its first eos id, any of the set; what ran into the limit did not stop."""
    free = run(phi)
    assert (free.seqs.length_B == T).all() and not free.stopped_B.any()
    tokens = np.asarray(free.seqs.tokens_BT)
    eos = [int(tokens[0, 2]), int(tokens[4, 5])]
    ended = run(phi, eos=eos)
    for row, length, stopped, again in zip(
        tokens, ended.seqs.length_B, ended.stopped_B, ended.seqs.tokens_BT
    ):
        hits = [t for t in range(T) if row[t] in eos]
        assert stopped == bool(hits) and length == (hits[0] + 1 if hits else T)
        np.testing.assert_array_equal(again[:length], row[:length])


def test_filler_is_no_end(phi):
    """Finished rows are filled with id 0; where 0 is an eos id, lengths still count to the first
    end alone.
    """
    tokens = np.asarray(run(phi, temperature=3.0).seqs.tokens_BT)
    ended = run(phi, temperature=3.0, eos=[0, int(tokens[0, 1])])
    assert ended.seqs.length_B[0] == 2 and ended.stopped_B[0]


def test_settings_are_traced(phi):
    """Temperature, limit and the ids in the eos set compile nothing anew."""
    run(phi)
    before = len(traces)
    short = run(phi, temperature=0.9, limit=3, eos=[31])
    assert short.seqs.length_B.max() == 3 and not np.asarray(short.seqs.tokens_BT)[:, 3:].any()
    run(phi, temperature=0.0, limit=100)
    assert len(traces) == before


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_made_sampler_samples_what_the_plain_plan_does(phi, temperature):
    """Tokens, lengths and log-probabilities of `sample` for the same keys, on the host."""
    prompt_PS, prompt_len_P = pad(PROMPTS, 5)
    asked = PromptBatch(prompt_PS, prompt_len_P, np.asarray([11, 12, 13], np.int32))
    made = sampler.make(toys.CFG, (0, 4), T)(phi, asked, jax.random.key(0), M, temperature)
    plain = run(phi, temperature=temperature, eos=jnp.array([0, 4]))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(made))
    assert 0 < made.stopped_B.sum() < len(made.stopped_B) or temperature == 0
    for mine, theirs in zip(jax.tree.leaves(made), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(mine, theirs)
