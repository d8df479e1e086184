"""What runs of several processes share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Folder of compiled programs, shared by all processes of all runs."""
    base = tmp_path_factory.getbasetemp()
    # beside the folders of pytest-xdist's workers
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    folder.mkdir(exist_ok=True)
    return folder
