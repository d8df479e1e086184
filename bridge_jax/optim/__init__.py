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
    adamw,
    apply_ascent,
    init_train_state,
    labels,
    learning_rate,
    misfits,
)
from bridge_jax.optim.schedules import interpolate, schedule
from bridge_jax.optim.shadow import (
    STORAGE,
    Shadow,
    Storage,
    on_device,
    read_shadow,
)
