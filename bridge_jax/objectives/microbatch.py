"""Division of a batch into micro-batches, which are computed one after the other."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bridge_jax.data import packing
from bridge_jax.types import Policy, Rollouts, Sequences, Tree


def micro_count(B: int, microbatch_rows: int) -> int:
    """Number of micro-batches of B rows; 1 for microbatch_rows = 0 or more than B."""
    return max(1, B // microbatch_rows) if microbatch_rows else 1


def micro_split(seqs: Sequences, rows: Tree, count: int):
    """(seqs, rows) with a leading axis of `count` micro-batches.

    A micro-batch has whole groups, or an even part of one group, whose prompt is then repeated.
    rows: pytree of [B, ...] arrays. Micro-batch i has the groups i, i + count, ..., so that a batch
    sharded along its leading axis is so in every micro-batch.
    """
    P, B = seqs.prompt_len_P.shape[0], seqs.length_B.shape[0]
    if B % count or (P % count and count % P):
        raise ValueError(
            f"{B} rows of {P} prompts cannot be cut into {count} micro-batches: the rows of a "
            f"micro-batch must divide, or be a multiple of, the {B // P} samples of a prompt"
        )
    strides = min(count, P)

    def by_row(x):
        x = x.reshape(P // strides, strides, B // P, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(count, B // count, *x.shape[3:])

    def by_prompt(x):
        x = x.reshape(P // strides, strides, *x.shape[1:]).swapaxes(0, 1)
        return jnp.repeat(x, count // strides, axis=0)

    split = Sequences(
        by_prompt(seqs.prompt_PS),
        by_prompt(seqs.prompt_len_P),
        by_row(seqs.tokens_BT),
        by_row(seqs.length_B),
    )
    return split, jax.tree.map(by_row, rows)


def micro_join(x: jax.Array, P: int) -> jax.Array:
    """[count, rows, ...] of micro_split back to [B, ...] in the order of the batch."""
    count, rows = x.shape[:2]
    B, strides = count * rows, min(count, P)
    x = x.reshape(strides, P // strides, B // P, *x.shape[2:]).swapaxes(0, 1)
    return x.reshape(B, *x.shape[3:])


def over_micro_batches(step, carry: Tree, seqs: Sequences, rows: Tree, microbatch_rows: int = 0):
    """Applies step(carry, seqs, rows) -> (carry, aux) to one micro-batch after the other.

    Returns the last carry, and aux [B, ...] of all rows. Packed sequences have as many
    micro-batches as their rows fill; samples in no row have an aux of 0.
    """
    B = seqs.length_B.shape[0]
    if seqs.packing is None:
        split = micro_split(seqs, rows, micro_count(B, microbatch_rows))
        carry, aux = jax.lax.scan(lambda carry, micro: step(carry, *micro), carry, split)
        return carry, jax.tree.map(lambda x: micro_join(x, seqs.prompt_len_P.shape[0]), aux)
    slot_RK = seqs.packing.slot_RK
    R = min(microbatch_rows or B, B)
    slot_RK = jnp.pad(slot_RK, ((0, -B % R), (0, 0)), constant_values=-1)

    def micro(i):
        slots = jax.lax.dynamic_slice_in_dim(slot_RK, i * R, R)
        return (
            slots,
            packing.select_rows(seqs, slots),
            jax.tree.map(lambda x: x[jnp.maximum(slots, 0).reshape(-1)], rows),
        )

    def body(i, state):
        carry, aux = state
        slots, *inputs = micro(i)
        carry, new = step(carry, *inputs)
        place = jnp.where(slots < 0, B, slots).reshape(-1)
        return carry, jax.tree.map(lambda all, x: all.at[place].set(x, mode="drop"), aux, new)

    shapes = jax.eval_shape(lambda carry: step(carry, *micro(0)[1:])[1], carry)
    aux = jax.tree.map(lambda x: jnp.zeros((B, *x.shape[1:]), x.dtype), shapes)
    return jax.lax.fori_loop(0, -(-seqs.packing.used // R), body, (carry, aux))


def logp_of(policy: Policy, phi: Tree, rollouts: Rollouts, microbatch_rows: int = 0) -> jax.Array:
    """log pi_phi of the sampled tokens [B,T] at their temperature, forward only, micro-batched."""
    step = lambda carry, seqs, rows: (carry, policy.logp(phi, seqs, rollouts.temperature)[0])
    return over_micro_batches(step, (), rollouts.seqs, {}, microbatch_rows)[1]
