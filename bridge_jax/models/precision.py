"""What is summed in fp32 whatever the compute dtype: logits, and the gradient of every weight over positions, rows and devices;
and bfloat16 kept as its bits, where moving it as such costs more.

A transposed bfloat16 matmul gives its sums in bfloat16, and devices then add theirs in bfloat16 too; a table's gradient, added
token by token, stands still once an entry is 256 times what is added to it. Here the products of a weight's gradient leave their
matmul in fp32, are added over the devices so, and are rounded to the weight's dtype once. (A compiler may still send what it adds
in fp32 as bfloat16, where only the rounded sum is used, as the TPU's does.) Activations and their gradients, a prompt's summed
over its samples among them, are of the compute dtype.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

PROJECTED = "projected"
BITS = jnp.uint16  # the dtype of bfloat16 that is kept as bits (`store`); nothing else has it


def exact(dtype) -> str | None:
    """The precision of matmuls: what is fp32 is multiplied as such; left to itself an accelerator rounds it to fewer bits."""
    return "highest" if dtype == jnp.float32 else None


def product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """einsum with an fp32 result, whatever the compute dtype."""
    return jnp.einsum(
        subscripts, a, b, precision=exact(a.dtype), preferred_element_type=jnp.float32
    )


def over_positions(subscripts: str, x: jax.Array, g: jax.Array) -> jax.Array:
    """product of x and g, whose subscripts these are without their first two axes, summed over those, such as "D,F->DF".

    The two are made one axis, since of what is summed along both XLA's CPU compiler first makes a transposed copy: 18 ms a layer
    for 1,280 positions of SmolLM2's mlp."""
    (of_x, of_g), made = subscripts.split("->")[0].split(","), subscripts.split("->")[1]
    one = lambda y: y.reshape(-1, *y.shape[2:])
    return product(f"R{of_x},R{of_g}->{made}", one(x), one(g))


def project(subscripts: str, x: jax.Array, W: jax.Array) -> jax.Array:
    """einsum(subscripts, x, W) in their dtype, such as "BTD,DF->BTF"; W's gradient is summed in fp32. PROJECTED is its name to
    policies of recomputation, which do not see what is in it."""
    return checkpoint_name(projected(subscripts, x, W), PROJECTED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def projected(subscripts: str, x: jax.Array, W: jax.Array) -> jax.Array:
    """`project` without the name. Its sums leave the matmul in fp32 and are rounded once: CPUs that multiply bfloat16 do so in
    this form alone (SmolLM2's mlp, 3,072 rows on an Intel Xeon with AMX: 4 ms instead of 19); on a TPU updates peak and send the
    same."""
    return product(subscripts, x, W).astype(x.dtype)


def projected_back(subscripts: str, kept, g: jax.Array):
    """Gradients to x and W."""
    (x, W), (of_x, of_W, of_g) = kept, subscripts.replace("->", ",").split(",")
    G_x = jnp.einsum(f"{of_g},{of_W}->{of_x}", g, W, precision=exact(g.dtype))
    return G_x, over_positions(f"{of_x[2:]},{of_g[2:]}->{of_W}", x, g).astype(W.dtype)


projected.defvjp(lambda subscripts, x, W: (projected(subscripts, x, W), (x, W)), projected_back)


def store(x: jax.Array, dtype) -> jax.Array:
    """x in this dtype; BITS stands for bfloat16, kept as its bits, for loops on a CPU.

    XLA's CPU compiler slices and updates bfloat16 by way of fp32, and of a stack of layers or a cache it converts the whole for
    every slice; bits it moves as they are. Not for what is differentiated.
    """
    return (
        jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), BITS)
        if dtype == BITS
        else x.astype(dtype)
    )


def load(tree):
    """What `store` kept, its bits as bfloat16 again; other arrays as they are."""
    return jax.tree.map(
        lambda x: jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == BITS else x, tree
    )


@jax.custom_vjp
def look_up(table_VD: jax.Array, index: jax.Array) -> jax.Array:
    """table_VD[index]; the table's gradient is summed in fp32."""
    return table_VD[index]


def look_up_back(kept, g: jax.Array):
    """Gradients to the table; none to the index."""
    table_VD, index = kept
    return jnp.zeros(table_VD.shape, jnp.float32).at[index].add(g.astype(jnp.float32)).astype(
        table_VD.dtype
    ), None


look_up.defvjp(lambda table_VD, index: (table_VD[index], (table_VD, index)), look_up_back)
