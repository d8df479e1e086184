"""The device side of sampling with refilled slots: its state, and the programs that change it.

A slot holds one row: a copy of its prompt's cache, its own cache, its key, and its own position
t_B. `decode_some` decodes all slots until enough of them are free; `prefill` computes prompts;
`fill` starts rows that continue them in free slots. sampling/refill.py calls them in turn.

Token t of a row is drawn with fold_in(row key, t), as in sampler.sample, which is the oracle of the
tests: neither the slot, nor the order, nor the other rows change a token.

On a mesh every device has its share of the slots, and prompts are small and on all devices, so that
`fill` moves nothing between devices. Left out: a cache in pages, with which a slot would take only
the memory that its row has filled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from bridge_jax.distributed import sharding
from bridge_jax.distributed.compiler import compiler_options
from bridge_jax.models import layers
from bridge_jax.models.logprobs import logits_of
from bridge_jax.models.precision import matmul_precision
from bridge_jax.sampling import draw
from bridge_jax.sampling.decode_plan import DecodePlan
from bridge_jax.sampling.loops import several
from bridge_jax.types import Tree

# Most tokens that `decode_some` draws in each slot: the host sees nothing of them before it ends.
CHUNK = 64


class Slots(NamedTuple):
    """The state on the devices. A free slot is done; its numbers are left from its last row."""

    key_B: jax.Array  # keys of the rows, as draw.row_keys makes them
    temperature_B: jax.Array  # float32; 0 is greedy
    limit_B: jax.Array  # int32, most new tokens
    prompt_len_B: jax.Array
    t_B: jax.Array  # int32, tokens drawn so far: the position of the next one
    done_B: jax.Array
    stopped_B: jax.Array  # ended by an eos id
    hidden_BD: jax.Array  # the hidden states that predict the next tokens
    prompt_cache: tuple[jax.Array, jax.Array]  # k, v [L,B,K,S,H]
    cache: tuple[jax.Array, jax.Array]  # from layers.empty_cache, filled below t_B


class Entries(NamedTuple):
    """Prefilled prompts, on all devices."""

    key_PM: jax.Array  # keys of the samples of each prompt
    prompt_len_P: jax.Array
    first_PD: jax.Array  # the hidden states that predict the first new tokens
    cache: tuple[jax.Array, jax.Array]  # k, v [L,P,K,S,H]


class NewRows(NamedTuple):
    """Rows to start: sample sample_R of prompt prompt_R of the entries in slot slot_R."""

    slot_R: jax.Array  # int32; the number of slots: not a row
    prompt_R: jax.Array  # int32
    sample_R: jax.Array  # int32
    temperature_R: jax.Array  # float32
    limit_R: jax.Array  # int32


class Drawn(NamedTuple):
    """What one call of decode_some drew, for the host."""

    tokens_BC: jax.Array  # C = CHUNK; a row's own are the first ones, as many as t_B has grown
    logp_BC: jax.Array
    t_B: jax.Array
    done_B: jax.Array
    stopped_B: jax.Array
    steps: jax.Array  # decode steps of the call


class Programs(NamedTuple):
    """The compiled programs of one model and plan; each compiles once for each shape."""

    empty: Callable  # (number of slots, S, dtype of the hidden states) -> Slots
    prefill: Callable  # (phi, prompt_PS, prompt_len_P, key_PM) -> Entries
    fill: Callable  # (Slots, Entries, NewRows) -> Slots
    widen: Callable  # (Slots, S) -> Slots with prompt caches of S positions
    decode_some: Callable  # (phi, Slots, eos_E, max_live) -> (Slots, Drawn)
    select: Callable  # (Slots, row_b) -> these slots alone


def compiled(cfg: layers.Config, plan: DecodePlan) -> Programs:
    """The programs; the Slots that are given to one are used up by it."""
    jit = functools.partial(jax.jit, compiler_options=compiler_options(emitters=True))
    bind = lambda function: functools.partial(function, cfg, plan)
    return Programs(
        jit(bind(empty), static_argnums=(0, 1, 2)),
        jit(bind(prefill)),
        jit(functools.partial(fill, plan), donate_argnums=0),
        jit(functools.partial(widen, plan), static_argnums=1),
        jit(bind(decode_some), donate_argnums=1),
        jit(functools.partial(select, plan)),
    )


def place(plan: DecodePlan, slots: Slots) -> Slots:
    """The slots, an equal share on every device of the plan's mesh, heads split over tensor."""
    if plan.mesh is None:
        return slots
    shardings = jax.tree.map(lambda spec: NamedSharding(plan.mesh, spec), slot_specs(slots))
    return jax.lax.with_sharding_constraint(slots, shardings)


def slot_specs(slots: Slots) -> Slots:
    """How the slots are sharded: rows over data and fsdp, heads of the caches over tensor."""
    of_cache = PartitionSpec(None, *sharding.ROWS, "tensor")
    caches = dict(prompt_cache=(of_cache,) * 2, cache=(of_cache,) * 2)
    return Slots(*(sharding.ROWS for _ in slots))._replace(**caches)


def empty(cfg: layers.Config, plan: DecodePlan, B: int, S: int, dtype) -> Slots:
    """B free slots for prompts of up to S tokens. dtype: of hidden states, the compute dtype."""
    cache = layers.empty_cache(cfg, B, plan.max_new, plan.storage_dtype)
    of_prompts = jnp.zeros((cfg.layers, B, cfg.kv_heads, S, cfg.head_dim), plan.storage_dtype)
    ints, free = jnp.zeros(B, jnp.int32), jnp.ones(B, bool)
    slots = Slots(
        key_B=jax.random.split(jax.random.key(0), B),
        temperature_B=jnp.zeros(B, jnp.float32),
        limit_B=ints,
        prompt_len_B=ints + 1,
        t_B=ints,
        done_B=free,
        stopped_B=free,
        hidden_BD=jnp.zeros((B, cfg.width), dtype),
        prompt_cache=plan.place_cache((of_prompts, of_prompts)),
        cache=plan.place_cache(cache),
    )
    return place(plan, slots)


def prefill(cfg, plan: DecodePlan, phi: Tree, prompt_PS, prompt_len_P, key_PM) -> Entries:
    """Entries of these prompts. key_PM: keys of their samples, from draw.row_keys."""
    precise = jax.default_matmul_precision(matmul_precision(phi["embed"].dtype))
    compute = precise(functools.partial(layers.prefill, attend=plan.prefill_attention))
    stored = plan.to_storage(phi)
    first_PD, cache = compute(cfg, stored, prompt_PS, prompt_len_P, plan.storage_dtype)
    entries = Entries(key_PM, prompt_len_P, first_PD, plan.place_cache(cache))
    if plan.mesh is None:
        return entries
    shardings = jax.tree.map(lambda spec: NamedSharding(plan.mesh, spec), entry_specs())
    return jax.lax.with_sharding_constraint(entries, shardings)


def entry_specs() -> Entries:
    """How entries are sharded: the heads of their caches over tensor."""
    of_cache, all_of_it = PartitionSpec(None, None, "tensor"), PartitionSpec()
    return Entries(all_of_it, all_of_it, all_of_it, (of_cache, of_cache))


def widen(plan: DecodePlan, slots: Slots, S: int) -> Slots:
    """The slots with prompt caches of S positions, at least as many as before."""
    more = S - slots.prompt_cache[0].shape[3]
    pad = lambda x: jnp.pad(x, ((0, 0),) * 3 + ((0, more), (0, 0)))
    return place(plan, slots._replace(prompt_cache=tuple(pad(x) for x in slots.prompt_cache)))


def select(plan: DecodePlan, slots: Slots, row_b: jax.Array) -> Slots:
    """These slots alone, of one device."""
    caches = {
        name: tuple(x[:, row_b] for x in getattr(slots, name)) for name in ("prompt_cache", "cache")
    }
    return place(
        plan, Slots(*(x if isinstance(x, tuple) else x[row_b] for x in slots))._replace(**caches)
    )


# ---- fill


def fill(plan: DecodePlan, slots: Slots, entries: Entries, rows: NewRows) -> Slots:
    """Starts rows in their slots; on a mesh each device does so in its own."""
    if plan.mesh is None or plan.mesh.size == 1:
        return place(plan, start_rows(slots, entries, rows))

    def on_device(slots: Slots, entries: Entries, rows: NewRows) -> Slots:
        here = len(slots.t_B)
        local_R = rows.slot_R - jax.lax.axis_index(sharding.ROWS[0]) * here
        mine_R = (local_R >= 0) & (local_R < here)
        return start_rows(slots, entries, rows._replace(slot_R=jnp.where(mine_R, local_R, here)))

    specs = slot_specs(slots)
    on_devices = jax.shard_map(
        on_device,
        mesh=plan.mesh,
        in_specs=(specs, entry_specs(), PartitionSpec()),
        out_specs=specs,
        check_vma=False,
    )
    return on_devices(slots, entries, rows)


def start_rows(slots: Slots, entries: Entries, rows: NewRows) -> Slots:
    """The slots with new rows at their first token; a slot number beyond the last is left out."""
    place_R, prompt_R = rows.slot_R, rows.prompt_R
    put = lambda x, new: x.at[place_R].set(new, mode="drop")
    put_cache = lambda x, new: x.at[:, place_R].set(new[:, prompt_R], mode="drop")
    return slots._replace(
        key_B=put(slots.key_B, entries.key_PM[prompt_R, rows.sample_R]),
        temperature_B=put(slots.temperature_B, rows.temperature_R),
        limit_B=put(slots.limit_B, rows.limit_R),
        prompt_len_B=put(slots.prompt_len_B, entries.prompt_len_P[prompt_R]),
        t_B=put(slots.t_B, 0),
        done_B=put(slots.done_B, False),
        stopped_B=put(slots.stopped_B, False),
        hidden_BD=put(slots.hidden_BD, entries.first_PD[prompt_R]),
        prompt_cache=tuple(map(put_cache, slots.prompt_cache, entries.cache)),
    )


# ---- decode


def decode_some(
    cfg, plan: DecodePlan, phi: Tree, slots: Slots, eos_E: jax.Array, max_live: jax.Array
) -> tuple[Slots, Drawn]:
    """Decodes until at most `max_live` rows are unfinished, or for CHUNK tokens."""
    precise = jax.default_matmul_precision(matmul_precision(phi["embed"].dtype))
    decode, attend = precise(layers.decode), plan.slot_attention()
    head_VD, phi = layers.head_weights(cfg, phi), plan.to_storage(phi)
    B = len(slots.t_B)

    def unfinished(carry) -> jax.Array:
        step, slots, _ = carry
        return (step < CHUNK) & (jnp.sum(~slots.done_B) > max_live)

    def next_token(carry):
        """Draws the next token of every row and decodes it."""
        step, slots, columns = carry
        token_B, logp_B, drawn = draw_tokens(slots, head_VD, eos_E)
        # A free slot is decoded at its first position, where the least is read.
        t_B = jnp.where(drawn.done_B, 0, slots.t_B)
        hidden_BD, cache = decode(
            cfg, phi, token_B, t_B, slots.prompt_len_B, slots.prompt_cache, slots.cache, attend
        )
        columns = tuple(x.at[:, step].set(new) for x, new in zip(columns, (token_B, logp_B)))
        return step + 1, place(plan, drawn._replace(hidden_BD=hidden_BD, cache=cache)), columns

    columns = jnp.zeros((B, CHUNK), jnp.int32), jnp.zeros((B, CHUNK), jnp.float32)
    start = jnp.int32(0), slots, columns
    tokens = several(plan.check_every, next_token, lambda carry: carry[0], jnp.int32(CHUNK))
    steps, slots, columns = jax.lax.while_loop(unfinished, tokens, start)
    return slots, Drawn(*columns, slots.t_B, slots.done_B, slots.stopped_B, steps)


def draw_tokens(slots: Slots, head_VD: jax.Array, eos_E: jax.Array):
    """Tokens and log-probabilities [B], 0 in free slots, and the slots after these tokens."""
    logits_BV = logits_of(slots.hidden_BD, head_VD)
    token_B, logp_B = draw.draw(logits_BV, slots.key_B, slots.t_B, slots.temperature_B[:, None])
    live_B = ~slots.done_B
    token_B, logp_B = jnp.where(live_B, token_B, 0), jnp.where(live_B, logp_B, 0.0)
    stopped_B = live_B & draw.ends(token_B, eos_E)
    t_B = slots.t_B + live_B
    drawn = slots._replace(
        t_B=t_B,
        done_B=slots.done_B | stopped_B | (t_B >= slots.limit_B),
        stopped_B=slots.stopped_B | stopped_B,
    )
    return token_B, logp_B, drawn
