"""Gradients of weights are summed in fp32, whatever the compute dtype."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.models import layers, params, weight_grads
from tests import errors, toys
from tests.models import tiny

FORMS = {
    "BTD,DNH->BTNH": ((3, 4, 5), (5, 2, 6)),
    "BTE,ED->BTD": ((3, 4, 6), (6, 5)),
    "BTD,DF->BTF": ((3, 4, 5), (5, 7)),
}


@pytest.mark.parametrize("subscripts", FORMS)
def test_a_projection_is_einsum_with_its_gradients(subscripts):
    """A projection's value and both gradients equal those of the plain einsum."""
    x, W, g = (
        np.random.RandomState(i).standard_normal(shape).astype(np.float32)
        for i, shape in enumerate(
            (
                *FORMS[subscripts],
                jax.eval_shape(
                    functools.partial(jnp.einsum, subscripts),
                    *(jnp.zeros(s) for s in FORMS[subscripts]),
                ).shape,
            )
        )
    )
    pull = lambda form: jax.vjp(functools.partial(form, subscripts), x, W)
    (out, back), (want, want_back) = pull(weight_grads.project), pull(weight_grads.project_plain)
    for a, b in zip((out, *back(g)), (want, *want_back(g))):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "subscripts, of_x, of_g",
    [
        ("D,F->DF", (5,), (7,)),
        ("D,NH->DNH", (5,), (2, 3)),
        ("NH,D->NHD", (2, 3), (5,)),
        ("U,D->UD", (4,), (5,)),
    ],
)
def test_the_gradient_of_a_weight_is_a_sum_over_both_leading_axes(subscripts, of_x, of_g):
    """A weight's gradient equals the plain sum over rows and positions."""
    draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
    x, g = draw(0, 3, 4, *of_x), draw(1, 3, 4, *of_g)
    np.testing.assert_allclose(
        weight_grads.weight_grad_einsum(subscripts, x, g),
        weight_grads.weight_grad_einsum_plain(subscripts, x, g),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.slow
def test_every_device_multiplies_bfloat16():
    """Forward and backward of a model, whose products an XLA compiler might have no program for."""
    cfg = params.read_config(tiny.CASES["qwen2"])
    phi = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params.init(cfg, jax.random.key(0)))
    J = lambda phi: jnp.mean(layers.forward(cfg, phi, tiny.rows()).astype(jnp.float32) ** 2)
    found = jax.jit(jax.grad(J))(phi)
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(found))


def test_axes_of_a_gradient_in_another_order_are_refused():
    """They would be silently mixed up."""
    x = jnp.ones((1, 2, 3))
    with errors.raises(ValueError, "D,F->FD"):
        weight_grads.weight_grad_einsum("D,F->FD", x, x)


def test_the_gradient_of_an_embedding_is_that_of_indexing():
    """A look-up and its gradient equal those of plain indexing, repeated tokens included."""
    table, index = jax.random.normal(jax.random.key(0), (6, 3)), jnp.array([[0, 5, 5], [2, 0, 5]])
    g = jax.random.normal(jax.random.key(1), (2, 3, 3))
    pull = lambda form: jax.vjp(lambda table: form(table, index), table)
    (out, back), (want, want_back) = map(
        pull, (weight_grads.embed_lookup, weight_grads.embed_lookup_plain)
    )
    np.testing.assert_array_equal(out, want)
    np.testing.assert_allclose(back(g)[0], want_back(g)[0], rtol=1e-6, atol=1e-6)


def test_a_token_that_comes_often_counts_each_time():
    """1,024 times 1; added one by one in bfloat16 the sum would stop at 256."""
    back = lambda table: jax.vjp(
        lambda t: weight_grads.embed_lookup(t, jnp.full((4, 256), 2)), table
    )
    out, pull = back(jnp.arange(10, dtype=jnp.bfloat16).reshape(5, 2))
    np.testing.assert_array_equal(np.unique(np.asarray(out, np.float32)), [4.0, 5.0])
    (G,) = pull(jnp.ones((4, 256, 2), jnp.bfloat16))
    want = np.zeros((5, 2))
    want[2] = 1024
    assert G.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(G, np.float32), want)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_every_sum_over_positions_is_in_fp32(family):
    """Of a bfloat16 model's gradient; the CPU's compiler would hide a sum in bfloat16, so that the
    program is looked at as traced.
    """
    cfg = params.read_config(tiny.CASES[family])
    phi = jax.eval_shape(
        lambda: jax.tree.map(lambda x: x.astype(jnp.bfloat16), params.init(cfg, jax.random.key(0)))
    )
    seqs = tiny.rows(P=1, M=1, S=11, T=2)  # 13 positions
    J = lambda phi: jnp.sum(layers.forward(cfg, phi, seqs).astype(jnp.float32))
    sums: dict[str, list] = {"dot_general": [], "reduce_sum": [], "scatter-add": []}
    for equation in toys.equations(jax.make_jaxpr(jax.grad(J))(phi).jaxpr):
        if equation.primitive.name not in sums:
            continue
        given, out = equation.invars[0].aval, equation.outvars[0].aval
        if equation.primitive.name == "dot_general":
            summed = equation.params["dimension_numbers"][0][0]
        elif equation.primitive.name == "reduce_sum":
            summed = equation.params["axes"]
        else:
            summed = ()
        positions = 13 in (given.shape[axis] for axis in summed)
        if (
            positions
            or equation.primitive.name == "scatter-add"
            and out.shape == phi["embed"].shape
        ):
            sums[equation.primitive.name].append(out.dtype)
    biases, norms = (
        (3, 2) if family == "qwen2" else (0, 4)
    )  # two norms of each layer, with qwen3 those of queries and keys too
    assert (
        len(sums["dot_general"]) == 7 + norms
        and len(sums["reduce_sum"]) == biases
        and len(sums["scatter-add"]) == 1
    )
    assert {dtype for found in sums.values() for dtype in found} == {jnp.dtype(jnp.float32)}


def test_every_sum_of_a_forward_pass_is_in_fp32():
    """Of a bfloat16 model: no matmul's output is bfloat16; activations between them are."""
    cfg = params.read_config(tiny.CASES["llama"])
    phi = jax.eval_shape(
        lambda: jax.tree.map(lambda x: x.astype(jnp.bfloat16), params.init(cfg, jax.random.key(0)))
    )
    traced = jax.make_jaxpr(lambda phi: layers.forward(cfg, phi, tiny.rows()))(phi)
    sums = [
        equation.outvars[0].aval.dtype
        for equation in toys.equations(traced.jaxpr)
        if equation.primitive.name == "dot_general"
    ]
    assert (
        len(sums) > 7
        and set(sums) == {jnp.dtype("float32")}
        and traced.out_avals[0].dtype == jnp.bfloat16
    )
