"""A run directory belongs to one run at a time."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from bridge_jax.rundir import lock
from tests import errors

HOLDER = """
    import sys, time
    from bridge_jax.rundir import lock
    with getattr(lock, sys.argv[1])(sys.argv[2]):
        print("held", flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("how", ["run_lock", "shared_run_lock"])
def test_a_directory_that_a_process_still_has_is_refused(tmp_path, how):
    """Whether it is the first of a run's processes, or another one that has outlived it."""
    env = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), how, str(tmp_path)]
    holder = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with errors.raises(ValueError, str(tmp_path)), lock.run_lock(str(tmp_path)):
            pytest.fail("two runs in one directory")
    finally:
        holder.kill()
        holder.wait()
    with lock.run_lock(str(tmp_path)):
        # the other processes of this run share their lock
        with lock.shared_run_lock(str(tmp_path)), lock.shared_run_lock(str(tmp_path)):
            pass
