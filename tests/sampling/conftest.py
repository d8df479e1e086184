"""The tiny model that is sampled from."""

from __future__ import annotations

import pytest

from tests import toys


@pytest.fixture(scope="module")
def phi():
    """A sharp tiny model."""
    return toys.transformer_theta()
