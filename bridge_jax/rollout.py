"""Sampling in JAX: each prompt is prefilled once for its M samples, then one while_loop decodes until every row is done.

A row's key is fold_in(seed, step, prompt id, sample id), so that a prompt's samples are the same in any batch layout, and
token t draws with fold_in(row key, t). The log-probabilities kept are those of the distribution the tokens were drawn from,
softmax(logits / temperature); top-k and top-p are left out on purpose: training could not mirror them.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bridge_jax.logprobs import logits_of
from bridge_jax.models import layers
from bridge_jax.models.attention import causal
from bridge_jax.types import Sequences, Tree


class Sampling(NamedTuple):
    """Traced settings: changing them compiles nothing."""
    temperature: jax.Array  # float32 scalar; 0 is greedy, and then log-probabilities are those at temperature 1
    eos_E: jax.Array        # int32 [E], ids that end a row
    limit: jax.Array        # int32 scalar, most new tokens per row, at most the buffer T


class Samples(NamedTuple):
    """What the sampler made."""
    seqs: Sequences
    logp_BT: jax.Array    # float32
    stopped_B: jax.Array  # bool: ended by an eos id, not by the limit


def row_keys(seed_key: jax.Array, step, prompt_id_P: jax.Array, M: int, first_P: jax.Array | int = 0) -> jax.Array:
    """Keys [P * M] = fold_in(fold_in(fold_in(seed, step), prompt id), sample id), sample ids from first_P (default 0) on."""
    at_step = jax.random.fold_in(seed_key, step)
    of_prompt = jax.vmap(lambda prompt: jax.random.fold_in(at_step, prompt))(prompt_id_P)
    sample_PM = jnp.broadcast_to(first_P, prompt_id_P.shape)[:, None] + jnp.arange(M)
    of_sample = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(of_prompt, sample_PM)
    return of_sample.reshape(-1)


def draw(logits_BV, key_B, t, temperature):
    """Token and log-probability per row: argmax(logits / temperature + Gumbel noise), or plain argmax at temperature 0."""
    logits_BV = logits_BV / jnp.where(temperature > 0, temperature, 1.0)
    noise = lambda: jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, t), logits_BV.shape[1:]))(key_B)
    perturbed = jax.lax.cond(temperature > 0, lambda: logits_BV + noise(), lambda: logits_BV)
    token_B = jnp.argmax(perturbed, axis=-1).astype(jnp.int32)
    chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0]
    return token_B, chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)


def sample(cfg: layers.Config, phi: Tree, prompt_PS, prompt_len_P, key_B, sampling: Sampling, T: int, cache_dtype,
           lay_cache=lambda cache: cache, attend=causal) -> Samples:
    """M = len(key_B) / P completions of every prompt, at most min(T, sampling.limit) tokens each; pure, jit at the caller.

    phi: merged weights in the compute dtype. T, cfg and cache_dtype are static; the cache takes
    2 L B K T H entries for the samples and 2 L P K S H for the prompts. lay_cache: puts them where they belong on a mesh;
    attend: a form of attention.causal, for the prefill.
    """
    B, P = key_B.shape[0], prompt_len_P.shape[0]
    head_VD = layers.head_weights(cfg, phi)
    first_PD, prompt_cache = layers.prefill(cfg, phi, prompt_PS, prompt_len_P, cache_dtype, attend)
    prompt_cache = lay_cache(prompt_cache)
    empty = jnp.zeros((cfg.layers, B, cfg.kv_heads, T, cfg.head_dim), cache_dtype)
    first_BD = jnp.repeat(first_PD, B // P, axis=0)
    start = dict(t=jnp.int32(0), hidden_BD=first_BD, cache=lay_cache((empty, empty)),
                 tokens_BT=jnp.zeros((B, T), jnp.int32), logp_BT=jnp.zeros((B, T), jnp.float32),
                 length_B=jnp.zeros(B, jnp.int32), done_B=jnp.zeros(B, bool))
    limit = jnp.minimum(sampling.limit, T)

    def unfinished(s):
        return (s["t"] < limit) & ~jnp.all(s["done_B"])

    def step(s):
        t, live_B = s["t"], ~s["done_B"]
        token_B, logp_B = draw(logits_of(s["hidden_BD"], head_VD), key_B, t, sampling.temperature)
        token_B, logp_B = jnp.where(live_B, token_B, 0), jnp.where(live_B, logp_B, 0.0)
        hidden_BD, cache = layers.decode(cfg, phi, token_B, t, prompt_len_P, prompt_cache, s["cache"])
        return dict(t=t + 1, hidden_BD=hidden_BD, cache=cache, tokens_BT=s["tokens_BT"].at[:, t].set(token_B),
                    logp_BT=s["logp_BT"].at[:, t].set(logp_B), length_B=s["length_B"] + live_B,
                    done_B=s["done_B"] | jnp.any(token_B[:, None] == sampling.eos_E, axis=1))

    end = jax.lax.while_loop(unfinished, step, start)
    # a finished row's filler tokens may look like an eos id, but done_B is already true there
    return Samples(Sequences(prompt_PS, prompt_len_P, end["tokens_BT"], end["length_B"]), end["logp_BT"], end["done_B"])
