"""What runs of several processes share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiled programs, shared by all processes of a file."""
    return tmp_path_factory.mktemp("cache")
