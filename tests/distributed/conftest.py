"""What runs of several processes share."""

from __future__ import annotations

import pytest

from tests.distributed import host_runs


@pytest.fixture(scope="session")
def one(tmp_path_factory):
    """The run of GRPO of one process with all devices."""
    workdir = tmp_path_factory.mktemp("one")
    assert host_runs.run(workdir, 1) == [0], host_runs.output(workdir, 0)
    return workdir
