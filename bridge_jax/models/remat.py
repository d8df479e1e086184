"""Recomputation: which activations a backward pass keeps, and which it computes again.

`remat` wraps a layer by one of the policies that model.remat names; the layer itself is the plain
form. Left out: offloading activations to the host's memory.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from bridge_jax.models.weight_grads import PROJECTED

REMAT = {
    # keep every activation
    "none": None,
    # keep the outputs of the weight matmuls
    "dots": jax.checkpoint_policies.save_only_these_names(PROJECTED),
    # keep the layer's input alone
    "full": jax.checkpoint_policies.nothing_saveable,
}


def remat(function: Callable, policy: str) -> Callable:
    """A layer whose backward pass recomputes what `policy`, a key of REMAT, does not keep."""
    if policy not in REMAT:
        raise ValueError(f"model.remat={policy!r}; allowed: {', '.join(REMAT)}")
    if policy == "none":
        return function
    # A scan over layers keeps the two passes apart already: prevent_cse would only add barriers.
    return jax.checkpoint(function, policy=REMAT[policy], prevent_cse=False)


def keep_inputs_only(function: Callable) -> Callable:
    """An elementwise function whose backward pass keeps its inputs, and nothing in between.

    Of silu(gate) * up it would otherwise keep four more arrays of the mlp's width.
    """
    return jax.checkpoint(function, prevent_cse=False)
