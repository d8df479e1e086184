"""Optimizers by label, Adam's moments in less memory, storage of theta_hat."""

from bridge_jax.optim.moments import (
    FACTORED_FROM,
    MOMENTS,
    Declared,
    is_factored,
    kept_in_bfloat16,
    matrix_of,
    scale_by_factored_adam,
    to_bfloat16,
    to_float32,
    updates_made,
)
from bridge_jax.optim.recipes import (
    LABELS,
    RATES,
    Recipe,
    Recipes,
    Storage,
    adamw,
    apply_ascent,
    begin,
    labels,
    lam_milestones,
    learning_rate,
    misfits,
    on_device,
    schedule,
)
from bridge_jax.optim.shadow import packed, unpacked
