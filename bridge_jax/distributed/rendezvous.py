"""Rendezvous of the processes of a run: config.hosts, and jax's coordination service.

An error before all hosts are connected is one line that says what to check. Left out: exchange
between connected hosts (multihost.py).
"""

from __future__ import annotations

import dataclasses
import re
import socket
from collections.abc import Mapping
from typing import Any

import jax

from bridge_jax.distributed.watchdog import Lost, Peers, attempt, heartbeat

VARIABLES = {
    "coordinator": "BRIDGE_COORDINATOR",
    "count": "BRIDGE_HOST_COUNT",
    "index": "BRIDGE_HOST_INDEX",
}


@dataclasses.dataclass(frozen=True)
class Hosts:
    """config.hosts; keys at their defaults may come from VARIABLES."""

    # "": one process; "auto": from the TPU pod, GKE or Slurm; "host:port": where host 0 listens
    coordinator: str = ""
    # with host:port: number of processes, and which of them this is, 0 to count - 1
    count: int = 0
    index: int = -1
    # limit of every wait for another host
    timeout_s: int = 600


def read(given: Hosts, environment: Mapping[str, str]) -> Hosts:
    """The settings, completed from the environment; coordinator "" stands for one process."""
    default, found = Hosts(), {}
    for key, variable in VARIABLES.items():
        if variable in environment and getattr(given, key) == getattr(default, key):
            text = environment[variable]
            if key != "coordinator" and not re.fullmatch(r"\d+", text):
                raise ValueError(f"{variable}={text!r}; allowed: a whole number (hosts.{key})")
            found[key] = text if key == "coordinator" else int(text)
    h = dataclasses.replace(given, **found)
    if h.timeout_s < 10:
        raise ValueError(f"hosts.timeout_s={h.timeout_s}; allowed: at least 10 seconds")
    if h.coordinator in ("", "auto"):
        if (h.count, h.index) != (0, -1) and (h.coordinator, h.count) != ("", 1):
            raise ValueError(
                f"hosts.coordinator={h.coordinator!r}, hosts.count={h.count}, "
                f"hosts.index={h.index}; allowed: count and index only together with "
                "hosts.coordinator=HOST:PORT, at which host 0 (main) listens"
            )
        return h
    address = re.fullmatch(r"(\[[\da-fA-F:]+\]|[\w.-]+):(\d{1,5})", h.coordinator)
    if not address or not 1 <= int(address[2]) <= 65535:
        raise ValueError(
            f"hosts.coordinator={h.coordinator!r}; allowed: '' (one process), 'auto' (TPU pod, "
            "GKE, Slurm), or HOST:PORT at which host 0 (main) shall listen, PORT from 1 to 65535, "
            "such as 10.0.0.1:1234"
        )
    if h.count < 1 or not 0 <= h.index < h.count:
        raise ValueError(
            f"hosts.count={h.count}, hosts.index={h.index}; allowed: a count of at least 1, and "
            "for each process an index of its own, 0 to count - 1. Set --config.hosts.index or the "
            f"variable {VARIABLES['index']}"
        )
    return h if h.count > 1 else dataclasses.replace(h, coordinator="")


def join(h: Hosts) -> Peers | None:
    """Wait until all hosts are connected; None where this process turns out to be the only one."""
    auto = h.coordinator == "auto"
    if not auto and h.index == 0:
        _check_port(h)
    # its handler of SIGTERM would replace ours, and it knows no other signal
    jax.config.update("jax_enable_preemption_service", False)
    # watchdog.py reports the end of one host; otherwise jax would abort the others
    jax.config.update("jax_enable_recoverability", True)

    def initialize() -> None:
        jax.distributed.initialize(
            *(() if auto else (h.coordinator, h.count, h.index)),
            # when this is over jax aborts without an error, so the limit below has to come first
            initialization_timeout=h.timeout_s + 60,
            heartbeat_timeout_seconds=heartbeat(h.timeout_s),
            shutdown_timeout_seconds=30,
        )

    # in another thread, since a signal would not interrupt jax's wait
    initialized = attempt(initialize, h.timeout_s)
    if initialized.done() and (error := initialized.exception()):
        reason = " ".join(str(error).split())[:400]
        raise ValueError(
            f"hosts.coordinator={h.coordinator!r}: the hosts cannot find each other ({reason}). If "
            "jax does not know this kind of cluster, set hosts.coordinator=HOST:PORT, hosts.count "
            "and hosts.index"
        ) from error
    if not initialized.done():
        raise Lost(_why_alone(h))
    client, _, index, count = service()
    return Peers(client, index, count, h.timeout_s) if count > 1 else None


def _why_alone(h: Hosts) -> str:
    """A message for a host that waited in vain: what is known of the others, what to check."""
    auto = h.coordinator == "auto"
    address, index, count = service()[1:] if auto else (h.coordinator, h.index, h.count)
    waited = f"waited {h.timeout_s} s (hosts.timeout_s)"
    # before jax knows the cluster, it has no address, and the count of one process
    if address is None:
        return (
            f"hosts.coordinator='auto': this host {waited} for jax to find out which hosts there "
            "are; see whether all tasks of the job run, and the TPU pod, GKE or Slurm tells of "
            "them, or set hosts.coordinator=HOST:PORT, hosts.count and hosts.index"
        )
    listening = "host 0 (main) listens there" if _listens(address) else "nobody listens there"
    start = (
        "see whether all tasks of the job run"
        if auto
        else "start all hosts, each with its own hosts.index and the same hosts.count"
    )
    return (
        f"host {index} {waited} at {address} for all {count} "
        f"hosts, and not all came ({listening}); {start}, and can reach that address"
    )


def service() -> tuple[Any, str | None, int, int]:
    """The client of jax's coordination service, its address, this process's index, their number.

    None, None, 0 and 1 before jax knows the cluster.
    The one use of a private module of jax: nothing public leads to the key-value store."""
    from jax._src.distributed import global_state as state

    return state.client, state.coordinator_address, state.process_id, state.num_processes


def _check_port(h: Hosts) -> None:
    """ValueError where host 0 cannot listen: jax would crash, or end the run that listens there."""
    port = int(h.coordinator.rpartition(":")[2])
    # as jax does: at all addresses of both families, whatever address the others are given
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise ValueError(
            f"hosts.coordinator={h.coordinator!r}: host 0 (main) cannot listen there ({error}); "
            "give an address of this machine and a free port"
        ) from error


def _listens(address: str | None) -> bool:
    host, _, port = (address or "").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    except (OSError, ValueError):
        return False
    return True
