"""The decode loop, `while not all rows are done: state = step(rows, state)`, under a decode plan.

The plain plan is one while loop. Other plans add two speed-ups, neither of which changes a token.

Cache segments: the cache is divided by position, and a step reads only the segments that can be
filled. Each segment has a loop of its own, or one loop chooses among them at every step.

Batch compaction: when half of the rows are done, the loop ends, and another one continues with the
rest alone, each row with a copy of its prompt's cache.

On several devices a third one: only every few tokens it is tested whether rows are unfinished.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bridge_jax.sampling.decode_plan import DecodePlan


class DecodeInputs(NamedTuple):
    """The constant inputs of a step; P divides B."""

    key_B: jax.Array
    prompt_len_P: jax.Array
    prompt_cache: tuple[jax.Array, jax.Array]  # k, v [L,P,K,S,H]

    def select_rows(self, row_b: jax.Array) -> DecodeInputs:
        """These rows, each with a copy of its prompt: prompts may have unequal numbers of rows."""
        prompt_b = row_b // (self.key_B.shape[0] // self.prompt_len_P.shape[0])
        cache = tuple(x[:, prompt_b] for x in self.prompt_cache)
        return DecodeInputs(self.key_B[row_b], self.prompt_len_P[prompt_b], cache)


class Outputs(NamedTuple):
    """The outputs of decoding; finished rows are padded with token 0 at log-probability 0."""

    tokens_BT: jax.Array
    logp_BT: jax.Array
    length_B: jax.Array
    done_B: jax.Array  # ended by an eos id

    @classmethod
    def empty(cls, B: int, T: int) -> Outputs:
        """The outputs before the first token."""
        return cls(
            jnp.zeros((B, T), jnp.int32),
            jnp.zeros((B, T), jnp.float32),
            jnp.zeros(B, jnp.int32),
            jnp.zeros(B, bool),
        )

    def append(self, t, token_B, logp_B, ends_B) -> tuple[Outputs, jax.Array]:
        """The outputs with token t added to unfinished rows, and the tokens, 0 in finished rows."""
        live_B = ~self.done_B
        token_B = jnp.where(live_B, token_B, 0)
        outputs = Outputs(
            self.tokens_BT.at[:, t].set(token_B),
            self.logp_BT.at[:, t].set(jnp.where(live_B, logp_B, 0.0)),
            self.length_B + live_B,
            self.done_B | ends_B,
        )
        return outputs, token_B


class State(NamedTuple):
    """The loop state, which a step changes."""

    t: jax.Array  # position of the next token in the completions
    hidden_BD: jax.Array  # the hidden state that predicts it
    cache: tuple[jax.Array, jax.Array]
    outputs: Outputs

    def select_rows(self, row_b: jax.Array) -> State:
        """The state of these rows alone."""
        cache = tuple(x[:, row_b] for x in self.cache)
        outputs = Outputs(*(x[row_b] for x in self.outputs))
        return State(self.t, self.hidden_BD[row_b], cache, outputs)


def while_not_done(
    plan: DecodePlan, step: Callable, rows: DecodeInputs, state: State, limit: jax.Array
) -> Outputs:
    """Decodes until all rows are done or t reaches the limit.

    step(rows, state, attend) -> state.
    """
    B = rows.key_B.shape[0]
    state = over_segments(plan, step, rows, state, limit, B // 2 if plan.compactions else 0)
    outputs, place_B = state.outputs, jnp.arange(B)
    for remaining in reversed(range(plan.compactions)):
        row_b = unfinished_half(state.outputs.done_B)
        rows, state, place_B = rows.select_rows(row_b), state.select_rows(row_b), place_B[row_b]
        state = over_segments(plan, step, rows, state, limit, len(row_b) // 2 if remaining else 0)
        outputs = Outputs(
            *(of_all.at[place_B].set(of_rest) for of_all, of_rest in zip(outputs, state.outputs))
        )
    return outputs


def unfinished_half(done_B: jax.Array) -> jax.Array:
    """Indices of half of the rows, at least one: unfinished rows first, in their order."""
    return jnp.argsort(done_B)[: max(1, len(done_B) // 2)]


def over_segments(
    plan: DecodePlan,
    step: Callable,
    rows: DecodeInputs,
    state: State,
    limit: jax.Array,
    max_live: int,
) -> State:
    """Runs each of the plan's loops, until at most `max_live` rows are unfinished."""
    for segment_ends in plan.loops or ((plan.max_new,),):
        attend = plan.cache_attention(segment_ends)
        until = jnp.minimum(limit, segment_ends[-1])

        def unfinished(state: State, until=until) -> jax.Array:
            return (state.t < until) & (jnp.sum(~state.outputs.done_B) > max_live)

        def next_token(state: State, attend=attend) -> State:
            return step(rows, state, attend)

        tokens = several(plan.check_every, next_token, lambda state: state.t, until)
        state = jax.lax.while_loop(unfinished, tokens, state)
    return state


def several(count: int, next_token: Callable, position: Callable, until: jax.Array) -> Callable:
    """next_token `count` times in a row, or fewer where position(state) reaches `until`.

    The position is the same on all devices, so that none waits for another one.
    """
    if count == 1:
        return next_token

    def tokens(state):
        end = jnp.minimum(position(state) + count, until)
        return jax.lax.while_loop(lambda state: position(state) < end, next_token, state)

    return tokens
