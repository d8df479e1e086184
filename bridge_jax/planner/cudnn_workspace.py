"""Memory that cuDNN's attention takes in a backward pass, and that no compiled program shows.

By formula, held against cuDNN's own answers for one layer with 5 rows, T = 3,000 and S + T = 4,024
on an H100: 2.1, 3.2 and 4.3 GB with 16, 24 and 32 heads, and 0.29 to 0.58 GB without the gradient of
the mask. The formula gives 2.2, 3.3, 4.4, and 0.29 to 0.58.
"""

from __future__ import annotations

from bridge_jax.training.build import Setup


def workspace(rows: int, heads: int, queries: int, keys: int, width: int) -> int:
    """Bytes of one call: the gradient of the mask, dQ in fp32, dK and dV of every query head.

    rows: sequences; heads: query heads; width: of a head. A mask becomes a bias, whose gradient in
    bfloat16 is computed although nothing reads it.
    """
    d_bias = 2 * queries * keys
    d_qkv = 4 * queries * width + 2 * 2 * keys * width
    return rows * heads * (d_bias + d_qkv)


def of_update(setup: Setup, bucket: int) -> int:
    """Bytes per device in an update: of the completions' attention or of the prompts', the larger."""
    batch, cfg = setup.settings.batch, setup.cfg
    heads = cfg.heads // setup.mesh.shape["tensor"]
    rows, T = batch.microbatch_rows, max(setup.settings.rollout.max_new, setup.settings.max_demo)
    if batch.pack:
        return workspace(rows, heads, batch.pack, batch.pack, cfg.head_dim)
    of_rows = workspace(rows, heads, T, bucket + T, cfg.head_dim)
    return max(of_rows, workspace(rows, heads, bucket, bucket, cfg.head_dim))
