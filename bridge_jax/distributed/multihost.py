"""Several processes, one run: how they find each other, agree, and share what one of them would do alone.

Every host holds the same data on the host side (prompts, samples, rewards), so that what it decides from them is the same
everywhere; devices hold each its own rows. What hosts cannot know of each other (a signal, a file that could not be written,
outcomes of samples that another one graded) goes through `gather`, over the key-value store of jax's coordination service: it
never queues behind the devices' work. With one process every function here is the identity, at no cost.
Watched over by watchdog.py: no wait is for ever. Left out: meshes and layouts (sharding.py), checkpoints (checkpoint.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import functools
import json
import logging
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # its client is the only way to the key-value store
from jax.sharding import PartitionSpec

from bridge_jax.config import schema
from bridge_jax.distributed import consistency, rendezvous
from bridge_jax.distributed import watchdog as watching
from bridge_jax.distributed.watchdog import LOST, Lost  # noqa: F401
from bridge_jax.filesystem import files, streams

logger = logging.getLogger(__name__)
VARIABLES = {
    "coordinator": "BRIDGE_COORDINATOR",
    "count": "BRIDGE_HOST_COUNT",
    "index": "BRIDGE_HOST_INDEX",
}
START_ALL = "start all hosts, each with its own hosts.index, where they can reach that address"
START_AUTO = "see whether all tasks of the job run, and can reach that address"


@dataclasses.dataclass(frozen=True)
class Hosts:
    """How the processes of a run find each other; what stands at its default may come from VARIABLES in the environment."""

    coordinator: str = ""  # "": one process; "auto": as TPU pods, GKE and Slurm tell; "host:port", at which host 0 listens
    count: int = 0  # with host:port: number of processes
    index: int = -1  # with host:port: which of them this is, 0 to count - 1
    timeout_s: int = (
        600  # of any wait for another host; half of it in silence, and a host counts as gone
    )


_watch: watching.Watch | None = None  # of the run under way; None with one process
_started = False  # whether jax.distributed was ever started here


def read(given: Hosts, environment: Mapping[str, str]) -> Hosts:
    """With what the environment adds; ValueError for what is invalid. coordinator "" in the result: one process."""
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
                f"hosts.coordinator={h.coordinator!r}, hosts.count={h.count}, hosts.index={h.index}; allowed: count "
                "and index beside hosts.coordinator=HOST:PORT alone, where host 0 listens"
            )
        return h
    address = re.fullmatch(r"(\[[\da-fA-F:]+\]|[\w.-]+):(\d{1,5})", h.coordinator)
    if not address or not 1 <= int(address[2]) <= 65535:
        raise ValueError(
            f"hosts.coordinator={h.coordinator!r}; allowed: '' (one process), 'auto' (TPU pod, GKE, Slurm), or "
            "HOST:PORT at which host 0 shall listen, PORT from 1 to 65535, such as 10.0.0.1:1234"
        )
    if h.count < 1 or not 0 <= h.index < h.count:
        raise ValueError(
            f"hosts.count={h.count}, hosts.index={h.index}; allowed: a count of at least 1, and for each process an "
            f"index of its own, 0 to count - 1. Set --config.hosts.index or the variable {VARIABLES['index']}"
        )
    return h if h.count > 1 else dataclasses.replace(h, coordinator="")


@contextlib.contextmanager
def joined(config) -> Iterator[None]:
    """Join the other processes of config.hosts, refuse to begin if they are not alike, and leave with them.

    Before anything touches a device. Lost is raised in place of errors that another host's end caused.
    """
    global _watch
    h = read(schema.section(config, "hosts", Hosts), os.environ)
    if not h.coordinator or connect(h) == 1:
        yield
        return
    _watch = watched = start_watch(h)
    try:
        if not first():  # host 0 speaks for all; a warning may be of one host alone
            logging.getLogger().setLevel(max(logging.WARNING, logging.getLogger().level))
        watched.names = gather("names of the hosts", socket.gethostname())
        agree("configs, code and versions", consistency.identity(config))
        yield
        barrier("the end of the run")
    except BaseException as error:
        failed = (
            watched.blame(error)
            if isinstance(error, Exception) and watching.broke(error)
            else error
        )
        signalled = not isinstance(failed, Exception)
        watched.announce(
            0 if signalled else watching.LOST,
            "by a signal, before a step was begun" if signalled else str(failed),
        )
        watched.see_off()
        if failed is error:
            raise
        raise failed from error
    else:
        watched.left.set()
        jax.distributed.shutdown()
    finally:
        _watch = None


def connect(h: Hosts) -> int:
    """jax.distributed.initialize, after a roll-call at the address that is given or found; the number of processes."""
    global _started
    auto, named = h.coordinator == "auto", (h.coordinator, h.count, h.index)
    try:
        named = (rendezvous.cluster(h.timeout_s) or ()) if auto else named
    except Exception as error:  # what a cluster's variables, its metadata or its names come to
        raise cannot_meet(h, error) from error
    if named and named[1] > 1:
        call_the_roll(Hosts(*named, h.timeout_s), auto)
    # its SIGTERM handler would replace ours, which the hosts agree about themselves
    jax.config.update("jax_enable_preemption_service", False)
    # jax's own timeouts are the last resort: it aborts without a name
    waits = dict(
        initialization_timeout=h.timeout_s + 60,
        heartbeat_timeout_seconds=h.timeout_s + 60,
        shutdown_timeout_seconds=30,
    )
    _started = True
    try:
        came = rendezvous.done_within(
            h.timeout_s, lambda: jax.distributed.initialize(*named, **waits)
        )
    except Exception as error:
        _started = distributed.global_state.client is not None
        raise cannot_meet(h, error) from error
    if not came:
        faulthandler.dump_traceback(file=2, all_threads=True)
        address, mine = (
            distributed.global_state.coordinator_address,
            distributed.global_state.process_id,
        )
        missing = (
            "not all of the others came"
            if watching.reachable(address)
            else "nobody listens there, where host 0 should"
        )
        raise Lost(
            f"host {mine} waited {h.timeout_s} s (hosts.timeout_s) at {address}, and {missing}; "
            f"{START_AUTO if auto else START_ALL}; the stacks of this host's threads stand above"
        )
    return distributed.global_state.num_processes


def cannot_meet(h: Hosts, error: Exception) -> ValueError:
    """The error of hosts that have no address in common."""
    reason = " ".join(str(error).split())[:400]
    return ValueError(
        f"hosts.coordinator={h.coordinator!r}: the hosts cannot find each other ({reason}). If this is no "
        "cluster that jax knows, set hosts.coordinator=HOST:PORT, hosts.count and hosts.index"
    )


def call_the_roll(h: Hosts, auto: bool = False) -> None:
    """Lost, naming who is missing, unless all hosts come in time; ValueError for an address, an index or a count that cannot be.
    auto: jax has found them, not the user."""
    try:
        found = rendezvous.call(h.coordinator, h.count, h.index, h.timeout_s)
    except OSError as error:
        way = (
            "set JAX_COORDINATOR_PORT, the same on all hosts, to"
            if auto
            else "give an address of this machine and"
        )
        raise ValueError(
            f"hosts.coordinator={h.coordinator!r}: host 0 cannot listen there ({error}); {way} a free "
            "port"
        ) from error
    if found.twice:
        raise ValueError(
            f"hosts.index={found.twice[0]} was given to two processes; each needs its own, 0 to {h.count - 1}"
        )
    if found.counts:
        told = ", ".join(f"host {index} expects {number}" for index, number in found.counts)
        raise ValueError(
            f"hosts.count differs: {told}; give all the same, there or in BRIDGE_HOST_COUNT"
        )
    if found.missing:
        named = f"host{'s' * (len(found.missing) > 1)} {', '.join(map(str, found.missing))} of {h.count} did not come"
        raise Lost(
            f"host {h.index} waited up to {h.timeout_s} s (hosts.timeout_s) at {h.coordinator}, and {named}; "
            f"{START_AUTO if auto else START_ALL}"
        )


def start_watch(h: Hosts) -> watching.Watch:
    """The watch of this host over the others."""
    state = distributed.global_state
    watched = watching.Watch(
        state.client, state.process_id, state.num_processes, h.timeout_s, state.coordinator_address
    )
    watched.start()
    return watched


def started() -> bool:
    """Whether this process ever joined others: then it must end without Python's shutdown if it failed (jax would wait there)."""
    return _started


def count() -> int:
    """Number of processes of the run."""
    return _watch.count if _watch else 1


def index() -> int:
    """Which of them this is, also after they have parted."""
    return distributed.global_state.process_id


def first() -> bool:
    """Whether this is the host that writes logs and speaks to the user."""
    return index() == 0


def print_on_main(text: str) -> None:
    """Print, on the first host; what cannot be printed is dropped."""
    if first():
        streams.write_line(text)


def announce_end(text: str) -> None:
    """Tell the other hosts why this one ends, before it ends of itself; they follow it with exit code LOST."""
    if _watch:
        _watch.announce(LOST, text)


def watchdog(what: str):
    """`with watchdog("update of step 3"):` around whatever needs the other hosts to go on; watched over."""
    return _watch.waiting(what) if _watch else contextlib.nullcontext()


def io_grace():
    """`with storing():` around long reading or writing of files: the others do not give up on a host that is at it."""
    return _watch.storing() if _watch else contextlib.nullcontext()


def gather(what: str, mine: str) -> list[str]:
    """What every host gives, in the order of the hosts, on every host; waits for all of them."""
    if not _watch:
        return [mine]
    client = _watch.client
    with _watch.waiting(what) as number:
        client.key_value_set(f"bridge/said/{number}/{index()}", json.dumps([what, mine]))
        if first():
            said = [json.loads(_heard(f"bridge/said/{number}/{i}")) for i in range(count())]
            client.key_value_set(f"bridge/all/{number}", json.dumps(said))
            for old in _gathered[:-1]:  # who is here has read all before the last
                client.key_value_delete(f"bridge/all/{old}")
            client.key_value_delete(f"bridge/said/{number}")
            _gathered[:] = [*_gathered[-1:], number]
        else:
            said = json.loads(_heard(f"bridge/all/{number}"))
    if others := {_watch.name(i): asked for i, (asked, _) in enumerate(said) if asked != what}:
        raise RuntimeError(
            f"the hosts have come apart: here it is about {what}, elsewhere {others}"
        )
    return [text for _, text in said]


_gathered: list[int] = []  # waits whose texts are still in the store


def _heard(key: str) -> str:
    """The value of a key, once it is there; the watch ends this process if that takes too long."""
    while True:
        try:
            return _watch.client.blocking_key_value_get(
                key, 1000
            )  # in small pieces, so that signals are heard
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def barrier(what: str) -> None:
    """Returns when all hosts are here: before something that gives up on a late host sooner than hosts.timeout_s."""
    gather(what, "")


def broadcast_from_main(what: str, function: Callable[[], Any]) -> Any:
    """What `function` returns on the first host, which alone calls it: JSON. Its ValueError or OSError is raised everywhere."""
    if not _watch:
        return function()
    kinds = {"ValueError": ValueError, "NoSpace": files.NoSpace, "OSError": OSError}
    mine = ""
    if first():
        try:
            mine = json.dumps(["", function()])
        except ValueError as error:
            mine = json.dumps(["ValueError", str(error)])
        except OSError as error:
            kind = "NoSpace" if files.is_full(error) else "OSError"
            mine = json.dumps([kind, files.explain(error)])
    kind, value = json.loads(gather(what, mine)[0])
    if kind:
        raise kinds[kind](value)
    return value


def any_process(what: str, mine: bool) -> bool:
    """Whether it is so on any host."""
    return "yes" in gather(what, "yes" if mine else "")


def process_slice(rows: int) -> slice:
    """The part of so many rows that this host works on; the parts of all hosts in their order are the whole."""
    return (
        slice(rows * index() // count(), rows * (index() + 1) // count()) if _watch else slice(rows)
    )


def all_gather_lists(what: str, mine: list) -> list:
    """The lists of all hosts, one behind the other: JSON."""
    return (
        [row for text in gather(what, json.dumps(mine)) for row in json.loads(text)]
        if _watch
        else mine
    )


def place(tree, shardings):
    """Host arrays, the same on every host, onto devices; each host moves only what its own devices hold."""
    if not _watch:
        return jax.device_put(tree, shardings)

    def put(leaf, sharding):
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])

    return jax.tree.map(put, tree, shardings)


def replicate(tree):
    """The same arrays, each whole on every device that has a part of it; begun, and not waited for."""
    if not _watch:
        return tree

    def gathered(leaf):
        if leaf.is_fully_replicated or leaf.is_fully_addressable:
            return leaf
        return _copy(leaf.sharding.update(spec=PartitionSpec()))(leaf)

    return jax.tree.map(gathered, tree)


@functools.lru_cache(maxsize=64)
def _copy(sharding):
    return jax.jit(lambda leaf: leaf, out_shardings=sharding)


def device_get(what: str, tree):
    """Host copies of device arrays, whole and the same on every host; waits for them."""
    with watchdog(what):
        return jax.device_get(replicate(tree))


def agree(what: str, mine: dict[str, Any]) -> None:
    """ValueError on every host, naming who differs and in what, unless all hosts give the same; values are JSON."""
    if not _watch:
        return
    if differs := consistency.differences(
        [json.loads(text) for text in gather(what, json.dumps(mine))]
    ):
        told = (f"  {_watch.name(i)}: {found}" for i, found in sorted(differs.items()))
        raise ValueError(
            "the hosts are not alike, and would not train the same model:\n"
            + "\n".join(told)
            + "\nStart all of them with the same command, code and packages"
        )


def check_shared(folder: str) -> None:
    """ValueError unless all hosts see in this directory what the first one writes there."""
    if not _watch:
        return

    def mark() -> str:
        os.makedirs(folder, exist_ok=True)
        handle, path = tempfile.mkstemp(prefix=".shared_", dir=folder)
        os.close(handle)
        return os.path.basename(path)

    path = os.path.join(folder, broadcast_from_main("a file in the run directory", mark))
    for _ in range(10):  # a network's file system may take a moment
        if os.path.exists(path):
            break
        time.sleep(1)
    seen = gather("who sees the run directory", "yes" if os.path.exists(path) else "")
    if first():
        os.unlink(path)
    blind = [_watch.name(i) for i, found in enumerate(seen) if not found]
    if blind:
        raise ValueError(
            f"--workdir={folder!r} is not one directory: {', '.join(blind)} do not see what host 0 writes there. "
            "Give all hosts the same --workdir on a file system that they share"
        )
