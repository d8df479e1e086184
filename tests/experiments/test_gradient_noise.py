"""The noise of a part's gradient, from gradients that are known."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.study import gradient_noise


def test_parts_of_known_gradients():
    """Where theta_hat is theta a paired gain is exactly 0 and an unpaired one is not; the mean over
    the parts is the whole, but for the division by a part's own tokens.
    """
    rng = np.random.default_rng(0)
    w, hat = rng.standard_normal((8, 3)), rng.standard_normal((8, 5))
    groups = gradient_noise.Groups(rng.integers(1, 9, 8), w, w, hat)
    found = {name: pair for name, *pair in gradient_noise.estimates(groups, 4)}
    assert not found["gain, paired"][1].any() and np.abs(found["gain, unpaired"][1]).max() > 0.1
    whole, parts = found["theta_hat"]
    np.testing.assert_allclose(parts[1], 4 * (hat[1] + hat[5]))
    np.testing.assert_allclose(parts.mean(0), whole)
    own = found["theta_hat, own count"][1][1]
    tokens = groups.tokens_P
    np.testing.assert_allclose(own / tokens.sum(), (hat[1] + hat[5]) / (tokens[1] + tokens[5]))


def test_summary_by_hand():
    """Two batches, two parts each: one along the whole, one against it."""
    whole = np.array([1.0, 0.0])
    pairs = [(k * whole, np.stack([3 * k * whole, -k * whole])) for k in (1.0, 2.0)]
    found = gradient_noise.summary(pairs)
    # squared distances 4 and 4, times 1 and 4: a mean of 10; the wholes 1 and 2 vary by 1/2
    assert found == {"cosine": pytest.approx(0.0), "bias": 0.0, "variance": pytest.approx(20.0)}
