"""Recomputation: which activations are stored for the backward pass, and which are recomputed.

`remat` wraps a layer with one of the policies of model.remat; the layer itself is the plain form.
Left out: offloading of activations to host memory.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from bridge_jax.models.weight_grads import PROJECTED

REMAT = {
    # store every activation
    "none": None,
    # store the outputs of the weight matmuls
    "dots": jax.checkpoint_policies.save_only_these_names(PROJECTED),
    # store the layer's input alone
    "full": jax.checkpoint_policies.nothing_saveable,
}


def remat(function: Callable, policy: str) -> Callable:
    """The layer with recomputation of all that `policy`, a key of REMAT, does not store."""
    if policy not in REMAT:
        raise ValueError(f"model.remat={policy!r}; allowed: {', '.join(REMAT)}")
    if policy == "none":
        return function
    # A scan over layers already separates the two passes: prevent_cse would only add barriers.
    return jax.checkpoint(function, policy=REMAT[policy], prevent_cse=False)


def keep_inputs_only(function: Callable) -> Callable:
    """An elementwise function that stores its inputs alone for the backward pass.

    Without this silu(gate) * up stores four more arrays of the mlp's width.
    """
    return jax.checkpoint(function, prevent_cse=False)
