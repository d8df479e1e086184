"""A boundary that XLA does not fuse operations across.

J_RL is computed twice in a step of BRIDGE: at theta with the ratio of a policy to itself, and at
theta_hat with the ratio to theta's log-probabilities. While the two policies are equal, both values
must be bit-equal, so that the gain is exactly 0. If the compiler fuses the log-probabilities with
the ratio that follows, it may order the sums of the two programs differently. Behind the boundary
both log-probabilities come from the same operations.

Measured on a CPU with XLA's default optimizations: the parameters after three steps have the same
bits without the boundary, and the program needs the same memory. It is there for compilers that
fuse more, on GPU and TPU. The plain form is the identity.
"""

from __future__ import annotations

import jax

from bridge_jax.types import Tree


def fusion_boundary(tree: Tree) -> Tree:
    """The tree unchanged; what computes it is not fused with what uses it, nor are gradients."""
    return jax.lax.optimization_barrier(tree)
