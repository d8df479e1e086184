"""Locks that keep a second run out of a run directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from bridge_jax.filesystem import files
from bridge_jax.rundir import layout


@contextlib.contextmanager
def run_lock(workdir: str) -> Iterator[None]:
    """Lock the directory for this run until the process ends; ValueError while another run has it.

    Of several processes of a run the first calls it; then the others call `shared_run_lock`.
    """
    lock, shared_lock = _paths(layout.make_writable(workdir))
    way_out = "wait for it or stop it, or take another --workdir."
    with files.file_lock(lock, f"another process trains in {workdir!r}; {way_out}"):
        # nobody holds the shared lock while no process of an earlier run is alive
        with files.file_lock(
            shared_lock, f"a process of an earlier run is still in {workdir!r}; {way_out}"
        ):
            pass
        yield


@contextlib.contextmanager
def shared_run_lock(workdir: str) -> Iterator[None]:
    """Keep later runs out while this process, not the first of its run, uses the directory."""
    refusal = f"another run begins in {workdir!r}: take another --workdir."
    with files.file_lock(_paths(workdir)[1], refusal, shared=True):
        yield


def _paths(workdir: str) -> tuple[str, str]:
    return os.path.join(workdir, ".lock"), os.path.join(workdir, ".lock_of_others")
