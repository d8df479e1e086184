"""Sampling in JAX: each prompt is prefilled once for its M samples, then a while_loop decodes until every row is done.

Completions are cut by length, and a stretch reads of the cache only what it can have filled (`stretches`): each is a loop of its
own, or one loop chooses among them. Where it pays, on a CPU, the loop stops when half of the rows are done and goes on with the
others alone (`halvings`).

A row's key is fold_in(seed, step, prompt id, sample id), so that a prompt's samples are the same in any batch layout, and
token t draws with fold_in(row key, t). The log-probabilities kept are those of the distribution the tokens were drawn from,
softmax(logits / temperature); top-k and top-p are left out on purpose: training could not mirror them.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bridge_jax.models import layers
from bridge_jax.models.attention import causal
from bridge_jax.models.logprobs import logits_of
from bridge_jax.models.precision import exact, load
from bridge_jax.sampling.decode_plan import kept
from bridge_jax.types import Sequences, Tree


class Sampling(NamedTuple):
    """Traced settings: changing them compiles nothing."""

    temperature: (
        jax.Array
    )  # float32 scalar; 0 is greedy, and then log-probabilities are those at temperature 1
    eos_E: jax.Array  # int32 [E], ids that end a row
    limit: jax.Array  # int32 scalar, most new tokens per row, at most the buffer T


class Samples(NamedTuple):
    """What the sampler made."""

    seqs: Sequences
    logp_BT: jax.Array  # float32
    stopped_B: jax.Array  # bool: ended by an eos id, not by the limit


MADE = (
    "tokens_BT",
    "logp_BT",
    "length_B",
    "done_B",
)  # of the loop's state, what a rollout is read from


class Rows(NamedTuple):
    """What the loop reads of the rows that it decodes; P divides their number, B."""

    key_B: jax.Array
    prompt_len_P: jax.Array
    prompt_cache: tuple[jax.Array, jax.Array]  # k, v [L,P,K,S,H]

    def taken(self, keep: jax.Array) -> Rows:
        """These of the rows, each with a copy of its prompt: a prompt's rows that are not done are of no fixed number."""
        prompt = keep // (self.key_B.shape[0] // self.prompt_len_P.shape[0])
        return Rows(
            self.key_B[keep],
            self.prompt_len_P[prompt],
            tuple(x[:, prompt] for x in self.prompt_cache),
        )


def taken(s: dict, keep: jax.Array) -> dict:
    """The loop's state of these rows alone."""
    return (
        s
        | {name: s[name][keep] for name in ("hidden_BD", *MADE)}
        | {"cache": tuple(x[:, keep] for x in s["cache"])}
    )


def row_keys(
    seed_key: jax.Array, step, prompt_id_P: jax.Array, M: int, first_P: jax.Array | int = 0
) -> jax.Array:
    """Keys [P * M] = fold_in(fold_in(fold_in(seed, step), prompt id), sample id), sample ids from first_P (default 0) on."""
    at_step = jax.random.fold_in(seed_key, step)
    of_prompt = jax.vmap(lambda prompt: jax.random.fold_in(at_step, prompt))(prompt_id_P)
    sample_PM = jnp.broadcast_to(first_P, prompt_id_P.shape)[:, None] + jnp.arange(M)
    of_sample = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(of_prompt, sample_PM)
    return of_sample.reshape(-1)


def block_width(V: int) -> int:
    """The divisor of V that is nearest to its square root."""
    return min((n for n in range(1, V + 1) if V % n == 0), key=lambda n: abs(n - V**0.5))


def draw(logits_BV, key_B, t, temperature):
    """Token and its log-probability of each row, from softmax(logits / temperature); at temperature 0 the argmax.

    In two steps, a block of the vocabulary by its share and a token within it, each the argmax of log-weight + Gumbel noise: one
    pass over the logits and about 2 sqrt(V) random numbers a row instead of V (on 2 cores, 64 x 49,152: 3 ms instead of 95).
    """
    B, V = logits_BV.shape
    width = block_width(V)
    blocks = logits_BV.reshape(B, V // width, width) / jnp.where(temperature > 0, temperature, 1.0)
    top_BN, share_BN = blocks.max(axis=-1), jax.nn.logsumexp(blocks, axis=-1)
    two_B = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, t)))(key_B)
    noise = lambda key_B, x: jnp.where(
        temperature > 0, jax.vmap(lambda key: jax.random.gumbel(key, x.shape[1:]))(key_B), 0.0
    )
    block_B = jnp.argmax(
        jnp.where(temperature > 0, share_BN, top_BN) + noise(two_B[:, 0], share_BN), axis=-1
    )
    within = jnp.take_along_axis(blocks, block_B[:, None, None], axis=1)[:, 0]
    place_B = jnp.argmax(within + noise(two_B[:, 1], within), axis=-1)
    chosen_B = jnp.take_along_axis(within, place_B[:, None], axis=-1)[:, 0]
    return (block_B * width + place_B).astype(jnp.int32), chosen_B - jax.nn.logsumexp(
        share_BN, axis=-1
    )


def sample(
    cfg: layers.Config,
    phi: Tree,
    prompt_PS,
    prompt_len_P,
    key_B,
    sampling: Sampling,
    T: int,
    cache_dtype,
    lay_cache=lambda cache: cache,
    spread=lambda attend: attend,
    attend=causal,
    halvings: int = 0,
    loops: tuple[tuple[int, ...], ...] = (),
    bits: bool = False,
) -> Samples:
    """M = len(key_B) / P completions of every prompt, at most min(T, sampling.limit) tokens each; pure, jit at the caller.

    phi: merged weights in the compute dtype. What is not an array is static; the cache takes 2 L B K T H entries for the samples
    and 2 L P K S H for the prompts. lay_cache: puts them where they belong on a mesh, and spread the attention to them
    (layers.decode). attend: a form of attention.causal, for the prefill. halvings: how often the batch is cut to the half that is
    not done; loops: of each, where its stretches of T end, all of them ascending to T (default: one loop of one stretch); all
    loops are compiled for every number of rows. bits: bfloat16 weights and caches are kept as bits there (precision.store).
    """
    B, P = key_B.shape[0], prompt_len_P.shape[0]
    precise = jax.default_matmul_precision(exact(phi["embed"].dtype))
    phi, cache_dtype = kept(phi, cache_dtype, bits)
    head_VD = load(layers.head_weights(cfg, phi))
    first_PD, prompt_cache = precise(layers.prefill)(
        cfg, phi, prompt_PS, prompt_len_P, cache_dtype, attend
    )
    prompt_cache, cache = (
        lay_cache(prompt_cache),
        lay_cache(layers.empty_cache(cfg, B, T, cache_dtype)),
    )
    limit = jnp.minimum(sampling.limit, T)

    def step(rows: Rows, ends: tuple[int, ...], s):
        t, live_B = s["t"], ~s["done_B"]
        token_B, logp_B = draw(
            logits_of(s["hidden_BD"], head_VD), rows.key_B, t, sampling.temperature
        )
        token_B, logp_B = jnp.where(live_B, token_B, 0), jnp.where(live_B, logp_B, 0.0)
        hidden_BD, cache = precise(layers.decode)(
            cfg, phi, token_B, t, rows.prompt_len_P, rows.prompt_cache, s["cache"], ends, spread
        )
        return dict(
            t=t + 1,
            hidden_BD=hidden_BD,
            cache=cache,
            tokens_BT=s["tokens_BT"].at[:, t].set(token_B),
            logp_BT=s["logp_BT"].at[:, t].set(logp_B),
            length_B=s["length_B"] + live_B,
            done_B=s["done_B"] | jnp.any(token_B[:, None] == sampling.eos_E, axis=1),
        )

    def decoded(rows: Rows, s, fewest: int):
        """Decode until at most `fewest` rows are not done."""
        for ends in loops or ((T,),):
            more = lambda s, end=ends[-1]: (
                (s["t"] < jnp.minimum(limit, end)) & (jnp.sum(~s["done_B"]) > fewest)
            )
            s = jax.lax.while_loop(more, functools.partial(step, rows, ends), s)
        return s

    rows = Rows(key_B, prompt_len_P, prompt_cache)
    s = decoded(
        rows,
        dict(
            t=jnp.int32(0),
            hidden_BD=jnp.repeat(first_PD, B // P, axis=0),
            cache=cache,
            tokens_BT=jnp.zeros((B, T), jnp.int32),
            logp_BT=jnp.zeros((B, T), jnp.float32),
            length_B=jnp.zeros(B, jnp.int32),
            done_B=jnp.zeros(B, bool),
        ),
        fewest=B // 2 if halvings else 0,
    )
    made, place_B = {name: s[name] for name in MADE}, jnp.arange(B)
    for left in range(halvings - 1, -1, -1):
        keep = jnp.argsort(s["done_B"])[
            : max(1, len(s["done_B"]) // 2)
        ]  # stable: those not done first, in their order
        rows, s, place_B = rows.taken(keep), taken(s, keep), place_B[keep]
        s = decoded(rows, s, fewest=len(keep) // 2 if left else 0)
        made = {name: made[name].at[place_B].set(s[name]) for name in MADE}
    # a finished row's filler tokens may look like an eos id, but done_B is already true there
    return Samples(
        Sequences(prompt_PS, prompt_len_P, made["tokens_BT"], made["length_B"]),
        made["logp_BT"],
        made["done_B"],
    )
