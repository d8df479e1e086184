"""Adam moments with less memory: bfloat16 with stochastic rounding, and factored."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

from bridge_jax.types import Matrix, Tree

# name -> bytes per weight
MOMENTS = {
    "float32": 8,
    "bfloat16": 4,  # both moments, with stochastic rounding
    "factored": 2,  # the first in bfloat16; the second as means over rows and over columns
}
FACTORED_FROM = 128  # minimum of rows and of columns of a matrix with a factored second moment
# pairs (path in Params, axes of the matrix); None: not a matrix
MatrixTable = tuple[tuple[str, Matrix | None], ...]


def matrix_of(declared: MatrixTable | None, path) -> Matrix | None:
    """The matrix axes of the parameter at this jax path; theta_hat has those of theta."""
    if declared is None:
        raise ValueError(
            "optim: weight decay and factored moments need to know which parameters are matrices; "
            "give Recipes(matrices=...), for a model setup.matrices"
        )
    name, table = jax.tree_util.keystr(path, simple=True, separator="/"), dict(declared)
    part, slash, rest = name.partition("/")
    name = f"theta{slash}{rest}" if part == "theta_hat" else name
    if name not in table:
        raise ValueError(
            f"optim: nothing is declared of parameter {name!r}, which may be a matrix; declared: "
            f"{', '.join(table)}"
        )
    return table[name]


def to_bfloat16(tree: Tree, key: jax.Array) -> Tree:
    """Stochastic rounding of fp32 leaves, unbiased; numbers that bfloat16 can represent stay exact.

    Rounding to nearest would lose every relative change below 1/512: a moment with b2 = 0.999 would
    never move.
    """
    leaves, structure = jax.tree.flatten(tree)

    def rounded(x, key):
        if x.dtype != jnp.float32 or not x.ndim:
            return x
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jax.random.bits(
            key, x.shape, jnp.uint16
        ).astype(jnp.uint32)
        truncated = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
        return jnp.where(jnp.isfinite(x), truncated, x).astype(jnp.bfloat16)

    return structure.unflatten(
        [rounded(x, jax.random.fold_in(key, i)) for i, x in enumerate(leaves)]
    )


def to_float32(tree: Tree) -> Tree:
    """bfloat16 leaves as fp32, other leaves unchanged."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, tree)


def with_bfloat16_moments(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation with its moments in bfloat16 between updates.

    The update count in its state seeds the rounding.
    """

    def store(state):
        return to_bfloat16(state, jax.random.fold_in(jax.random.key(0), update_count(state)))

    def update(updates, state, params=None):
        updates, state = inner.update(updates, to_float32(state), params)
        return updates, store(state)

    return optax.GradientTransformation(lambda params: store(inner.init(params)), update)


def is_factored(matrix: Matrix | None, shape: tuple[int, ...]) -> bool:
    """Whether the second moment of a parameter of this shape is factored."""
    size = lambda axes: math.prod(shape[axis] for axis in axes)
    return matrix is not None and min(size(matrix.rows), size(matrix.columns)) >= FACTORED_FROM


def scale_by_factored_adam(
    b1: float, b2: float, eps: float, matrices: MatrixTable | None
) -> optax.GradientTransformation:
    """Adam with a factored second moment for matrices, v_ij = r_i c_j / mean(r).

    r and c are the moving means of g^2 over columns and over rows (Adafactor, Shazeer & Stern 2018,
    with Adam's b2, bias correction and eps). This is exact where g^2 is an outer product. Small
    matrices and vectors have a full second moment. The first moment is in bfloat16 with stochastic
    rounding.
    """
    by_path = jax.tree_util.tree_map_with_path

    def squares(path, g):
        matrix = matrix_of(matrices, path)
        if not is_factored(matrix, g.shape):
            return g * g
        return {"row": jnp.mean(g * g, matrix.columns), "col": jnp.mean(g * g, matrix.rows)}

    def second(path, v):
        if not isinstance(v, dict):
            return v
        matrix = matrix_of(matrices, path)
        row, col = (
            jnp.expand_dims(v["row"], matrix.columns),
            jnp.expand_dims(v["col"], matrix.rows),
        )
        return row / jnp.maximum(jnp.mean(row, matrix.rows, keepdims=True), 1e-30) * col

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(
            jnp.int32(0), to_bfloat16(zeros, jax.random.key(0)), by_path(squares, zeros)
        )

    def update(updates, state, params=None):
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: b1 * m.astype(jnp.float32) + (1 - b1) * g, state.mu, updates)
        moving = lambda v, s: b2 * v + (1 - b2) * s
        v_tree = by_path(
            lambda path, g, v: jax.tree.map(moving, v, squares(path, g)), updates, state.nu
        )
        scaled = by_path(
            lambda path, m, v: (
                m / (1 - b1**count) / (jnp.sqrt(second(path, v) / (1 - b2**count)) + eps)
            ),
            mu,
            v_tree,
        )
        return scaled, optax.ScaleByAdamState(
            count, to_bfloat16(mu, jax.random.fold_in(jax.random.key(0), count)), v_tree
        )

    return optax.GradientTransformation(init, update)


def update_count(inner_state: Tree) -> jax.Array:
    """Number of updates of an optimizer, from any counter in its state."""
    return next(x for x in jax.tree.leaves(inner_state) if jnp.issubdtype(x.dtype, jnp.integer))
