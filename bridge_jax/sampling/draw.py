"""Drawing of one token per row, random keys, and the end of a row.

A row's key is fold_in(seed, step, prompt id, sample id), so that a prompt's samples are the same in
any batch layout, and token t is drawn with fold_in(row key, t). The log-probabilities are those of
the distribution of the tokens, softmax(logits / temperature). Top-k and top-p are left out on
purpose: the trainer's log-probabilities could not reproduce them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sampling(NamedTuple):
    """Traced settings, which can change without a new compilation."""

    # float32 scalar. 0 is greedy; log-probabilities are then those at temperature 1.
    temperature: jax.Array
    eos_E: jax.Array  # int32 [E], ids that end a row
    limit: jax.Array  # int32 scalar, maximum of new tokens per row, at most the plan's max_new


def row_keys(
    seed_key: jax.Array, step, prompt_id_P: jax.Array, M: int, first_P: jax.Array | int = 0
) -> jax.Array:
    """Keys [P * M] = fold_in(fold_in(fold_in(seed, step), prompt id), sample id).

    Sample ids count from first_P on.
    """
    at_step = jax.random.fold_in(seed_key, step)
    of_prompt = jax.vmap(lambda prompt: jax.random.fold_in(at_step, prompt))(prompt_id_P)
    sample_PM = jnp.broadcast_to(first_P, prompt_id_P.shape)[:, None] + jnp.arange(M)
    of_sample = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(of_prompt, sample_PM)
    return of_sample.reshape(-1)


def token_keys(key_B: jax.Array, t: jax.Array) -> jax.Array:
    """Keys [B] of token t of each row; t: a scalar, or one for each row, [B]."""
    return jax.vmap(jax.random.fold_in)(key_B, jnp.broadcast_to(t, key_B.shape))


def ends(token_B: jax.Array, eos_E: jax.Array) -> jax.Array:
    """Which rows end with this token."""
    return jnp.any(token_B[:, None] == eos_E, axis=1)


def draw_plain(logits_BV, key_B, t, temperature):
    """One token per row and its log-probability: argmax of logits / temperature + Gumbel noise.

    At temperature 0 the argmax of the logits. t: a scalar, or [B]. temperature: a scalar, or [B,1].
    `draw` has the same distribution with other random numbers.
    """
    logits = logits_BV / jnp.where(temperature > 0, temperature, 1.0)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(token_keys(key_B, t))
    token_B = jnp.argmax(logits + jnp.where(temperature > 0, noise, 0.0), axis=-1)
    logp_BV = jax.nn.log_softmax(logits)
    return token_B.astype(jnp.int32), jnp.take_along_axis(logp_BV, token_B[:, None], axis=1)[:, 0]


def block_width(V: int) -> int:
    """The divisor of V that is nearest to its square root."""
    return min((n for n in range(1, V + 1) if V % n == 0), key=lambda n: abs(n - V**0.5))


def draw(logits_BV, key_B, t, temperature):
    """draw_plain in two steps: a block of the vocabulary by its probability, then a token in it.

    Each step is the argmax of log-weight + Gumbel noise. This takes one pass over the logits and
    about 2 sqrt(V) random numbers per row instead of V (docs/speed.md).
    """
    B, V = logits_BV.shape
    width = block_width(V)
    logits = logits_BV / jnp.where(temperature > 0, temperature, 1.0)
    blocks_BNU = logits.reshape(B, V // width, width)
    top_BN, share_BN = blocks_BNU.max(axis=-1), jax.nn.logsumexp(blocks_BNU, axis=-1)
    keys_B2 = jax.vmap(jax.random.split)(token_keys(key_B, t))

    def noise(key_B, like):
        gumbel = jax.vmap(lambda key: jax.random.gumbel(key, like.shape[1:]))(key_B)
        return jnp.where(temperature > 0, gumbel, 0.0)

    weight_BN = jnp.where(temperature > 0, share_BN, top_BN)
    block_B = jnp.argmax(weight_BN + noise(keys_B2[:, 0], share_BN), axis=-1)
    within_BU = jnp.take_along_axis(blocks_BNU, block_B[:, None, None], axis=1)[:, 0]
    place_B = jnp.argmax(within_BU + noise(keys_B2[:, 1], within_BU), axis=-1)
    chosen_B = jnp.take_along_axis(within_BU, place_B[:, None], axis=-1)[:, 0]
    token_B = (block_B * width + place_B).astype(jnp.int32)
    return token_B, chosen_B - jax.nn.logsumexp(share_BN, axis=-1)
