"""Records that all modules share: parameters, token sequences, training state, Method, Task.

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
    """How a parameter is read as a stack of matrices: axes of the rows, axes of the columns.

    All other axes, such as the layers, are stacked.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]


@struct.dataclass
class Params:
    """Trained parameters; `None` for a part that the method does not have.

    Gradients and optimizer labels have the same structure.
    """

    theta: Tree  # base weights, fp32 master copy, the tree of the family's tensor table
    theta_hat: Tree = None  # RL-only shadow of theta, same shapes
    w: Tree = None  # LoRA adapter: tensor path -> {"A": [L, in..., R], "B": [L, R, out...]}, fp32


@struct.dataclass
class Packing:
    """Which samples share a row of a forward pass (packing.py): R rows of K slots."""

    slot_RK: jax.Array  # int32, index of the sample; -1: an empty slot
    used: jax.Array  # int32 scalar, number of rows that hold samples; they come first


@struct.dataclass
class Sequences:
    """Prompts and their completions: row b continues prompt b // M.

    Masks follow from the lengths, never from a padding id.
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
    """Sampled completions with their rewards; each method computes its own advantages."""

    seqs: Sequences
    logp_BT: jax.Array  # float32, the sampler's log-probabilities at `temperature`; 0 beyond length
    reward_B: jax.Array  # float32, 1 correct, 0 not
    temperature: jax.Array  # float32 scalar, > 0, at which the tokens were drawn


@struct.dataclass
class Batch:
    """The data of one update."""

    demos: Sequences | None  # demonstrations (M = 1); None in a step that reads none
    rollouts: dict[str, Rollouts]  # one entry for each policy that sampled this step


@struct.dataclass
class TrainState:
    """Everything that an update changes."""

    step: jax.Array  # int32 scalar, steps taken, skipped ones included
    params: Params
    opt_state: Tree
    # frozen reference policy (phi at the start) where a method has a KL term, else None
    ref: Tree = None
    # fp32 scalar, the measured gain of the step before where lam follows it, else None
    last_gain: Tree = None


class Policy(NamedTuple):
    """The model as a method sees it: four pure functions."""

    # (phi, Sequences, temperature) -> (logp_BT, entropy_BT) float32; rows beyond length undefined
    logp: Callable
    merge: Callable  # (theta, w) -> phi in the compute dtype; w may be None
    pull: Callable  # (w, G) -> gradient in w, fp32: the transpose of merge in w
    init_w: Callable  # key -> w with B = 0, so that merge(theta, w) == merge(theta, None)


class BatchSpec(NamedTuple):
    """The data that one kind of step needs."""

    sampled_by: tuple[str, ...]  # sampling policies: (), ("theta",) or ("theta", "theta_hat")
    demos: bool  # whether update reads Batch.demos


@dataclasses.dataclass(frozen=True)
class Method:
    """One training algorithm as pure functions."""

    init: Callable  # (theta, key) -> TrainState
    # (TrainState, Batch) -> (TrainState, Metrics); the caller compiles it once per kind of step
    update: Callable
    # (Params, name of a sampling policy) -> phi; "theta" is also what is evaluated and exported
    policy: Callable
    # one entry, or several for a method whose steps differ in the data they read
    step_kinds: tuple[BatchSpec, ...]
    # step (int, 0 for the first) -> index into step_kinds. A host function, so that a call never
    # waits for the device.
    kind_of_step: Callable = lambda step: 0
    # rounds in which groups of equal rewards are replaced by groups of further prompts
    resample_rounds: int = 0
    # parts of Params that live, with their moments, in host memory between steps
    on_host: tuple[str, ...] = ()
    # whether Batch.demos belong to the prompts of Batch.rollouts, in the same order
    paired: bool = False
    # steps at which the optimizer state and its schedules start afresh
    restarts: tuple[int, ...] = ()
    # settings that take effect during a run: config key -> step (1 for the first) of the effect
    milestones: dict[str, int] = dataclasses.field(default_factory=dict)
    # metrics that some steps have not: NaN there, and left out of the step's line
    not_in_every_step: tuple[str, ...] = ()
    # (config/batch_table.py's table of the run) -> None; ValueError where it does not suit the
    # method
    check_batch: Callable = lambda table: None
    # least number of micro-batches of the demonstrations
    demo_microbatches: int = 0
    # number of steps after which their work repeats: the first does the most, the others alike less
    period: int = 1

    def batch_spec(self, step: int) -> BatchSpec:
        """The data that this step needs."""
        return self.step_kinds[self.kind_of_step(step)]

    @property
    def sampling_policies(self) -> tuple[str, ...]:
        """Every policy that ever samples."""
        return tuple(dict.fromkeys(name for kind in self.step_kinds for name in kind.sampled_by))

    @property
    def demos(self) -> bool:
        """Whether any kind of step reads demonstrations."""
        return any(kind.demos for kind in self.step_kinds)


class Problem(NamedTuple):
    """One question of a task."""

    id: int  # unique within the task and stable across runs: part of the sampling key
    question: str  # without instructions
    answer: str  # gold answer
    solution: str  # demonstration without an end-of-sequence token; "" where there is none
    level: int  # difficulty on the task's own scale; 0 where it has none
    rule: Rule = Rule()  # how the answer is compared


@dataclasses.dataclass(frozen=True)
class Task:
    """Problems with a verifier, built by `make(Config) -> Task` of a file in tasks/."""

    name: str
    train: tuple[Problem, ...]  # RL prompts
    demos: tuple[Problem, ...]  # demonstrations: problems with a solution
    # held-out problems by name; runs are ranked by the first split
    splits: dict[str, tuple[Problem, ...]]
    # Problem -> chat messages [{"role", "content"}], the prompt of SFT, RL and evaluation
    messages: Callable
    # completion text -> its answer, or None. Strict: training rewards this reading.
    extract: Callable
    # the lenient reading, which also accepts other forms of an answer; evaluation reports both
    lenient: Callable
    # (Problem, answer) -> Outcome, or a DeferredComparison, which only grading.pool can decide;
    # cheap, pure Python
    compare: Callable
    # stop strings, such as the mark of a next question: a completion ends with the first of them
    stop: tuple[str, ...] = ()
    # further correct solutions by id of the problem, for where the first one is too long
    other_solutions: Mapping[int, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    # id of a problem -> how often its demonstration comes in an epoch, where it is not once
    demo_weights: Mapping[int, int] = dataclasses.field(default_factory=dict)
    # how the rows of the traces were used (traces.count_rows); empty for generated demonstrations
    demo_counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    # fingerprint of the code of the user's reward function; "" without one
    reward_code: str = ""
