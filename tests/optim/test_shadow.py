"""theta_hat as its difference from theta: exact where bfloat16 is, unbiased, and in full on
read.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.optim import shadow
from bridge_jax.optim.shadow import STORAGE, Shadow
from tests import errors
from tests.optim.trees import one

KEY = jax.random.key(0)


def test_full_storage_changes_nothing():
    """What is written is what is read, and nothing must be written again when theta moves."""
    params = one([1.0, 2.0], [1.5, 2.5])
    full = STORAGE["full"]
    assert full.write(params, KEY) is params and full.stored_relative == ()
    np.testing.assert_array_equal(shadow.read_shadow(full, params)["x"], [1.5, 2.5])


def test_a_difference_that_bfloat16_holds_is_exact():
    """Also 0, and beside a theta that hides it from bfloat16: 1 + 2^-12 is no number of it."""
    theta, difference = np.float32([1.0, 3.0, -2.0]), np.float32([2.0**-12, 0.0, -0.5])
    small = STORAGE["difference"].write(one(theta, theta + difference), KEY)
    assert small.theta_hat["x"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(small.theta_hat["x"].astype(jnp.float32), difference)
    np.testing.assert_array_equal(small.theta["x"], theta)
    read = shadow.read_shadow(STORAGE["difference"], small)["x"]
    assert read.dtype == jnp.float32
    np.testing.assert_array_equal(read, theta + difference)


def test_rounding_of_the_difference_is_unbiased():
    """A difference a quarter of the way between two numbers of bfloat16 comes out as either, on
    average as it is.
    """
    step = 2.0**-7
    theta = np.zeros(4096, np.float32)
    small = STORAGE["difference"].write(one(theta, theta + 1.0 + step / 4), KEY)
    found = np.asarray(small.theta_hat["x"].astype(jnp.float32))
    assert set(found.tolist()) == {1.0, 1.0 + step}
    # 4096 draws with probability 1/4: a standard error of 0.007
    assert np.mean(found == 1.0 + step) == pytest.approx(0.25, abs=0.035)


def test_a_theta_that_moves_takes_the_stored_shadow_along():
    """Which is why the difference must be written again: stored_relative names it."""
    small = STORAGE["difference"].write(one([1.0], [1.5]), KEY)
    moved = small.replace(theta={"x": jnp.float32([2.0])})
    np.testing.assert_array_equal(shadow.read_shadow(STORAGE["difference"], moved)["x"], [2.5])
    assert STORAGE["difference"].stored_relative == ("theta_hat",)


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("storage", "half", ("full", "difference")),
        ("moments", "float16", ("", "float32", "bfloat16", "factored")),
    ],
)
def test_settings_out_of_range(key, value, allowed):
    """The error names the key, the value and all that is allowed."""
    with errors.raises(
        ValueError, f"method.bridge.shadow.{key}={value!r}", tuple(map(repr, allowed))
    ):
        Shadow(**{key: value}).check("method.bridge.shadow")
    Shadow(**{key: allowed[-1]}).check("method.bridge.shadow")
