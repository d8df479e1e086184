"""Work by counting, per phase and over all chips: FLOPs of the matmuls, bytes to and from memory.

No compiler is asked.

FLOPs: 2 per weight of a matrix and token; 4 per layer, head, head width and pair of a query and a
key that is computed, masked or not (a kernel skips pairs); a backward pass twice its forward pass,
what remat computes again once more; the head likewise, its logits always computed again. A prompt
is computed once for all rows of a micro-batch. Left out: norms, softmax, rotations, LoRA's
products, the optimizer's arithmetic (all small, or bound by memory). Bytes: weights as often as
chips read them, states and gradients, activations written and read between matmuls, scores, caches.
A lower bound, as everything in a roofline: what stays in fast memory between two operations is not
known before.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import numpy as np
from jax.interpreters import partial_eval

from bridge_jax.distributed.sharding import kv_copies
from bridge_jax.models import layers
from bridge_jax.models.attention import form_of
from bridge_jax.training import budget, policy, programs, settings
from bridge_jax.training.build import Setup
from bridge_jax.types import Tree

# remat.REMAT -> passes computed again: of weights, of attention
AGAIN = {
    "none": (0, 0),
    "dots": (0, 1),
    "full": (1, 1),
}

LOGIT_BYTES = 12  # of one entry of the logits: written once and read twice, fp32


class Kernel(NamedTuple):
    """How attention is computed."""

    skips: bool  # whether pairs that a causal mask hides are left out, tile by tile
    # products of its backward pass, in forward passes: a kernel computes the scores again
    backward: float
    # of one pair of query and key, forward: fp32 scores written, read and written again, weights
    # read
    score_bytes: int


KERNELS = {
    "xla": Kernel(False, 2.0, 16),
    "splash": Kernel(True, 3.5, 0),
    "cudnn": Kernel(False, 2.5, 0),
}


class Work(NamedTuple):
    """Of one phase, over all chips."""

    flops: float
    bytes: float


class Rows(NamedTuple):
    """Padded sizes of what one pass computes."""

    prompts: float  # P, as often as they are computed
    rows: float  # B
    S: int
    T: int

    @property
    def tokens(self) -> float:
        """Positions that pass through the layers."""
        return self.prompts * self.S + self.rows * self.T

    def pairs(self, kernel: Kernel) -> float:
        """Of queries and keys: every prompt token meets the prompt, every completion token the
        prompt and the completion.
        """
        seen = 0.5 if kernel.skips else 1.0
        return self.prompts * self.S**2 * seen + self.rows * self.T * (self.S + self.T * seen)


def kernel_of(setup: Setup) -> Kernel:
    """That of training and prefill."""
    model = setup.settings.model
    return KERNELS[
        form_of(
            model.attention,
            setup.mesh,
            settings.dtype_of("model.dtype", model.dtype),
            setup.cfg.head_dim,
            layers.has_windows(setup.cfg),
        )
    ]


def chip_bytes(tree: Tree, on_host: bool = False) -> int:
    """Of what one device holds of a tree of shapes with shardings.

    on_host: of what lies in the host's memory for it instead.
    """
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if (leaf.sharding.memory_kind == "pinned_host") == on_host
    )


def forward_flops(
    cfg: layers.Config,
    rows: Rows,
    kernel: Kernel = KERNELS["xla"],
    again: tuple[int, int] = (0, 0),
    backward: bool = False,
) -> float:
    """Of one pass without the head.

    again: further forward passes of weights and of attention that remat makes.
    """
    weights, attention = 1 + 2 * backward + again[0], 1 + kernel.backward * backward + again[1]
    matrices = budget.matrix_weights(cfg) - budget.head_weights(cfg)
    products = 4 * cfg.layers * cfg.heads * cfg.head_dim * rows.pairs(kernel)
    return 2 * matrices * rows.tokens * weights + products * attention


def head_flops(cfg: layers.Config, tokens: float, backward: bool = False) -> float:
    """Of the output projection; a backward pass computes the logits again."""
    return 2 * budget.head_weights(cfg) * tokens * (4 if backward else 1)


def pass_bytes(setup: Setup, rows: Rows, microbatches: float, backward: bool) -> float:
    """Of one pass over the rows in so many micro-batches, forward alone or with its backward pass."""
    cfg, s = setup.cfg, setup.settings
    wide = settings.dtype_of("model.dtype", s.model.dtype).dtype.itemsize
    again = AGAIN[s.model.remat] if backward else (0, 0)
    kernel = kernel_of(setup)
    weights, attention = 1 + 2 * backward + again[0], 1 + kernel.backward * backward + again[1]
    # devices that read one and the same weight
    readers = setup.mesh.size / setup.mesh.shape["tensor"]
    matrices = (
        budget.matrix_weights(cfg) * wide * readers * microbatches * (1 + backward + again[0])
    )
    # each sum; accumulated
    gradients = budget.matrix_weights(cfg) * 4 * microbatches * (readers + 2) if backward else 0
    # written and read
    between = 4 * cfg.width + 2 * (2 * cfg.heads + 2 * cfg.kv_heads) * cfg.head_dim + 6 * cfg.mlp
    activations = rows.tokens * cfg.layers * between * wide * weights
    scores = rows.pairs(kernel) * cfg.layers * cfg.heads * kernel.score_bytes * attention
    logits = rows.rows * rows.T * cfg.vocab * LOGIT_BYTES * (3 if backward else 1)
    heads = budget.head_weights(cfg) * wide * readers * microbatches * (4 if backward else 1)
    # hidden states are read for each block of the vocabulary, twice backward, where their fp32
    # gradient is added to
    blocks = (
        max(1.0, rows.rows * rows.T / (microbatches * readers * s.model.logp_chunk))
        if microbatches
        else 0.0
    )
    hidden = rows.rows * rows.T * cfg.width * blocks * (3 * wide + 2 * 4 if backward else wide)
    return matrices + gradients + activations + scores + logits + heads + hidden


def passes(update: jax.stages.Traced, batch: Tree, S: int, T: int) -> dict[str, float]:
    """The method's own ledger (budget/*) for rows of full length: what of its update decides it,
    run with numbers.
    """
    closed = update.jaxpr
    metrics = sorted(update.out_info[1])
    wanted = [key.startswith("budget/") for key in metrics]
    wanted = [False] * (len(jax.tree.leaves(update.out_info)) - len(metrics)) + wanted
    jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, wanted)
    full = {"prompt_len_P": S, "length_B": T}
    name = lambda path: getattr(path[-1], "name", "")
    leaves = [(name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(batch)]
    leaves = [("state", None)] * (len(used) - len(leaves)) + leaves
    values = []
    for (field, leaf), read in zip(leaves, used):
        assert not read or field in full, f"the ledger of an update hangs on {field}"
        values += [np.full(leaf.shape, full[field], np.int32)] if read else []
    with jax.default_device(jax.devices("cpu")[0]):
        found = jax.core.eval_jaxpr(jaxpr, closed.consts, *values)
    return dict(zip((key for key in metrics if key.startswith("budget/")), map(float, found)))


def prompts_of(setup: Setup, rows: float) -> float:
    """How many prompts are computed with so many sampled rows of whole groups: one for each part of
    a group that a micro-batch or a device has; packed, one for each row.
    """
    batch = setup.settings.batch
    if batch.pack:
        return rows
    at_once = min(batch.microbatch, batch.rollout_rows)
    M = min(batch.samples_per_prompt, at_once)  # rows of a prompt in a micro-batch
    return rows / M * policy.parts_of_group(at_once // M, M, setup.mesh)


def update(setup: Setup, spent: dict[str, float], bucket: int, state: Tree) -> Work:
    """Of one update whose ledger is `spent`."""
    s, S, T = setup.settings, bucket, setup.settings.rollout.max_new
    batch, P = s.batch, s.batch.prompts_per_step
    demo_rows = spent.get("budget/demo_tokens", 0.0) / T
    rows = spent["budget/gradient_tokens"] / T - demo_rows
    learnt = [Rows(prompts_of(setup, rows), rows, S, T), Rows(demo_rows, demo_rows, S, T)]
    whole = P * S + batch.rollout_rows * T
    read = Rows(prompts_of(setup, batch.rollout_rows), batch.rollout_rows, S, T)
    kernel, again, forward_passes = (
        kernel_of(setup),
        AGAIN[s.model.remat],
        spent.get("budget/forward_tokens", 0.0) / whole,
    )
    flops = sum(
        forward_flops(setup.cfg, part, kernel, again, True)
        + head_flops(setup.cfg, part.rows * T, True)
        for part in learnt
    )
    flops += forward_passes * (
        forward_flops(setup.cfg, read, kernel) + head_flops(setup.cfg, read.rows * T)
    )
    own_parts = getattr(s.method, "sft_microbatches", 0) if demo_rows else 0
    microbatches = [
        math.ceil(rows / batch.microbatch),
        max(own_parts, math.ceil(demo_rows / batch.microbatch)),
    ]
    moved = sum(pass_bytes(setup, part, n, True) for part, n in zip(learnt, microbatches))
    moved += forward_passes * pass_bytes(setup, read, batch.rollout_microbatches, False)
    return Work(flops, moved + 2 * chip_bytes(state) * setup.mesh.size)


def logp(setup: Setup, bucket: int) -> Work:
    """Of one forward pass over the sampled rows of a step."""
    batch, T = setup.settings.batch, setup.settings.rollout.max_new
    rows = Rows(prompts_of(setup, batch.rollout_rows), batch.rollout_rows, bucket, T)
    flops = forward_flops(setup.cfg, rows, kernel_of(setup)) + head_flops(setup.cfg, rows.rows * T)
    return Work(flops, pass_bytes(setup, rows, batch.rollout_microbatches, False))


def prefill(setup: Setup, bucket: int, P: int) -> Work:
    """Of the prompts of one call of the sampler, their cache written."""
    cfg, s, rows, kernel = setup.cfg, setup.settings, Rows(P, 0, bucket, 0), kernel_of(setup)
    wide = settings.dtype_of("model.dtype", s.model.dtype).dtype.itemsize
    readers = setup.decode_mesh.size / setup.decode_mesh.shape["tensor"]
    between = 4 * cfg.width + 2 * (2 * cfg.heads + 2 * cfg.kv_heads) * cfg.head_dim + 6 * cfg.mlp
    moved = (
        (budget.matrix_weights(cfg) - budget.head_weights(cfg)) * wide * readers
        + rows.tokens * cfg.layers * between * wide
        + rows.pairs(kernel) * cfg.layers * cfg.heads * kernel.score_bytes
        + P * bucket * token_cache(setup)
    )
    return Work(forward_flops(cfg, rows, kernel), moved)


def token_cache(setup: Setup) -> int:
    """Bytes that one position of one row takes in the cache, all layers."""
    wide = settings.dtype_of(
        "rollout.cache_dtype", setup.settings.rollout.cache_dtype
    ).dtype.itemsize
    return 2 * setup.cfg.layers * setup.cfg.kv_heads * setup.cfg.head_dim * wide


def loops(setup: Setup) -> tuple[tuple[int, ...], ...]:
    """Of each loop of one call of the sampler, where its cache segments end, in tokens."""
    return programs.plan_of(setup).loops


def decode(setup: Setup, bucket: int, P: int) -> Work:
    """Of max_new tokens for all samples of P prompts: once a token the weights, and the cache up to
    its segment's end.
    """
    cfg, s = setup.cfg, setup.settings
    B, T = P * s.batch.samples_per_prompt, s.rollout.max_new
    wide = settings.dtype_of("model.dtype", s.model.dtype).dtype.itemsize
    readers = setup.decode_mesh.size / setup.decode_mesh.shape["tensor"]
    ends = [end for loop in loops(setup) for end in loop]
    # of a row's positions, in the mean
    read = sum(end * (end - begin) for begin, end in zip([0, *ends], ends)) / T
    flops = (
        B
        * T
        * (
            2 * budget.matrix_weights(cfg)
            + 4 * cfg.layers * cfg.heads * cfg.head_dim * (bucket + read)
        )
    )
    copies = kv_copies(setup.decode_mesh.shape["tensor"], cfg.kv_heads)
    cache = (B * read + P * bucket) * token_cache(setup) * copies
    return Work(
        flops,
        T * (budget.matrix_weights(cfg) * wide * readers + cache + B * cfg.vocab * LOGIT_BYTES),
    )
