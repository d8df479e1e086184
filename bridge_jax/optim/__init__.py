"""Optimizers by label, low-memory Adam moments, storage of theta_hat."""

from bridge_jax.optim.in_place import select_if_finite, update_if_finite
from bridge_jax.optim.moments import (
    FACTORED_FROM,
    MOMENTS,
    MatrixTable,
    is_factored,
    matrix_of,
    scale_by_factored_adam,
    to_bfloat16,
    to_float32,
    update_count,
    with_bfloat16_moments,
)
from bridge_jax.optim.recipes import (
    LABELS,
    RATES,
    Recipe,
    Recipes,
    adamw,
    apply_ascent,
    check_recipe,
    init_train_state,
    labels,
    learning_rate,
    schedule_warnings,
)
from bridge_jax.optim.schedules import interpolate, schedule
from bridge_jax.optim.shadow import (
    STORAGE,
    Shadow,
    Storage,
    on_device,
    read_again_after,
    read_shadow,
)
