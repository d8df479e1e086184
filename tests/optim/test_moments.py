"""Factored and bfloat16 moments follow Adam's; which matrices there are is declared."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax import optim
from bridge_jax.models import params
from bridge_jax.optim import Recipe, Recipes, to_bfloat16, with_bfloat16_moments
from bridge_jax.types import Matrix
from tests import errors
from tests.optim.trees import by_name, declared, one


@pytest.mark.parametrize("family", params.families())
def test_every_large_matrix_has_factored_moments(family):
    """o's rows are all heads together. Norms and biases are never factored, of 130 layers, 128
    heads and a width of 128 either.
    """
    tree, matrices, vectors = declared(family, size=128, layers=130)
    state = jax.eval_shape(optim.scale_by_factored_adam(0.9, 0.999, 1e-8, matrices).init, tree)
    found = {name: leaf.shape for name, leaf in by_name(state.nu).items()}
    L, heads, D = 130, (128, 128), 128
    expected = {
        "embed": ((D,), (D,)),
        "head": ((D,), (D,)),
        "layers/q": ((L, D), (L, *heads)),
        "layers/o": ((L, *heads), (L, D)),
        "layers/down": ((L, 128), (L, D)),
    }
    for path, shapes in expected.items():
        for part in ("theta", "theta_hat"):
            assert (found[f"{part}/{path}/row"], found[f"{part}/{path}/col"]) == shapes, path
    assert found["w/layers/o/A/row"] == (L, 128 * 128) and found["w/layers/o/B/col"] == (L, D)
    assert {name for name in found if name.split("/")[-1] not in ("row", "col")} == vectors


def test_what_is_not_declared_is_asked_for():
    """Weight decay and factored moments guess nothing; without them a toy needs no declaration."""
    tree = one([[1.0, 2.0]])
    for fields in (dict(weight_decay=0.1), dict(moments="factored")):
        recipes = Recipes(Recipe(**fields), Recipe())
        with errors.raises(ValueError, "Recipes(matrices=...)"):
            recipes.optimizer().init(tree)
        other = dataclasses.replace(recipes, matrices=(("theta/y", None),))
        with errors.raises(ValueError, "'theta/x'", "theta/y"):
            other.optimizer().init(tree)
    Recipes(Recipe(), Recipe()).optimizer().init(tree)


@pytest.mark.slow
def test_factored_moments_are_adams_where_squares_are_an_outer_product():
    """Five steps of gradients +-a_i b_j: the same steps as Adam's, but for the rounding of the
    first moment to bfloat16.
    """
    rng = np.random.RandomState(0)
    a, b = rng.uniform(0.1, 2, (3, 140, 1)), rng.uniform(0.1, 2, (3, 1, 256))
    params = {
        "matrix": jnp.zeros((3, 140, 256)),
        "small": jnp.zeros((4, 5)),
        "vector": jnp.zeros(300),
    }
    recipe = Recipe(learning_rate=1e-2, clip_norm=0.0)
    sides = {"matrix": Matrix((1,), (2,)), "small": Matrix((0,), (1,)), "vector": None}
    exact, factored = (
        optim.adamw(recipe),
        optim.adamw(dataclasses.replace(recipe, moments="factored"), matrices=tuple(sides.items())),
    )
    states = [exact.init(params), factored.init(params)]
    for _ in range(5):
        g = {
            "matrix": jnp.asarray(a * b * rng.choice([-1, 1], (3, 140, 256)), jnp.float32),
            "small": jnp.asarray(rng.standard_normal((4, 5)), jnp.float32),
            "vector": jnp.asarray(rng.standard_normal(300), jnp.float32),
        }
        (one, states[0]), (other, states[1]) = (
            exact.update(g, states[0], params),
            factored.update(g, states[1], params),
        )
        for name in params:
            np.testing.assert_allclose(
                other[name], one[name], atol=2e-4, err_msg=name
            )  # of steps up to 1e-2
    nu = next(
        x
        for x in jax.tree.leaves(states[1], is_leaf=lambda x: hasattr(x, "nu"))
        if hasattr(x, "nu")
    ).nu
    assert jax.tree.map(jnp.shape, nu) == {
        "matrix": {"row": (3, 140), "col": (3, 256)},
        "small": (4, 5),
        "vector": (300,),
    }


@pytest.mark.parametrize(
    "shape, matrix",
    [((2, 128, 4, 32), Matrix((1,), (2, 3))), ((2, 4, 32, 128), Matrix((1, 2), (3,)))],
    ids=["q", "o"],
)
def test_factored_moments_where_squares_are_none(shape, matrix):
    """v_ij = r_i c_j / mean(r), by hand after one step; heads and their width are one side
    together, of q the columns, of o the rows: as for the matrix that has them as one dimension.
    """
    rng = np.random.RandomState(1)
    g = rng.standard_normal(shape).astype(np.float32)
    scale = optim.scale_by_factored_adam(0.9, 0.999, 1e-8, (("x", matrix),))
    out, state = scale.update({"x": jnp.asarray(g)}, scale.init({"x": jnp.zeros(shape)}))
    flat = g.reshape(2, 128, 128)
    row, col = (flat**2).mean(2), (flat**2).mean(1)
    v = row[:, :, None] * col[:, None] / row.mean(1)[:, None, None]
    np.testing.assert_allclose(state.nu["x"]["row"].reshape(2, 128), 0.001 * row, rtol=1e-5)
    np.testing.assert_allclose(state.nu["x"]["col"].reshape(2, 128), 0.001 * col, rtol=1e-5)
    expected = (flat / (np.sqrt(v) + 1e-8)).reshape(shape)
    np.testing.assert_allclose(out["x"], expected, rtol=1e-3, atol=1e-6)
    assert state.mu["x"].dtype == jnp.bfloat16


def test_unknown_moments_are_refused():
    """Another kind of moments is refused with the kinds that are allowed."""
    with errors.raises(ValueError, "moments='float16'", "float32, bfloat16, factored"):
        optim.adamw(Recipe(moments="float16"))


def test_rounding_to_bfloat16():
    """Right on average where rounding to nearest would be wrong by its whole remainder; what
    bfloat16 has stays.
    """
    x = jnp.full(
        40_000, 1.0 + 2.0**-10
    )  # an eighth of the way from 1 to the next bfloat16, 1 + 2^-7
    rounded = to_bfloat16({"x": x}, jax.random.key(0))["x"]
    assert rounded.dtype == jnp.bfloat16 and set(np.unique(np.asarray(rounded, np.float32))) == {
        1.0,
        1.0 + 2.0**-7,
    }
    assert abs(float(rounded.astype(jnp.float32).mean()) - (1.0 + 2.0**-10)) < 2e-4
    exact = jnp.array([0.0, -1.5, 3.0, jnp.inf])
    np.testing.assert_array_equal(to_bfloat16(exact, jax.random.key(1)).astype(jnp.float32), exact)


@pytest.mark.slow
def test_moments_in_bfloat16_move():
    """Adam's second moment follows a gradient that halves, which plain bfloat16 (1/512 at most)
    would never notice.
    """
    params, inner = (
        {"x": jnp.ones((50, 50))},
        optim.adamw(Recipe(learning_rate=1e-3, clip_norm=0.0)),
    )
    kept, plain = with_bfloat16_moments(inner), inner
    states = [kept.init(params), plain.init(params)]
    for k in range(400):
        g = {"x": jnp.full((50, 50), 1.0 if k < 100 else 0.25)}
        states = [t.update(g, s, params)[1] for t, s in zip((kept, plain), states)]
    second = lambda state: np.mean(
        [float(x.astype(jnp.float32).mean()) for x in jax.tree.leaves(state) if x.ndim == 2][1::2]
    )
    assert abs(second(states[0]) / second(states[1]) - 1) < 0.02
