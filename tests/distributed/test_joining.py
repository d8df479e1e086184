"""Processes that find each other, or do not; without training, so that it is quick."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import types

import pytest

from bridge_jax.distributed import multihost
from tests.distributed import host_runs

CHILD = """
import logging, os, signal, sys
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
from bridge_jax.distributed import multihost, rendezvous
from bridge_jax.training import interrupt
from configs import base
what, given = sys.argv[1], dict(pair.split("=") for pair in sys.argv[2:])
config = base.get_config()
for key, value in given.items():
    config.hosts[key] = value if key == "coordinator" else int(value)
try:
    with multihost.joined(config):
        logging.info("a note"), logging.warning("a warning")
        for i in range(3):
            indices = multihost.gather(f"indices {i}", f"host {multihost.index()}")
        kept = len(rendezvous.service()[0].key_value_dir_get("bridge/gather/"))
        print(multihost.count(), indices, kept <= 2 * multihost.count())
        if what == "apart":
            multihost.gather("rewards" if multihost.is_main() else "what to save", "")
        if what == f"kill {multihost.index()}":
            os.kill(os.getpid(), signal.SIGKILL)
        if what in ("stop", "interrupt") and multihost.is_main():
            os.kill(os.getpid(), signal.SIGSTOP) if what == "stop" else interrupt.end_at_once("end")
        if what == "fail" and not multihost.is_main():
            raise ValueError("this host alone")
        multihost.barrier("there")
except (ValueError, RuntimeError) as error:
    print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(4 if isinstance(error, multihost.Lost) else 1)
"""


def child(what: str, environment: dict | None = None, **given) -> subprocess.Popen:
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "JAX_"))
    }
    inherited |= dict(PYTHONPATH=str(host_runs.ROOT), JAX_PLATFORMS="cpu", XLA_FLAGS="")
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, what, *(f"{k}={v}" for k, v in given.items())],
        cwd=host_runs.ROOT,
        env=inherited | (environment or {}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def slurm(index: int, port: int, count: str = "2") -> dict[str, str]:
    """Variables of one of two tasks of a job on this machine."""
    return dict(
        SLURM_JOB_ID="7",
        SLURM_STEP_NODELIST="127.0.0.1",
        SLURM_NTASKS=count,
        SLURM_PROCID=str(index),
        SLURM_LOCALID="0",
        JAX_COORDINATOR_PORT=str(port),
    )


def ends(children: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """(exit code, output, errors) of each."""
    found = [one.communicate(timeout=300) for one in children]
    return [(one.returncode, *texts) for one, texts in zip(children, found)]


@pytest.mark.slow
def test_two_tasks_of_slurm_join():
    """Host 0 alone tells its notes, warnings come from all; what was gathered does not stay in the
    service.
    """
    port = host_runs.free_port()
    found = ends([child("", slurm(i, port), coordinator="auto") for i in (0, 1)])
    assert [end[:2] for end in found] == [(0, "2 ['host 0', 'host 1'] True\n")] * 2, found
    assert ["INFO a note" in errors for _, _, errors in found] == [True, False]
    assert ["WARNING a warning" in errors for _, _, errors in found] == [True, True]


@pytest.fixture(scope="module")
def waiting():
    """Processes that mostly wait, side by side: hosts that nobody joins, and hosts of which one is
    killed.
    """
    port, alone = host_runs.free_port(), f"127.0.0.1:{host_runs.free_port()}"
    groups = {
        "alone": [
            child("", slurm(0, port), coordinator="auto", timeout_s=10),
            child("", coordinator=alone, count=3, index=1, timeout_s=10),
            child("", slurm(0, port, "two"), coordinator="auto", timeout_s=10),
        ]
    }
    for killed, count in ((2, 4), (0, 2)):
        given = dict(coordinator=f"127.0.0.1:{host_runs.free_port()}", count=count, timeout_s=20)
        groups[f"kill {killed}"] = [child(f"kill {killed}", index=i, **given) for i in range(count)]
    yield types.SimpleNamespace(port=port, address=alone, groups=groups)
    for one in itertools.chain(*groups.values()):
        one.kill()


@pytest.mark.slow
def test_a_host_that_waits_alone_prints_what_to_check(waiting):
    """Host 1 does not come, host 0 does not come, Slurm's variables cannot be read."""
    zero, one, broken = ends(waiting.groups["alone"])
    assert zero[:2] == (
        4,
        f"Lost: host 0 waited 10 s (hosts.timeout_s) at 127.0.0.1:{waiting.port} for all 2 hosts, and "
        "not all came (host 0 (main) listens there); see whether all tasks of the job run, and can reach that address\n",
    )
    assert one[:2] == (
        4,
        f"Lost: host 1 waited 10 s (hosts.timeout_s) at {waiting.address} for all 3 hosts, and not all "
        "came (nobody listens there); start all hosts, each with its own hosts.index and the same hosts.count, and can reach that address\n",
    )
    assert broken[0] == 1 and "the hosts cannot find each other (invalid literal" in broken[1]
    assert "set hosts.coordinator=HOST:PORT" in broken[1]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["apart", "fail"])
def test_hosts_that_do_not_do_the_same_end(what):
    """One saves while the other samples on; or one fails, and the other is told and waits no
    longer.
    """
    address = f"127.0.0.1:{host_runs.free_port()}"
    given = dict(coordinator=address, count=2, timeout_s=60)
    zero, one = ends([child(what, index=i, **given) for i in (0, 1)])
    if what == "apart":
        assert "RuntimeError: the hosts diverged: here it is about 'rewards', elsewhere" in zero[1]
        assert "RuntimeError: the hosts diverged: here it is about 'what to save'" in one[1]
    else:
        assert one[0] == 1 and "ValueError: this host alone" in one[1]
        assert zero[0] == multihost.LOST and "stopped: this host alone\n" in zero[2]


@pytest.mark.slow
def test_host_0_that_stops_or_goes_at_once_ends_the_others():
    """It holds jax's coordination service: jax aborts them, with a message of its own."""
    groups = {}
    for what in ("stop", "interrupt"):
        address = f"127.0.0.1:{host_runs.free_port()}"
        given = dict(coordinator=address, count=2, timeout_s=20)
        groups[what] = [child(what, index=i, **given) for i in (0, 1)]
    for zero, one in groups.values():
        text = one.communicate(timeout=300)[1]
        zero.kill()
        assert one.returncode == -signal.SIGABRT and "JAX distributed service" in text
    assert [group[0].wait() for group in groups.values()] == [-signal.SIGKILL, 130]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [2, 0])
def test_a_host_that_is_killed_ends_the_others(waiting, killed):
    """All of them, and they name it; without host 0 (main) jax aborts them."""
    found = ends(waiting.groups[f"kill {killed}"])
    assert found.pop(killed)[0] == -signal.SIGKILL
    code = multihost.LOST if killed else -signal.SIGABRT
    assert [end[0] for end in found] == [code] * len(found), found
    expected = "error: no heartbeat from host 2 (" if killed else "JAX distributed service"
    assert all(expected in errors for _, _, errors in found), found
