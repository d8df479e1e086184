"""RMS norm: fp32 inside, and its gradients against those of the plain form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.models.norm import rms_norm, rms_norm_plain


def test_rms_norm_computes_in_fp32():
    """bf16 in and out, one rounding: what fp32 gives, then rounded. A zero row stays zero."""
    x = jnp.asarray(np.random.RandomState(0).standard_normal((64, 96)), jnp.bfloat16)
    out = rms_norm(x, jnp.ones(96, jnp.bfloat16), 1e-6)
    exact = np.asarray(x, np.float64)
    exact /= np.sqrt(np.mean(exact**2, axis=-1, keepdims=True) + 1e-6)
    rounded = jnp.asarray(exact.astype(np.float32)).astype(jnp.bfloat16)
    assert (
        out.dtype == jnp.bfloat16 and (out != rounded).mean() < 0.01
    )  # ties in fp32 may fall to either side
    assert not rms_norm(jnp.zeros((1, 8)), jnp.ones(8), 1e-6).any()


@pytest.mark.parametrize(
    "dtype, error", [(jnp.float32, 1e-5), (jnp.bfloat16, 2**-8)]
)  # 2^-8: rounded once to 8 bits
@pytest.mark.parametrize("shape", [(5, 8), (2, 7, 8), (2, 7, 3, 8)])
def test_gradients_of_rms_norm(shape, dtype, error):
    """Written out by hand: to x and scale, those that jax derives from the plain form in fp32."""
    draw = lambda k, *shape: jax.random.normal(jax.random.key(k), shape).astype(dtype)
    x, scale, g = draw(0, *shape), 1 + draw(1, 8), draw(2, *shape)
    plain = lambda x, scale: rms_norm_plain(x, scale, 0.1)
    want = jax.vjp(plain, *(y.astype(jnp.float32) for y in (x, scale)))[1](g.astype(jnp.float32))
    got = jax.vjp(lambda x, scale: rms_norm(x, scale, 0.1), x, scale)[1](g)
    assert [y.dtype for y in got] == [dtype, dtype]
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(
            got.astype(jnp.float32), want, rtol=error, atol=1e-5
        ),
        got,
        want,
    )
