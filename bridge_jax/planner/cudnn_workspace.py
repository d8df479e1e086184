"""Memory that cuDNN's attention takes in a backward pass, and that no compiled program shows.

By formula, held against cuDNN 9.28's own answers for one layer with 5 rows of T = 3,000 after a
prompt of S = 1,024 on an H100: 0.247, 0.370 and 0.493 GB with 16, 24 and 32 heads for the causal
part of the rows, and 0.132 for that of the prompt with 16. With a mask over both parts: 2.1, 3.2
and 4.3 GB. The formula gives these within 5%. A deterministic backward pass
(--xla_gpu_exclude_nondeterministic_ops) takes more, 1.6 GB instead of 0.247, and is not in it.
"""

from __future__ import annotations

import functools

from bridge_jax.models.layers import has_windows
from bridge_jax.training.build import Setup


def workspace(
    rows: int, heads: int, queries: int, keys: int, width: int, masked: bool = False
) -> int:
    """Bytes of one call: dQ and its sums in fp32, dK and dV of every query head, and a mask's.

    rows: sequences; heads: query heads; width: of a head. masked: whether there is a mask, which
    becomes a bias, whose gradient in bfloat16 is computed although nothing reads it.
    """
    d_bias = 2 * queries * keys if masked else 0
    d_qkv = 4 * queries * (width + 1) + 2 * 2 * keys * width
    return rows * heads * (d_bias + d_qkv)


def of_update(setup: Setup, bucket: int) -> int:
    """Bytes per device in an update: of its largest call.

    The calls are those of models/attention/cudnn.py: of the prompts' own attention, of the
    completions' own, and of that to their prompts, counted as if each row had a prompt of its own.
    """
    batch, cfg = setup.settings.batch, setup.cfg
    heads = cfg.heads // setup.mesh.shape["tensor"]
    rows, T = batch.microbatch_rows, max(setup.settings.rollout.max_new, setup.settings.max_demo)
    of = functools.partial(workspace, rows, heads, width=cfg.head_dim)
    if batch.pack:
        # a packed row is as wide as a prompt with its completion
        return of(bucket + T, bucket + T, masked=True)
    if has_windows(cfg):
        return max(of(T, bucket + T, masked=True), of(bucket, bucket, masked=True))
    return max(of(T, T), of(T, bucket), of(bucket, bucket))
