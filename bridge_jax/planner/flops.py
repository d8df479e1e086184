"""Counted work per phase, over all chips: FLOPs of the matmuls, bytes to and from memory.

FLOPs: 2 per token and weight of a matrix; 4 per layer, head, head width and computed pair of query
and key, masked or not (some kernels skip masked pairs). A backward pass counts as two forward
passes, and recomputation by remat as one more; the logits are always recomputed. A prompt is
computed once for all its rows in a micro-batch. Left out: norms, softmax, rotary embeddings, LoRA's
products, the optimizer's arithmetic (all small, or bound by memory).

Bytes: weights as often as chips read them, states and gradients, activations written and read
between matmuls, attention scores, caches. A lower bound, as in every roofline; reuse in fast memory
between two operations is not known. No compiler is involved.
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
RECOMPUTED = {
    "none": (0, 0),
    "dots": (0, 1),
    "full": (1, 1),
}

LOGIT_BYTES = 12  # of one entry of the logits: written once and read twice, fp32


class Kernel(NamedTuple):
    """Costs of an attention kernel."""

    skips: bool  # whether pairs that a causal mask hides are left out, tile by tile
    # products of the backward pass in units of the forward pass; kernels recompute the scores
    backward: float
    # bytes per pair of query and key, forward: fp32 scores written, read and rewritten, weights
    # read
    score_bytes: int


KERNELS = {
    "xla": Kernel(False, 2.0, 16),
    "splash": Kernel(True, 3.5, 0),
    "cudnn": Kernel(True, 2.5, 0),
    "cudnn, masked": Kernel(False, 2.5, 0),
}


class Work(NamedTuple):
    """Work of one phase, over all chips."""

    flops: float
    bytes: float


class PassShape(NamedTuple):
    """Padded sizes of the rows of one pass."""

    prompts: float  # P, counted as often as they are computed
    rows: float  # B
    S: int
    T: int

    @property
    def tokens(self) -> float:
        """Positions that the layers compute."""
        return self.prompts * self.S + self.rows * self.T

    def pairs(self, kernel: Kernel) -> float:
        """Pairs of queries and keys.

        Prompt tokens attend to the prompt, completion tokens to prompt and completion.
        """
        seen = 0.5 if kernel.skips else 1.0
        return self.prompts * self.S**2 * seen + self.rows * self.T * (self.S + self.T * seen)


def form_of_training(setup: Setup) -> str:
    """The form of attention of training and prefill: xla, splash or cudnn."""
    model = setup.settings.model
    return form_of(
        model.attention,
        setup.mesh,
        settings.dtype_of("model.dtype", model.dtype),
        setup.cfg.head_dim,
        layers.has_windows(setup.cfg),
    )


def kernel_of(setup: Setup, packed: bool = False) -> Kernel:
    """The attention kernel of training and prefill; packed: of rows of several sequences."""
    form = form_of_training(setup)
    if form == "cudnn" and (packed or layers.has_windows(setup.cfg)):
        return KERNELS["cudnn, masked"]
    return KERNELS[form]


def chip_bytes(tree: Tree, on_host: bool = False) -> int:
    """Bytes of a tree of shapes with shardings on one device.

    on_host: in its host memory instead.
    """
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if (leaf.sharding.memory_kind == "pinned_host") == on_host
    )


def forward_flops(
    cfg: layers.Config,
    rows: PassShape,
    kernel: Kernel = KERNELS["xla"],
    recomputed: tuple[int, int] = (0, 0),
    backward: bool = False,
) -> float:
    """FLOPs of one pass without the head.

    recomputed: further forward passes of weights and of attention by remat.
    """
    weights, attention = (
        1 + 2 * backward + recomputed[0],
        1 + kernel.backward * backward + recomputed[1],
    )
    matrices = budget.matrix_weights(cfg) - budget.head_weights(cfg)
    products = 4 * cfg.layers * cfg.heads * cfg.head_dim * rows.pairs(kernel)
    return 2 * matrices * rows.tokens * weights + products * attention


def head_flops(cfg: layers.Config, tokens: float, backward: bool = False) -> float:
    """FLOPs of the output projection; a backward pass recomputes the logits."""
    return 2 * budget.head_weights(cfg) * tokens * (4 if backward else 1)


def pass_bytes(setup: Setup, rows: PassShape, microbatches: float, backward: bool) -> float:
    """Bytes of one pass over the rows in so many micro-batches, forward alone or with backward."""
    cfg, s = setup.cfg, setup.settings
    itemsize = settings.dtype_of("model.dtype", s.model.dtype).dtype.itemsize
    recomputed = RECOMPUTED[s.model.remat] if backward else (0, 0)
    kernel = kernel_of(setup, packed=setup.settings.batch.pack > 0)
    weights, attention = (
        1 + 2 * backward + recomputed[0],
        1 + kernel.backward * backward + recomputed[1],
    )
    # number of devices that read the same weight
    readers = setup.mesh.size / setup.mesh.shape["tensor"]
    matrices = (
        budget.matrix_weights(cfg)
        * itemsize
        * readers
        * microbatches
        * (1 + backward + recomputed[0])
    )
    # written by each reader; read and written once more by the accumulation
    gradients = budget.matrix_weights(cfg) * 4 * microbatches * (readers + 2) if backward else 0
    # numbers written and read per token and layer
    activation_width = (
        4 * cfg.width + 2 * (2 * cfg.heads + 2 * cfg.kv_heads) * cfg.head_dim + 6 * cfg.mlp
    )
    activations = rows.tokens * cfg.layers * activation_width * itemsize * weights
    scores = rows.pairs(kernel) * cfg.layers * cfg.heads * kernel.score_bytes * attention
    logits = rows.rows * rows.T * cfg.vocab * LOGIT_BYTES * (3 if backward else 1)
    heads = budget.head_weights(cfg) * itemsize * readers * microbatches * (4 if backward else 1)
    # Hidden states are read for each block of the vocabulary. The backward pass reads them twice
    # and adds to their fp32 gradient.
    blocks = (
        max(1.0, rows.rows * rows.T / (microbatches * readers * s.model.logp_chunk))
        if microbatches
        else 0.0
    )
    hidden = (
        rows.rows * rows.T * cfg.width * blocks * (3 * itemsize + 2 * 4 if backward else itemsize)
    )
    return matrices + gradients + activations + scores + logits + heads + hidden


def passes(
    update: jax.stages.Traced, batch: Tree, S: int, T: int, demo_T: int = 0, step: int = 0
) -> dict[str, float]:
    """The update's token counts (budget/*) for rows of full length; demo_T: of demos, 0: T.

    step: 0 for the first; some methods compute less in some steps.

    Only the part of the update's program that computes these metrics is evaluated.
    """
    closed = update.jaxpr
    metrics = sorted(update.out_info[1])
    wanted = [key.startswith("budget/") for key in metrics]
    wanted = [False] * (len(jax.tree.leaves(update.out_info)) - len(metrics)) + wanted
    jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, wanted)
    full = {"prompt_len_P": S, "length_B": T}
    name = lambda part: getattr(part, "name", "")
    leaves = [
        (name(path[-1]), demo_T or T if name(path[0]) == "demos" else T, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
    ]
    # the first leaf of a TrainState is its step
    state = [("state", 0, None)] * (len(used) - len(leaves) - 1)
    leaves = [("step", step, np.int32(0)), *state, *leaves]
    values = []
    for (field, length, leaf), read in zip(leaves, used):
        known = field in full or field == "step"
        assert not read or known, f"the ledger of an update hangs on {field}"
        number = full.get(field) if field == "prompt_len_P" else length
        values += [np.full(leaf.shape, number, np.int32)] if read else []
    with jax.default_device(jax.devices("cpu")[0]):
        found = jax.core.eval_jaxpr(jaxpr, closed.consts, *values)
    return dict(zip((key for key in metrics if key.startswith("budget/")), map(float, found)))


def prompts_of(setup: Setup, rows: float) -> float:
    """Number of prompts computed for so many sampled rows of whole groups.

    One for each part of a group in a micro-batch or on a device; with packing, one for each row.
    """
    batch = setup.settings.batch
    if batch.pack:
        return rows
    at_once = min(batch.microbatch, batch.rollout_rows)
    # rows of a prompt in a micro-batch
    M = min(batch.samples_per_prompt, at_once)
    return rows / M * policy.parts_of_group(at_once // M, M, setup.mesh)


def update(setup: Setup, ledger: dict[str, float], bucket: int, state: Tree) -> Work:
    """Work of one update; ledger: its token counts, from `passes`."""
    s, S, T = setup.settings, bucket, setup.settings.rollout.max_new
    batch, P = s.batch, s.batch.prompts_per_step
    demo_tokens = ledger.get("budget/demo_tokens", 0.0)
    demo_rows = demo_tokens / s.max_demo
    rows = (ledger["budget/gradient_tokens"] - demo_tokens) / T
    gradient_rows = [
        PassShape(prompts_of(setup, rows), rows, S, T),
        PassShape(demo_rows, demo_rows, S, s.max_demo),
    ]
    whole = P * S + batch.rollout_rows * T
    read = PassShape(prompts_of(setup, batch.rollout_rows), batch.rollout_rows, S, T)
    kernel, recomputed, forward_passes = (
        kernel_of(setup, packed=batch.pack > 0),
        RECOMPUTED[s.model.remat],
        ledger.get("budget/forward_tokens", 0.0) / whole,
    )
    flops = sum(
        forward_flops(setup.cfg, part, kernel, recomputed, True)
        + head_flops(setup.cfg, part.rows * part.T, True)
        for part in gradient_rows
    )
    flops += forward_passes * (
        forward_flops(setup.cfg, read, kernel) + head_flops(setup.cfg, read.rows * T)
    )
    own_parts = setup.method.demo_microbatches if demo_rows else 0
    microbatches = [
        math.ceil(rows / batch.microbatch),
        max(own_parts, math.ceil(demo_rows / batch.microbatch)),
    ]
    bytes_moved = sum(
        pass_bytes(setup, part, n, True) for part, n in zip(gradient_rows, microbatches)
    )
    bytes_moved += forward_passes * pass_bytes(setup, read, batch.rollout_microbatches, False)
    return Work(flops, bytes_moved + 2 * chip_bytes(state) * setup.mesh.size)


def logp(setup: Setup, bucket: int) -> Work:
    """Work of one forward pass over the sampled rows of a step."""
    batch, T = setup.settings.batch, setup.settings.rollout.max_new
    rows = PassShape(prompts_of(setup, batch.rollout_rows), batch.rollout_rows, bucket, T)
    kernel = kernel_of(setup, packed=batch.pack > 0)
    flops = forward_flops(setup.cfg, rows, kernel) + head_flops(setup.cfg, rows.rows * T)
    return Work(flops, pass_bytes(setup, rows, batch.rollout_microbatches, False))


def prefill(setup: Setup, bucket: int, P: int) -> Work:
    """Work of the prefill of one call of the sampler, including writing the cache."""
    cfg, s, rows, kernel = setup.cfg, setup.settings, PassShape(P, 0, bucket, 0), kernel_of(setup)
    itemsize = settings.dtype_of("model.dtype", s.model.dtype).dtype.itemsize
    readers = setup.decode_mesh.size / setup.decode_mesh.shape["tensor"]
    activation_width = (
        4 * cfg.width + 2 * (2 * cfg.heads + 2 * cfg.kv_heads) * cfg.head_dim + 6 * cfg.mlp
    )
    bytes_moved = (
        (budget.matrix_weights(cfg) - budget.head_weights(cfg)) * itemsize * readers
        + rows.tokens * cfg.layers * activation_width * itemsize
        + rows.pairs(kernel) * cfg.layers * cfg.heads * kernel.score_bytes
        + P * bucket * token_cache(setup)
    )
    return Work(forward_flops(cfg, rows, kernel), bytes_moved)


def token_cache(setup: Setup) -> int:
    """Bytes of one position of one row in the cache, over all layers."""
    itemsize = settings.dtype_of(
        "rollout.cache_dtype", setup.settings.rollout.cache_dtype
    ).dtype.itemsize
    return 2 * setup.cfg.layers * setup.cfg.kv_heads * setup.cfg.head_dim * itemsize


def loops(setup: Setup) -> tuple[tuple[int, ...], ...]:
    """Per decode loop of one call of the sampler: the ends of its cache segments, in tokens."""
    return programs.decode_plan_of(setup).loops


def decode(setup: Setup, bucket: int, P: int) -> Work:
    """Work of decoding max_new tokens for all samples of P prompts.

    Each token reads the weights once, and the cache up to the end of its segment.
    """
    cfg, s = setup.cfg, setup.settings
    B, T = P * s.batch.samples_per_prompt, s.rollout.max_new
    itemsize = settings.dtype_of("model.dtype", s.model.dtype).dtype.itemsize
    readers = setup.decode_mesh.size / setup.decode_mesh.shape["tensor"]
    ends = [end for loop in loops(setup) for end in loop]
    # mean number of a row's positions that a token reads
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
        T * (budget.matrix_weights(cfg) * itemsize * readers + cache + B * cfg.vocab * LOGIT_BYTES),
    )
