"""The records that every module shares: parameters, rows of tokens, training state, and the
contract of a method.

Dimension letters, the same in the whole code base: B rows, T positions of a completion (queries), S
key positions (prompt positions where the two differ), P prompts, M samples per prompt (B = P * M,
the rows of a prompt contiguous), D width, N query heads, K kv heads, G heads per kv head, H head
width, F mlp width, V vocabulary, L layers, R LoRA rank. Nothing here computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import struct

from bridge_jax.grading.outcome import Rule

Tree = Any  # a pytree of arrays
Metrics = dict[str, jax.Array]  # "group/name" -> scalar


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Axes of a parameter that are the rows of a matrix, and its columns.

    Along the others (layers) matrices are stacked.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]


@struct.dataclass
class Params:
    """What a method trains; `None` where it has no such part.

    Also holds gradients and labels of the same shape.
    """

    theta: Tree  # base weights, fp32 master copy, the tree of the family's tensor table
    theta_hat: Tree = None  # RL-only shadow of theta, same shapes
    w: Tree = None  # LoRA adapter: tensor path -> {"A": [L, in..., R], "B": [L, R, out...]}, fp32


@struct.dataclass
class Packing:
    """Which samples share a row of a forward pass (packing.py); R rows, K places in each."""

    slot_RK: jax.Array  # int32, index of the sample; -1: an empty place
    used: jax.Array  # int32 scalar, rows that hold samples: the first ones


@struct.dataclass
class Sequences:
    """Completions behind shared prompts: row b continues prompt b // M.

    Masks follow from the lengths alone.
    """

    prompt_PS: jax.Array  # int32, right-padded with any id
    prompt_len_P: jax.Array  # int32 in [1, S]
    # int32, completion ids, right-padded with any id; the end-of-sequence token is part of it
    tokens_BT: jax.Array
    length_B: jax.Array  # int32 in [0, T], end-of-sequence token counted; 0 marks a padding row
    # None: each completion is a row, and a prompt is computed once for all of its samples
    packing: Packing | None = None


@struct.dataclass
class Rollouts:
    """Sampled completions as raw facts; advantages belong to the method."""

    seqs: Sequences
    logp_BT: jax.Array  # float32, the sampler's log-probabilities at `temperature`; 0 beyond length
    reward_B: jax.Array  # float32, 1 correct, 0 not
    temperature: jax.Array  # float32 scalar, > 0, at which the tokens were drawn


@struct.dataclass
class Batch:
    """What one update reads."""

    demos: Sequences | None  # expert rows (M = 1); None for a method that reads none
    rollouts: dict[str, Rollouts]  # one entry for each policy that sampled this step


@struct.dataclass
class TrainState:
    """All that training changes."""

    step: jax.Array  # int32 scalar, steps taken, skipped ones included
    params: Params
    opt_state: Tree
    # frozen reference policy (phi at the start) where a method has a KL term, else None
    ref: Tree = None
    # fp32 scalar, the measured gain of the step before where lam follows it, else None
    last_gain: Tree = None


class Policy(NamedTuple):
    """What a method may know of the model: four pure functions."""

    # (phi, Sequences, temperature) -> (logp_BT, entropy_BT) float32; rows beyond length undefined
    logp: Callable
    merge: Callable  # (theta, w) -> phi in the compute dtype; w may be None
    pull: Callable  # (w, G) -> gradient in w, fp32: the transpose of merge in w
    init_w: Callable  # key -> w with B = 0, so that merge(theta, w) == merge(theta, None)


class BatchSpec(NamedTuple):
    """What a step needs before its update."""

    sampled_by: tuple[str, ...]  # policies that sample: (), ("theta",) or ("theta", "theta_hat")
    demos: bool  # whether update reads Batch.demos


@dataclasses.dataclass(frozen=True)
class Method:
    """One training algorithm as pure functions."""

    init: Callable  # (theta, key) -> TrainState
    # (TrainState, Batch) -> (TrainState, Metrics); jit-compiled by the caller, once a kind of step
    update: Callable
    # (Params, name of a sampling policy) -> phi; "theta" is also what is evaluated and exported
    policy: Callable
    # kinds of steps: one, or several for a method that changes its mind
    step_kinds: tuple[BatchSpec, ...]
    # step (0 for the first) -> index into step_kinds; of the host's step, so that asking never
    # waits for the device
    kind_of_step: Callable = lambda step: 0
    # rounds in which groups of equal rewards are replaced by groups of further prompts
    resample_rounds: int = 0
    # parts of Params that are, with their moments, in the host's memory between steps
    on_host: tuple[str, ...] = ()
    # whether Batch.demos are demos of the very prompts of Batch.rollouts, in their order
    paired: bool = False
    # steps at which the optimizer, its schedules with it, begins anew
    restarts: tuple[int, ...] = ()
    # settings that take effect in the course of a run: key of the config -> the step (1 for the
    # first) that they need for it
    milestones: dict[str, int] = dataclasses.field(default_factory=dict)

    def batch_spec(self, step: int) -> BatchSpec:
        """What this step needs."""
        return self.step_kinds[self.kind_of_step(step)]

    @property
    def sampling_policies(self) -> tuple[str, ...]:
        """Every policy that ever samples."""
        return tuple(dict.fromkeys(name for kind in self.step_kinds for name in kind.sampled_by))

    @property
    def demos(self) -> bool:
        """Whether demonstrations are ever read."""
        return any(kind.demos for kind in self.step_kinds)


class Problem(NamedTuple):
    """One question of a task."""

    id: int  # unique within the task and stable across runs: part of the sampling key
    question: str  # what is asked, without instructions
    answer: str  # gold answer
    solution: str  # expert completion, end-of-sequence left out; "" where there is none
    level: int  # difficulty as the task counts it, 0 where it does not
    rule: Rule = Rule()  # how the answer is compared


@dataclasses.dataclass(frozen=True)
class Task:
    """Problems with a verifier. Built by `make(Config) -> Task` of one file in tasks/."""

    name: str
    train: tuple[Problem, ...]  # RL prompts
    demos: tuple[Problem, ...]  # expert demonstrations, each with a solution
    # held-out problems by name; the first is the one that runs are judged by
    splits: dict[str, tuple[Problem, ...]]
    # Problem -> chat messages [{"role", "content"}], the prompt of SFT, RL and evaluation
    messages: Callable
    # completion text -> the answer it gives, None without one; strict: what training rewards
    extract: Callable
    # the same for evaluation, which reports both: also reads answers that break the asked form
    lenient: Callable
    # (Problem, answer) -> Outcome, or a Claim that only grading.pool can decide; cheap, pure Python
    compare: Callable
    # texts that end a completion where the first of them ends, such as the mark of a next question
    stop: tuple[str, ...] = ()
    # further right solutions of a demonstration's problem, by its id: used where the first one is
    # too long
    other_solutions: Mapping[int, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    # what became of the rows that demonstrations were chosen from (traces.Chosen); empty where they
    # are generated
    demo_counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
