"""Products with a weight, with the weight's gradient summed over positions in fp32.

The transpose of a bfloat16 matmul returns its sums in bfloat16, and devices then add theirs in
bfloat16 too. The gradient of an embedding, summed token by token, stops growing once an entry is
256 times the next addend. Here a weight's gradient leaves its matmul in fp32, is summed over rows
and devices in fp32, and is rounded to the weight's dtype once. (A compiler may still send fp32 sums
as bfloat16 where only the rounded sum is used, as the TPU compiler does.) Activations and their
gradients have the compute dtype.

Each function has a plain form, `..._plain`. In fp32 both give the same numbers, as
tests/models/test_weight_grads.py checks.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from bridge_jax.models.precision import fp32_einsum, matmul_precision

# The name of a projection's output for the remat policies (remat.py), which cannot see inside a
# function with a custom gradient.
PROJECTED = "projected"


# ---- the gradient itself


def weight_grad_einsum_plain(subscripts: str, x_BT: jax.Array, g_BT: jax.Array) -> jax.Array:
    """einsum of x and g, summed over their two leading axes.

    subscripts: of the other axes, such as D,F->DF.
    """
    (of_x, of_g), of_W = subscripts.split("->")[0].split(","), subscripts.split("->")[1]
    return fp32_einsum(f"YZ{of_x},YZ{of_g}->{of_W}", x_BT, g_BT)


def weight_grad_einsum(subscripts: str, x_BT: jax.Array, g_BT: jax.Array) -> jax.Array:
    """weight_grad_einsum_plain as a product of two matrices.

    The two leading axes are one: XLA's CPU compiler transposes an operand that is summed along two
    (docs/speed.md). So are the others of each operand: of an operand with three axes it makes no
    fp32 sums of bfloat16 products (it ends with DotThunk: BF16 x BF16 = F32).
    """
    given, axes = subscripts.split("->")
    if axes != given.replace(",", ""):
        raise ValueError(f"{subscripts}; allowed: the axes of x and then those of g behind ->")
    matrix = lambda y: y.reshape(math.prod(y.shape[:2]), -1)
    G = fp32_einsum("RX,RG->XG", matrix(x_BT), matrix(g_BT))
    return G.reshape(*x_BT.shape[2:], *g_BT.shape[2:])


# ---- projections


def project_plain(subscripts: str, x: jax.Array, W: jax.Array) -> jax.Array:
    """einsum(subscripts, x, W) in their dtype, such as BTD,DF->BTF."""
    return jnp.einsum(subscripts, x, W)


def project(subscripts: str, x: jax.Array, W: jax.Array) -> jax.Array:
    """project_plain with fp32 sums, also in W's gradient; named PROJECTED for remat."""
    return checkpoint_name(_project(subscripts, x, W), PROJECTED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _project(subscripts: str, x: jax.Array, W: jax.Array) -> jax.Array:
    # CPUs with bfloat16 products use them in this form alone: an fp32 result, rounded once.
    return fp32_einsum(subscripts, x, W).astype(x.dtype)


def _project_forward(subscripts: str, x: jax.Array, W: jax.Array):
    return _project(subscripts, x, W), (x, W)


def _project_backward(subscripts: str, inputs, g: jax.Array):
    (x, W), (of_x, of_W, of_g) = inputs, subscripts.replace("->", ",").split(",")
    G_x = jnp.einsum(f"{of_g},{of_W}->{of_x}", g, W, precision=matmul_precision(g.dtype))
    G_W = weight_grad_einsum(f"{of_x[2:]},{of_g[2:]}->{of_W}", x, g)
    return G_x, G_W.astype(W.dtype)


_project.defvjp(_project_forward, _project_backward)


# ---- the embedding


def embed_lookup_plain(table_VD: jax.Array, index: jax.Array) -> jax.Array:
    """table_VD[index]."""
    return table_VD[index]


@jax.custom_vjp
def embed_lookup(table_VD: jax.Array, index: jax.Array) -> jax.Array:
    """embed_lookup_plain, the table's gradient summed in fp32."""
    return table_VD[index]


def _embed_lookup_forward(table_VD: jax.Array, index: jax.Array):
    return table_VD[index], (table_VD, index)


def _embed_lookup_backward(inputs, g: jax.Array):
    table_VD, index = inputs
    G_VD = jnp.zeros(table_VD.shape, jnp.float32).at[index].add(g.astype(jnp.float32))
    return G_VD.astype(table_VD.dtype), None


embed_lookup.defvjp(_embed_lookup_forward, _embed_lookup_backward)
