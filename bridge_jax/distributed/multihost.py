"""Several processes, one run: how they find each other, agree, and share work on the host side.

Every host holds the same prompts, samples and rewards, and so decides the same from them; each
device holds its own rows. What hosts cannot know of each other (a signal, outcomes of samples that
another one graded) goes through the key-value store of jax's coordination service, since a gather
of `jax.experimental.multihost_utils` queues behind the devices' work: measured in docs/launch.md.
With one process every function here is the identity, at no cost. watchdog.py limits each wait.
Left out: meshes and layouts (sharding.py), what must be the same on all hosts (consistency.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from bridge_jax.config import schema
from bridge_jax.distributed.watchdog import LOST, Lost, Peers, attempt, broke, heartbeat
from bridge_jax.filesystem import files, streams

VARIABLES = {
    "coordinator": "BRIDGE_COORDINATOR",
    "count": "BRIDGE_HOST_COUNT",
    "index": "BRIDGE_HOST_INDEX",
}
START_ALL = "start all hosts, each with its own hosts.index and the same hosts.count"
START_AUTO = "see whether all tasks of the job run"


@dataclasses.dataclass(frozen=True)
class Hosts:
    """How the processes find each other; keys at their defaults may come from VARIABLES."""

    # "": one process; "auto": as TPU pods, GKE and Slurm tell; "host:port", at which host 0 (main) listens
    coordinator: str = ""
    # with host:port: number of processes, and which of them this is, 0 to count - 1
    count: int = 0
    index: int = -1
    # of any wait for another host
    timeout_s: int = 600


_peers: Peers | None = None  # of the run under way; None with one process
_index = 0  # of this process, also after the hosts have parted
_started = False  # whether jax.distributed was ever started here
_numbers = itertools.count()  # of gathers


def read(given: Hosts, environment: Mapping[str, str]) -> Hosts:
    """The settings, completed from the environment; ValueError for invalid ones.

    coordinator "" in the result: one process.
    """
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
            f"hosts.coordinator={h.coordinator!r}; allowed: '' (one process), 'auto' (TPU pod, GKE, "
            "Slurm), or HOST:PORT at which host 0 (main) shall listen, PORT from 1 to 65535, such as "
            "10.0.0.1:1234"
        )
    if h.count < 1 or not 0 <= h.index < h.count:
        raise ValueError(
            f"hosts.count={h.count}, hosts.index={h.index}; allowed: a count of at least 1, and for "
            "each process an index of its own, 0 to count - 1. Set --config.hosts.index or the "
            f"variable {VARIABLES['index']}"
        )
    return h if h.count > 1 else dataclasses.replace(h, coordinator="")


@contextlib.contextmanager
def joined(config) -> Iterator[None]:
    """Join the other processes of config.hosts, and leave with them; before any device is touched.

    Lost is raised in place of errors that another host's end caused."""
    global _peers
    h = read(schema.section(config, "hosts", Hosts), os.environ)
    if not h.coordinator or initialize(h) == 1:
        yield
        return
    peers = _peers
    try:
        if not is_main():  # the main host speaks for all; a warning may be of one host alone
            logging.getLogger().setLevel(max(logging.WARNING, logging.getLogger().level))
        names = gather("names of the hosts", socket.gethostname())
        peers.names = [f"host {i} ({name})" for i, name in enumerate(names)]
        yield
        barrier("the end of the run", io_grace=True)
    except BaseException as error:
        end = error
        if isinstance(error, Exception) and not isinstance(error, Lost) and broke(error):
            end = peers.await_verdict(error)
        if isinstance(end, Exception):
            peers.announce(LOST, str(end))
        else:
            peers.announce(0, "by a signal, before a step was begun")
        peers.leave()
        if end is error:
            raise
        raise end from error
    else:
        peers.leave()
    finally:
        _peers = None


def initialize(h: Hosts) -> int:
    """Join the other processes and start to monitor them; returns their number."""
    global _peers, _index, _started
    auto = h.coordinator == "auto"
    if not auto and h.index == 0:
        _check_port(h)
    # its handler of SIGTERM would replace ours, and it knows no other signal
    jax.config.update("jax_enable_preemption_service", False)
    # the end of one host is told by watchdog.py, and does not abort the others
    jax.config.update("jax_enable_recoverability", True)
    given = () if auto else (h.coordinator, h.count, h.index)
    waits = dict(
        # jax aborts in place of an error when this is over: the timeout below comes before
        initialization_timeout=h.timeout_s + 60,
        heartbeat_timeout_seconds=heartbeat(h.timeout_s),
        shutdown_timeout_seconds=30,
    )
    errors: list[Exception] = []

    def call() -> None:
        try:
            jax.distributed.initialize(*given, **waits)
        except Exception as error:
            errors.append(error)

    _started = True
    # in a thread: while jax waits for the other hosts, the main one would hear no signal
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    until = time.monotonic() + h.timeout_s
    while thread.is_alive() and time.monotonic() < until:
        thread.join(0.5)
    if errors:
        _started = jax.distributed.is_initialized()
        reason = " ".join(str(errors[0]).split())[:400]
        raise ValueError(
            f"hosts.coordinator={h.coordinator!r}: the hosts cannot find each other ({reason}). If "
            "jax does not know this kind of cluster, set hosts.coordinator=HOST:PORT, hosts.count "
            "and hosts.index"
        ) from errors[0]
    client, address, _index, count = _service()
    if thread.is_alive():
        there = "host 0 (main) listens there" if _listens(address) else "nobody listens there"
        raise Lost(
            f"host {_index} waited {h.timeout_s} s (hosts.timeout_s) at {address} for all {count} "
            f"hosts, and not all came ({there}); {START_AUTO if auto else START_ALL}, and can reach "
            "that address"
        )
    if count > 1:
        _peers = Peers(client, _index, count, h.timeout_s)
        _peers.start()
    return count


def _service() -> tuple[Any, str, int, int]:
    """The client of jax's coordination service, its address, this process's index, their number.

    The one use of a private module of jax: nothing public leads to the key-value store."""
    from jax._src.distributed import global_state as state

    return state.client, state.coordinator_address, state.process_id, state.num_processes


def _check_port(h: Hosts) -> None:
    """ValueError where host 0 cannot listen: jax would crash, or end the run that listens there."""
    try:
        socket.create_server(("", int(h.coordinator.rpartition(":")[2]))).close()
    except OSError as error:
        raise ValueError(
            f"hosts.coordinator={h.coordinator!r}: host 0 (main) cannot listen there ({error}); give an "
            "address of this machine and a free port"
        ) from error


def _listens(address: str | None) -> bool:
    host, _, port = (address or "").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    except (OSError, ValueError):
        return False
    return True


def started() -> bool:
    """Whether this process ever joined others: if it fails, Python's shutdown would hang in jax."""
    return _started


def count() -> int:
    """Number of processes of the run."""
    return _peers.count if _peers else 1


def index() -> int:
    """Which of them this is, also after they have parted."""
    return _index


def name(i: int) -> str:
    """What to call a host in a message."""
    return _peers.names[i] if _peers else f"host {i}"


def is_main() -> bool:
    """Whether this is host 0, the main one, which writes logs and speaks to the user."""
    return _index == 0


def print_on_main(text: str) -> None:
    """Print, on the main host; what cannot be printed is dropped."""
    if is_main():
        streams.write_line(text)


def announce_end(text: str) -> None:
    """Tell the others why this host ends of itself; they follow with exit code LOST."""
    if _peers:
        _peers.announce(LOST, text)
        if not is_main():  # the others hear of it at once; with host 0 the service ends
            attempt(jax.distributed.shutdown, 2.0)


def close_with_limit(close: Callable[[], None]) -> None:
    """Calls close() after an error, for hosts.timeout_s at most where there are other hosts.

    Its end may hang on a host that never comes, which would keep the error from being told.
    """
    if _peers:
        attempt(close, _peers.timeout_s)
    else:
        close()


def watchdog(label: str, io_grace: bool = False):
    """`with watchdog("update of step 3"):` around whatever needs the other hosts to go on.

    io_grace: where one of them may read or write a checkpoint, which takes long on slow storage."""
    return _peers.watchdog(label, io_grace) if _peers else contextlib.nullcontext()


def gather(label: str, mine: str, io_grace: bool = False) -> list[str]:
    """The texts of all hosts, in the order of the hosts, on every host; waits for all of them."""
    if not _peers:
        return [mine]
    client, number, limit = _peers.client, next(_numbers), _peers.limit(io_grace)
    folder = f"bridge/gather/{number}/"
    client.key_value_set(f"{folder}{index()}", json.dumps([label, mine]))
    try:
        client.wait_at_barrier("bridge/gather", int(1000 * limit))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        here = {int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get(folder)}
        late = ", ".join(name(i) for i in range(count()) if i not in here)
        raise Lost(f"{_peers.waited(label, io_grace)}; did not come: {late}") from error
    pairs = client.key_value_dir_get(folder)
    found = {int(key.rpartition("/")[2]): json.loads(text) for key, text in pairs}
    if is_main():  # whoever is here has read all of the last one
        client.key_value_delete(f"bridge/gather/{number - 1}")
    if others := {name(i): asked for i, (asked, _) in found.items() if asked != label}:
        raise RuntimeError(f"the hosts diverged: here it is about {label!r}, elsewhere {others}")
    return [found[i][1] for i in range(count())]


def barrier(label: str, io_grace: bool = False) -> None:
    """Returns when all hosts are here."""
    gather(label, "", io_grace)


def broadcast_from_main(label: str, function: Callable[[], Any], io_grace: bool = False) -> Any:
    """What `function` returns on the main host, which alone calls it: JSON.

    Its ValueError or OSError is raised everywhere."""
    if not _peers:
        return function()
    kinds = {"ValueError": ValueError, "NoSpace": files.NoSpace, "OSError": OSError}
    mine = ""
    if is_main():
        try:
            mine = json.dumps(["", function()])
        except ValueError as error:
            mine = json.dumps(["ValueError", str(error)])
        except OSError as error:
            kind = "NoSpace" if files.is_full(error) else "OSError"
            mine = json.dumps([kind, files.explain(error)])
    kind, value = json.loads(gather(label, mine, io_grace)[0])
    if kind:
        raise kinds[kind](value)
    return value


def any_process(label: str, mine: bool, io_grace: bool = False) -> bool:
    """Whether the flag `mine` is set on any host."""
    return "yes" in gather(label, "yes" if mine else "", io_grace)


def process_slice(rows: int) -> slice:
    """The part of `rows` rows that this host works on; in the hosts' order they make the whole."""
    if not _peers:
        return slice(rows)
    return slice(rows * index() // count(), rows * (index() + 1) // count())


def all_gather_lists(label: str, mine: list) -> list:
    """The lists of all hosts, one behind the other: JSON."""
    if not _peers:
        return mine
    return [row for text in gather(label, json.dumps(mine)) for row in json.loads(text)]


def place(tree, shardings):
    """Host arrays, the same on every host, onto devices; each host moves what its devices hold."""
    if not _peers:
        return jax.device_put(tree, shardings)

    def put(leaf, sharding):
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])

    return jax.tree.map(put, tree, shardings)


def replicate(tree):
    """The same arrays, each whole on every device that has a part of it; begun, not waited for."""
    if not _peers:
        return tree

    def gathered(leaf):
        if leaf.is_fully_replicated or leaf.is_fully_addressable:
            return leaf
        return _copy(leaf.sharding.update(spec=PartitionSpec()))(leaf)

    return jax.tree.map(gathered, tree)


@functools.lru_cache(maxsize=64)
def _copy(sharding):
    return jax.jit(lambda leaf: leaf, out_shardings=sharding)


def device_get(label: str, tree):
    """Host copies of device arrays, whole and the same on every host; waits for them."""
    with watchdog(label):
        return jax.device_get(replicate(tree))
