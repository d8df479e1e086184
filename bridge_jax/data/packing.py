"""Sequence packing: several prompts with their completions in one row, separated by segment ids.

Without packing every completion is padded to the longest allowed length. With packing a row of
width S + T holds as many samples as fit, and an update computes only the rows it needs: one
compiled program, whose loop over micro-batches ends early. The cost: a prompt is computed once for
each of its samples. `plan` (numpy, on the host) assigns samples to rows, `concatenate` (traced)
joins the tokens of a micro-batch, `PackedRows.unpack` maps values per position back to
[samples, T].
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bridge_jax.types import Packing, Sequences


def lengths(seqs: Sequences) -> jax.Array:
    """Tokens of each sample, prompt and completion, [B]; 0 for a padding row."""
    M = seqs.length_B.shape[0] // seqs.prompt_len_P.shape[0]
    lib = np if isinstance(seqs.length_B, np.ndarray) else jnp
    return lib.where(seqs.length_B > 0, seqs.length_B + lib.repeat(seqs.prompt_len_P, M), 0)


def plan(length_B: np.ndarray, width: int, places: int) -> Packing:
    """Assigns samples to rows of `width` positions, at most `places` per row.

    length_B: tokens of each sample; 0: it gets no row. Used rows come first. There are as many rows
    as samples, so that the shape does not depend on the lengths. First fit decreasing uses at most
    11/9 of the optimal number of rows (Johnson 1973).
    """
    B = len(length_B)
    slot_RK, room, members = np.full((B, places), -1, np.int32), [], []
    for b in sorted((b for b in range(B) if length_B[b]), key=lambda b: -length_B[b]):
        if length_B[b] > width:
            raise ValueError(f"sample {b} takes {length_B[b]} positions, a row has {width}")
        row = next(
            (r for r in range(len(room)) if room[r] >= length_B[b] and members[r] < places),
            len(room),
        )
        if row == len(room):
            room.append(width)
            members.append(0)
        slot_RK[row, members[row]] = b
        room[row] -= length_B[b]
        members[row] += 1
    return Packing(slot_RK, np.int32(len(room)))


class PackedRows(NamedTuple):
    """The packed rows of a micro-batch; width W = S + T."""

    token_RW: jax.Array  # int32
    # int32, the completion token that this position predicts; undefined where it predicts none
    target_RW: jax.Array
    position_RW: jax.Array  # int32, within the sample
    segment_RW: jax.Array  # int32, 1 + place of the sample in the row; 0 after the last one
    first_RK: jax.Array  # int32, where each sample's first completion token is predicted
    T: int  # longest completion

    def unpack(self, x: jax.Array) -> jax.Array:
        """x at the predictions of completion tokens: [R,W,...] -> [R * K, T, ...].

        Undefined beyond a sample's length.
        """
        (R, K), T, width = self.first_RK.shape, self.T, x.shape[2:]
        at = jnp.minimum(self.first_RK[:, :, None] + jnp.arange(T), x.shape[1] - 1)
        return jnp.take_along_axis(x, at.reshape(R, K * T, *(1 for _ in width)), axis=1).reshape(
            R * K, T, *width
        )


def select_rows(seqs: Sequences, slot_RK: jax.Array) -> Sequences:
    """The samples of these rows in order, each with its own prompt; empty slots have length 0."""
    M = seqs.length_B.shape[0] // seqs.prompt_len_P.shape[0]
    index = jnp.maximum(slot_RK, 0).reshape(-1)
    length_B = jnp.where(slot_RK.reshape(-1) >= 0, seqs.length_B[index], 0)
    return Sequences(
        seqs.prompt_PS[index // M],
        seqs.prompt_len_P[index // M],
        seqs.tokens_BT[index],
        length_B,
        Packing(slot_RK, seqs.packing.used),
    )


def concatenate(seqs: Sequences) -> PackedRows:
    """The result of `select_rows` as packed rows."""
    (R, K), S, T = seqs.packing.slot_RK.shape, seqs.prompt_PS.shape[1], seqs.tokens_BT.shape[1]
    by_row = lambda x: x.reshape(R, K, *x.shape[1:])
    prompt_RK, total_RK = by_row(seqs.prompt_len_P), by_row(lengths(seqs))
    end_RK = jnp.cumsum(total_RK, axis=1)
    start_RK = end_RK - total_RK
    place_W = jnp.arange(S + T)
    # how many samples end before
    segment_RW = jnp.sum(place_W[None, :, None] >= end_RK[:, None], axis=2)
    sample_RW = jnp.minimum(segment_RW, K - 1)
    of_sample = lambda x_RK: jnp.take_along_axis(x_RK, sample_RW, axis=1)
    position_RW = place_W - of_sample(start_RK)
    # place within the completion
    t_RW = position_RW - of_sample(prompt_RK)

    from_prompt = jnp.take_along_axis(
        seqs.prompt_PS.reshape(R, K * S), sample_RW * S + jnp.clip(position_RW, 0, S - 1), axis=1
    )

    def completion(t_RW):
        return jnp.take_along_axis(
            seqs.tokens_BT.reshape(R, K * T), sample_RW * T + jnp.clip(t_RW, 0, T - 1), axis=1
        )

    inside_RW = place_W < end_RK[:, -1:]
    token_RW = jnp.where(t_RW < 0, from_prompt, completion(t_RW))
    return PackedRows(
        token_RW,
        completion(t_RW + 1),
        jnp.where(inside_RW, position_RW, 0),
        jnp.where(inside_RW, segment_RW + 1, 0),
        start_RK + prompt_RK - 1,
        T,
    )
