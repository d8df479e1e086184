"""Several processes, one run: barriers, broadcasts and gathers between the hosts.

Every host has the same prompts, samples and rewards, and takes the same decisions from them; each
device has its own rows. A signal to one host, and the outcomes of the samples that it graded, go
through the key-value store of jax's coordination service, since a gather of
`jax.experimental.multihost_utils` queues behind the devices' work: measured in docs/launch.md.
With one process every function here is the identity, at no cost. Host 0 is the main one.
Left out: arrays (arrays.py), the rendezvous (rendezvous.py), limits of waits (watchdog.py), meshes
and shardings (sharding.py), the consistency check (consistency.py).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import jax

from bridge_jax.config import schema
from bridge_jax.distributed import rendezvous
from bridge_jax.distributed.watchdog import LOST, Lost, Peers, attempt
from bridge_jax.filesystem import files, streams

# of the run under way; None with one process
_peers: Peers | None = None
# the number of this process, also after the end of the run
_index = 0
# whether this process has ever been one of several
_joined = False
_gather_numbers = itertools.count()


@contextlib.contextmanager
def joined(config) -> Iterator[None]:
    """Join the other processes of config.hosts, and leave with them; before any device is touched.

    Raises Lost in place of errors that another host's end caused.
    """
    global _peers, _index, _joined
    h = rendezvous.read(schema.section(config, "hosts", rendezvous.Hosts), os.environ)
    peers = rendezvous.join(h) if h.coordinator else None
    if peers is None:
        yield
        return
    _peers, _index, _joined = peers, peers.index, True
    peers.start()
    try:
        if not is_main():
            # the main host prints the notes of all; a warning may be of one host alone
            logging.getLogger().setLevel(max(logging.WARNING, logging.getLogger().level))
        names = gather("names of the hosts", socket.gethostname())
        peers.names = [f"host {i} ({name})" for i, name in enumerate(names)]
        yield
        barrier("the end of the run", io_grace=True)
    except Exception as error:
        end = peers.diagnose(error)
        if isinstance(end, Lost):
            peers.publish(LOST, str(end), end.late)
        else:
            peers.announce(LOST, str(end))
        if end is error:
            raise
        raise end from error
    except BaseException:
        peers.announce(0, "by a signal, before a step was begun")
        raise
    finally:
        peers.leave()
        _peers = None


def started() -> bool:
    """Whether jax may hang in Python's shutdown, waiting for other hosts: end without it then."""
    return _joined or jax.distributed.is_initialized()


def count() -> int:
    """Number of processes of the run."""
    return _peers.count if _peers else 1


def index() -> int:
    """The number of this process, also after the end of the run."""
    return _index


def name(i: int) -> str:
    """A host's name in messages, with the name of its machine."""
    return _peers.names[i] if _peers else f"host {i}"


def is_main() -> bool:
    """Whether this is host 0, the main one, which writes logs and prints to the user."""
    return _index == 0


def print_on_main(text: str) -> None:
    """Print on the main host; output that fails is dropped."""
    if is_main():
        streams.write_line(text)


def announce_end(text: str) -> None:
    """Send the others the reason of this host's end; they end with exit code LOST."""
    if not _peers:
        return
    _peers.announce(LOST, text)
    # the others read it within a second; the service would end with the main host's shutdown
    if not is_main():
        attempt(jax.distributed.shutdown, 2.0)


def close_with_limit(close: Callable[[], None]) -> None:
    """Call close() after an error; give up after hosts.timeout_s, so that the error is reported."""
    if _peers:
        attempt(close, _peers.timeout_s)
    else:
        close()


def watchdog(label: str, io_grace: bool = False):
    """`with watchdog("update of step 3"):` around a wait for other hosts: limits its time.

    io_grace: a longer limit, for waits in which a host may read or write a checkpoint.
    """
    return _peers.watchdog(label, io_grace) if _peers else contextlib.nullcontext()


def gather(label: str, mine: str, io_grace: bool = False) -> list[str]:
    """The texts of all hosts, in the order of the hosts, on every host; waits for all of them."""
    if not _peers:
        return [mine]
    client, number = _peers.client, next(_gather_numbers)
    folder = f"bridge/gather/{number}"

    def read() -> dict[int, list[str]]:
        pairs = client.key_value_dir_get(f"{folder}/")
        return {int(key.rpartition("/")[2]): json.loads(text) for key, text in pairs}

    client.key_value_set(f"{folder}/{_index}", json.dumps([label, mine]))
    try:
        client.wait_at_barrier("bridge/gather", int(1000 * _peers.limit(io_grace)))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        late = sorted(set(range(count())) - set(read()))
        missing = f"did not come: {', '.join(map(name, late))}"
        # the texts of all hosts are there by now, but not in time
        too_late = "all have come by now, but not all of them within that time"
        text = f"{_peers.waited(label, io_grace)}; {missing if late else too_late}"
        raise Lost(text, late) from error
    found = read()
    if is_main():
        # every host that is here has read the one before
        client.key_value_delete(f"bridge/gather/{number - 1}")
    if others := {name(i): asked for i, (asked, _) in found.items() if asked != label}:
        raise RuntimeError(f"the hosts diverged: here it is about {label!r}, elsewhere {others}")
    return [found[i][1] for i in range(count())]


def barrier(label: str, io_grace: bool = False) -> None:
    """Returns when all hosts are here."""
    gather(label, "", io_grace)


def broadcast_from_main(label: str, function: Callable[[], Any], io_grace: bool = False) -> Any:
    """function() of the main host, as JSON, on every host; only the main host calls it.

    Its ValueError or OSError is raised on every host.
    """
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
    """The part of `rows` rows that this host works on; the hosts' parts are all rows, in order."""
    if not _peers:
        return slice(rows)
    return slice(rows * index() // count(), rows * (index() + 1) // count())


def all_gather_lists(label: str, mine: list) -> list:
    """The lists of all hosts, concatenated: JSON."""
    if not _peers:
        return mine
    return [row for text in gather(label, json.dumps(mine)) for row in json.loads(text)]
