"""GSPO's first update equals the one worked out by hand, and it clips whole sequences."""

from __future__ import annotations

import jax

from bridge_jax.optim import Recipe, Recipes
from tests.methods.by_hand import UNIFORM, A, G_of, batch, close, e, made


def test_gspo():
    """Samples [1, 1] and [2]: each counts a half, the tokens of the first a quarter each."""
    uneven = batch(tokens=((1, 1), (2,)))
    close(G_of("gspo", uneven), A * (e[1] / 2 - e[2]) / 2, A * e[1] / 4)


def test_gspo_clips_whole_sequences():
    """After a strong first update both sequences are outside the narrow clip: the second finds
    nothing.
    """
    recipes = Recipes(Recipe(learning_rate=3e3, eps=1e3, clip_norm=0.0, b1=0.0, b2=0.0), Recipe())
    method = made("gspo", recipes, updates_per_batch=2)
    _, metrics = jax.jit(method.update)(
        method.init(UNIFORM, jax.random.key(0)), batch().replace(demos=None)
    )
    assert metrics["grad/norm_theta"] == 0
    assert (
        metrics["rl/clip_fraction"] == 0.5
    )  # all of it in the second update, nothing in the first
    wide = made("gspo", recipes, updates_per_batch=2, clip_low=10.0, clip_high=10.0)
    _, metrics = jax.jit(wide.update)(
        wide.init(UNIFORM, jax.random.key(0)), batch().replace(demos=None)
    )
    assert metrics["grad/norm_theta"] > 0.1 and metrics["rl/clip_fraction"] == 0
