"""Objectives, which are maximised: terms of J, gradients over micro-batches, metrics of a step."""

from bridge_jax.objectives.metrics import (
    by_layer_group,
    clip_fraction,
    demo_metrics,
    elementwise_product,
    gradient_alignment,
    inner_product,
    mean_gain,
    own_gain,
    rollout_metrics,
    shared_gain,
    token_counts,
)
from bridge_jax.objectives.microbatch import (
    logp_of,
    micro_count,
    micro_join,
    micro_split,
    over_micro_batches,
)
from bridge_jax.objectives.parts import Parts, parts_of
from bridge_jax.objectives.passes import (
    Keep,
    Pass,
    PassAndKept,
    gradient,
    hold,
    skip_if_nonfinite,
    wait_for,
)
from bridge_jax.objectives.terms import (
    J_RL,
    J_SFT,
    LOG_RATIO_BOUND,
    advantages_with_demo,
    check_advantage,
    clipped_surrogate,
    group_advantages,
    group_size,
    k3,
    mean_tokens,
    ratio,
    reference,
    rl_rows,
    row_mask,
    score,
    surrogate,
    token_mask,
    token_total,
)
