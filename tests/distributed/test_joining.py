"""Processes that jax finds by itself, as on Slurm: they join, and name whoever has not come. No training, so that it is quick."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import jax
import pytest

from bridge_jax.distributed import multihost, rendezvous
from tests.distributed import host_runs

CHILD = """
import logging, os, sys
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
from bridge_jax.distributed import multihost, rendezvous
from tests import tiny_runs
if "undetected" in sys.argv:
    rendezvous.cluster = lambda seconds: None  # as of a jax that keeps its detection elsewhere
config = tiny_runs.config(hosts__coordinator="auto", hosts__timeout_s=int(sys.argv[1]))
try:
    with multihost.joined(config):
        logging.info("a note"), logging.warning("a warning")
        print(multihost.count(), multihost.gather("names", f"host {multihost.index()}"))
except (ValueError, multihost.Lost) as error:
    print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(1)
"""


def task(index: int, port: int, timeout_s: int, *argv: str) -> subprocess.Popen:
    """One of two tasks of a job of Slurm's on this machine."""
    slurm = dict(
        SLURM_JOB_ID="7",
        SLURM_STEP_NODELIST="127.0.0.1",
        SLURM_NTASKS="2",
        SLURM_PROCID=str(index),
        SLURM_LOCALID="0",
        JAX_COORDINATOR_PORT=str(port),
    )
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "JAX_"))
    }
    environment |= dict(PYTHONPATH=str(host_runs.ROOT), JAX_PLATFORMS="cpu", XLA_FLAGS="") | slurm
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(timeout_s), *argv],
        cwd=host_runs.ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_two_tasks_of_slurm_join():
    """And host 0 alone tells its notes; warnings come from all."""
    port = host_runs.free_port()
    said = [one.communicate(timeout=250) for one in [task(0, port, 100), task(1, port, 100)]]
    assert [out for out, _ in said] == ["2 ['host 0', 'host 1']\n"] * 2, said
    assert ["INFO a note" in err for _, err in said] == [True, False]
    assert ["WARNING a warning" in err for _, err in said] == [True, True]


def test_who_does_not_come_is_named():
    """By the roll-call; where jax's detection is not to be had, jax's own wait says less, and the stacks come first."""
    ports = [host_runs.free_port() for _ in range(2)]
    alone = [task(0, ports[0], 10), task(1, ports[1], 10, "undetected")]
    (found, _), (undetected, stacks) = [one.communicate(timeout=250) for one in alone]
    assert found == (
        f"Lost: host 0 waited up to 10 s (hosts.timeout_s) at 127.0.0.1:{ports[0]}, and host 1 of 2 did not come; "
        "see whether all tasks of the job run, and can reach that address\n"
    )
    assert undetected.startswith(
        f"Lost: host 1 waited 10 s (hosts.timeout_s) at 127.0.0.1:{ports[1]}, and nobody listens there, "
        "where host 0 should; see whether all tasks"
    )
    assert (
        "the stacks of this host's threads stand above" in undetected
        and "jax/_src/distributed.py" in stacks
    )


def test_what_jax_finds(monkeypatch):
    """Slurm's variables, JAX_COORDINATOR_ADDRESS before them; None outside of any cluster and for another jax."""
    for key in [key for key in os.environ if key.startswith(("SLURM_", "JAX_COORDINATOR"))]:
        monkeypatch.delenv(key)
    assert rendezvous.cluster(10) is None
    for key, value in dict(
        JOB_ID="5", STEP_NODELIST="node[07-09,12]", NTASKS="4", PROCID="3", LOCALID="1"
    ).items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    assert rendezvous.cluster(10) == ("node07:61445", 4, 3)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:1234")
    assert rendezvous.cluster(10) == ("10.0.0.1:1234", 4, 3)
    from jax._src import clusters

    monkeypatch.setattr(
        clusters.ClusterEnv, "auto_detect_unset_distributed_params", lambda: None
    )  # takes other arguments
    assert rendezvous.cluster(10) is None
    monkeypatch.delattr(clusters, "ClusterEnv")
    assert rendezvous.cluster(10) is None


def test_what_is_found_wrongly(monkeypatch):
    """A variable that cannot be read, no cluster at all, and a port that is taken: each with its way out."""
    for key, value in dict(
        JOB_ID="5", STEP_NODELIST="127.0.0.1", NTASKS="two", PROCID="0", LOCALID="0"
    ).items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    with pytest.raises(
        ValueError, match="the hosts cannot find each other .invalid literal .*'two'"
    ):
        multihost.connect(multihost.Hosts("auto"))
    monkeypatch.setattr(
        rendezvous, "cluster", lambda seconds: None
    )  # and jax's own attempt, which comes too late here, fails
    with pytest.raises(
        ValueError,
        match="cannot find each other .jax.distributed.initialize.. must be .*hosts.coordinator=HOST",
    ):
        jax.devices(), multihost.connect(multihost.Hosts("auto"))
    assert not multihost.started()
    monkeypatch.undo()
    for key, value in dict(
        JOB_ID="5", STEP_NODELIST="127.0.0.1", NTASKS="2", PROCID="0", LOCALID="0"
    ).items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    monkeypatch.setattr(rendezvous, "call", lambda *given: (_ for _ in ()).throw(OSError("in use")))
    with pytest.raises(
        ValueError,
        match="127.0.0.1:61445'.*cannot listen there .in use.; set JAX_COORDINATOR_PORT, the same",
    ):
        multihost.connect(multihost.Hosts("auto"))


@pytest.mark.parametrize(
    "came, told",
    [(True, "not all of the others came"), (False, "nobody listens there, where host 0")],
)
def test_jax_waits_in_vain(monkeypatch, capfd, came, told):
    """After a roll-call to which all came."""
    monkeypatch.setattr(rendezvous, "call", lambda *given: rendezvous.Found(()))
    monkeypatch.setattr(
        multihost.jax.distributed, "initialize", lambda *given, **waits: time.sleep(3)
    )
    monkeypatch.setattr(multihost.watching, "reachable", lambda address: came)
    monkeypatch.setattr(multihost, "_started", False)
    with pytest.raises(
        multihost.Lost,
        match=f"waited 0.5 s .hosts.timeout_s. .*, and {told}.*; start all hosts.*stand above",
    ):
        multihost.connect(multihost.Hosts("127.0.0.1:1234", 2, 1, 0.5))
    assert "Current thread" in capfd.readouterr().err
