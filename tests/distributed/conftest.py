"""What runs of several processes share."""

from __future__ import annotations

import os
import pathlib

import pytest

from tests.distributed import host_runs


@pytest.fixture(scope="session")
def compiled():
    """Folder of compiled programs, shared by all processes of all runs: the session's own."""
    return pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])


@pytest.fixture(scope="session")
def one(tmp_path_factory, compiled):
    """The run of GRPO of one process with all devices."""
    workdir = tmp_path_factory.mktemp("one")
    assert host_runs.run(workdir, 1, compiled) == [0], host_runs.output(workdir, 0)
    return workdir
