"""Sampling of a queue of rows that is longer than a batch: a finished row's slot gets the next row.

    slots = a batch of free slots
    while rows wait or decode:
        fill free slots with waiting rows       (each prompt is prefilled once for its rows)
        decode until a few slots are free       (`decode_some`, at most CHUNK tokens)
        hand out the rows that have ended

So a batch does not wait for its longest row. A row's tokens are those of sampler.sample, whatever
its slot and its neighbours. The loop runs on the host, which sees the devices' results once in a
`decode_some`; the rows that it hands out are read and graded while the next call runs.

Near the end, when no row waits, free slots stay free; under a plan with compactions the unfinished
half of the slots goes on alone. The device side is slots.py; `make` is where to start.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bridge_jax.data.batches import Prompts, prompt_batch
from bridge_jax.distributed import sharding
from bridge_jax.sampling import slots as device
from bridge_jax.sampling.decode_plan import DecodePlan
from bridge_jax.sampling.draw import row_keys
from bridge_jax.sampling.sampler import Samples
from bridge_jax.types import Sequences, Tree

# This share of the slots is refilled at once: less keeps more slots busy, more makes fewer calls.
REFILLED_SHARE = 16


class Request(NamedTuple):
    """One row that is asked for."""

    prompt: int  # place of its prompt in the Prompts
    sample: int = 0  # its key is fold_in(seed, 0, problem id, sample)
    temperature: float = 1.0  # 0 is greedy
    limit: int = 2**31 - 1  # most new tokens, beside the plan's max_new


class Finished(NamedTuple):
    """A row that has ended, on the host."""

    request: Request
    tokens_T: np.ndarray  # int32, its own tokens alone, the eos id included
    logp_T: np.ndarray  # float32
    stopped: bool  # ended by an eos id, not by its limit


def as_samples(ended: Sequence[Finished]) -> Samples:
    """These rows as Samples on the host, padded to the longest; their prompts are left empty."""
    B, T = len(ended), max(len(row.tokens_T) for row in ended)
    tokens_BT, logp_BT = np.zeros((B, T), np.int32), np.zeros((B, T), np.float32)
    for b, row in enumerate(ended):
        tokens_BT[b, : len(row.tokens_T)] = row.tokens_T
        logp_BT[b, : len(row.logp_T)] = row.logp_T
    length_B = np.asarray([len(row.tokens_T) for row in ended], np.int32)
    empty = np.zeros((B, 1), np.int32), np.ones(B, np.int32)
    stopped_B = np.asarray([row.stopped for row in ended])
    return Samples(Sequences(*empty, tokens_BT, length_B), logp_BT, stopped_B)


class Sizes(NamedTuple):
    """Sizes of a queue's batches."""

    slots: int
    prompts: int  # prefilled at once
    refilled: int  # slots that are refilled at once
    samples: int  # most samples of a prompt


class Refill(NamedTuple):
    """What a queue is sampled with; `make` makes it."""

    programs: device.Programs
    plan: DecodePlan
    phi: Tree
    seed_key: jax.Array
    eos_E: jax.Array
    buckets: tuple[int, ...]  # of prompt lengths

    def __call__(
        self,
        prompts: Prompts,
        requests: Sequence[Request],
        slots: int,
        count_steps: Callable = lambda steps: None,
    ) -> Iterator[list[Finished]]:
        """Every request, as it ends, in lists that may be empty; about `slots` rows at once.

        While the caller works on a list, the devices decode. Short prompts come first. count_steps
        is called with the decode steps of each call of decode_some.
        """
        if not requests:
            return
        sizes = sizes_of(self.plan, requests, slots)
        waiting = Waiting(prompts, requests, sizes.prompts)
        batch, finished = Batch.empty(self, sizes.slots, waiting.width(self.buckets)), []
        while waiting or batch.tenants:
            while waiting and batch.free() >= sizes.refilled:
                rows = waiting.take(sizes.refilled, functools.partial(self._prefill, sizes))
                batch.start(rows, sizes.refilled)
            batch.decode(batch.size - sizes.refilled if waiting else batch.next_size())
            yield finished
            finished = batch.collect(count_steps)
            if not waiting:
                batch.compact()
        yield finished

    def _prefill(self, sizes: Sizes, prompts: Prompts, places: Sequence[int]) -> device.Entries:
        """Entries of these prompts, filled up with copies of the last one."""
        filled = [*places, *places[-1:] * (sizes.prompts - len(places))]
        batch = prompt_batch(prompts, filled, self.buckets)
        key_PM = _row_keys(self.seed_key, 0, batch.ids_P, sizes.samples)
        given = batch.prompt_PS, batch.prompt_len_P, key_PM.reshape(sizes.prompts, -1)
        if self.plan.mesh is not None:
            given = jax.device_put(given, sharding.of_rows(self.plan.mesh, given))
        return self.programs.prefill(self.phi, *given)


_row_keys = jax.jit(row_keys, static_argnums=3)


def make(
    programs: device.Programs,
    plan: DecodePlan,
    phi: Tree,
    seed: int,
    eos_ids: Sequence[int],
    buckets: tuple[int, ...],
) -> Refill:
    """refill(prompts, requests, slots) -> lists of Finished. programs: slots.compiled(cfg, plan).

    phi: merged weights in the compute dtype, on the plan's mesh.
    """
    eos_E = jnp.asarray(eos_ids, jnp.int32)
    return Refill(programs, plan, phi, jax.random.key(seed), eos_E, tuple(buckets))


def sizes_of(plan: DecodePlan, requests: Sequence[Request], slots: int) -> Sizes:
    """Sizes that suit these requests: equally many slots and prompts on every device."""
    spread = 1 if plan.mesh is None else plan.mesh.shape["data"] * plan.mesh.shape["fsdp"]
    whole = lambda number: -(-max(1, number) // spread) * spread
    B = whole(min(slots, len(requests)))
    refilled = max(1, B // REFILLED_SHARE)
    rows_of_prompt = len(requests) // len({request.prompt for request in requests})
    samples = 1 + max(request.sample for request in requests)
    return Sizes(B, whole(refilled // rows_of_prompt), refilled, samples)


class Started(NamedTuple):
    """Requests whose prompts are prefilled, and the place of each prompt in the entries."""

    entries: device.Entries
    requests: list[Request]
    places: list[int]


class Waiting:
    """The queue: requests by prompt, short prompts first, prefilled a few prompts at a time."""

    def __init__(self, prompts: Prompts, requests: Sequence[Request], at_once: int):
        of_prompt: dict[int, list[Request]] = collections.defaultdict(list)
        for request in requests:
            of_prompt[request.prompt].append(request)
        order = sorted(of_prompt, key=lambda i: len(prompts.tokens[i]))
        self.prompts = prompts
        self.batches = collections.deque(
            [(i, of_prompt[i]) for i in order[first : first + at_once]]
            for first in range(0, len(order), at_once)
        )
        self.entries: device.Entries | None = None
        # (place in the entries, request) of the prompts that are prefilled
        self.ready: collections.deque[tuple[int, Request]] = collections.deque()

    def __bool__(self) -> bool:
        return bool(self.ready or self.batches)

    def width(self, buckets: tuple[int, ...]) -> int:
        """The bucket of the first prompts."""
        first = [i for i, _ in self.batches[0]]
        return prompt_batch(self.prompts, first, buckets).prompt_PS.shape[1]

    def take(self, count: int, prefill: Callable) -> Started:
        """The next rows, at most `count`, all of one set of entries."""
        if not self.ready:
            batch = self.batches.popleft()
            self.entries = prefill(self.prompts, [i for i, _ in batch])
            self.ready.extend(
                (place, request) for place, (_, own) in enumerate(batch) for request in own
            )
        taken = [self.ready.popleft() for _ in range(min(count, len(self.ready)))]
        places, requests = zip(*taken)
        return Started(self.entries, list(requests), list(places))


class Tenant(NamedTuple):
    """The row that a slot holds, and its tokens so far, in pieces."""

    request: Request
    tokens: list[np.ndarray]
    logp: list[np.ndarray]

    @property
    def length(self) -> int:
        """Tokens so far."""
        return sum(map(len, self.tokens))


class Batch:
    """The slots of a queue: their state on the devices, and who lives in which of them."""

    def __init__(self, refill: Refill, slots: device.Slots):
        self.refill, self.slots = refill, slots
        self.tenants: dict[int, Tenant] = {}
        self.drawn: device.Drawn | None = None
        self.compactions_left = refill.plan.compactions

    @classmethod
    def empty(cls, refill: Refill, B: int, S: int) -> Batch:
        """B free slots."""
        dtype = refill.phi["embed"].dtype
        return cls(refill, refill.programs.empty(B, S, jnp.dtype(dtype)))

    @property
    def size(self) -> int:
        """Number of slots."""
        return len(self.slots.t_B)

    def live(self) -> int:
        """Slots with a row in them."""
        return len(self.tenants)

    def free(self) -> int:
        """Slots without."""
        return self.size - self.live()

    def start(self, started: Started, count: int) -> None:
        """Puts rows into free slots. count: number of rows that `fill` is compiled for."""
        programs, S = self.refill.programs, started.entries.cache[0].shape[3]
        if S > self.slots.prompt_cache[0].shape[3]:
            self.slots = programs.widen(self.slots, S)
        free = [b for b in range(self.size) if b not in self.tenants]
        chosen = free[: len(started.requests)]
        self.tenants |= {b: Tenant(r, [], []) for b, r in zip(chosen, started.requests)}
        T = self.refill.plan.max_new
        columns = (
            (chosen, np.int32, self.size),
            (started.places, np.int32, 0),
            ([r.sample for r in started.requests], np.int32, 0),
            ([r.temperature for r in started.requests], np.float32, 0),
            ([min(r.limit, T) for r in started.requests], np.int32, 1),
        )
        pad = lambda values, dtype, rest: np.asarray(
            [*values, *[rest] * (count - len(values))], dtype
        )
        rows = device.NewRows(*(pad(*column) for column in columns))
        self.slots = programs.fill(self.slots, started.entries, rows)

    def decode(self, max_live: int) -> None:
        """Starts decode_some, and returns before it has ended."""
        refill = self.refill
        self.slots, self.drawn = refill.programs.decode_some(
            refill.phi, self.slots, refill.eos_E, jnp.int32(max_live)
        )

    def collect(self, count_steps: Callable) -> list[Finished]:
        """The rows that ended in the last decode_some, whose end this waits for."""
        drawn = jax.device_get(self.drawn)
        count_steps(int(drawn.steps))
        finished = []
        for b, tenant in list(self.tenants.items()):
            new = drawn.t_B[b] - tenant.length
            tenant.tokens.append(drawn.tokens_BC[b, :new].copy())
            tenant.logp.append(drawn.logp_BC[b, :new].copy())
            if drawn.done_B[b]:
                row = np.concatenate(tenant.tokens), np.concatenate(tenant.logp)
                finished.append(Finished(tenant.request, *row, bool(drawn.stopped_B[b])))
                del self.tenants[b]
        return finished

    def next_size(self) -> int:
        """Unfinished rows down to which to decode when none waits."""
        return self.size // 2 if self.compactions_left and self.size > 1 else 0

    def compact(self) -> None:
        """Goes on with half of the slots, as often as at most half of them are live."""
        while self.tenants and self.next_size() >= self.live():
            kept = sorted(range(self.size), key=lambda b: b not in self.tenants)[: self.size // 2]
            self.slots = self.refill.programs.select(self.slots, np.asarray(kept, np.int32))
            self.tenants = {i: self.tenants[b] for i, b in enumerate(kept) if b in self.tenants}
            self.compactions_left -= 1
