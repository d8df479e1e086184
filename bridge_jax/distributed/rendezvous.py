"""Who has come: called before jax's own coordination begins, which waits for all hosts and cannot say who is missing.

Host 0 listens at the coordinator's address, hears every other host's index and how many it expects, and holds its connection;
when all have called, one contradicts it, or its time is over, it tells each what was found, and leaves the address to jax. One
line of text each way.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)
PIECE_S = 0.5  # of a wait, so that signals are heard


class Found(NamedTuple):
    """What a roll-call came to."""

    missing: tuple[int, ...]  # hosts that did not call in time
    twice: tuple[int, ...] = ()  # indices under which a second process called
    counts: tuple[
        tuple[int, int], ...
    ] = ()  # where not all expect as many hosts: host 0, one that differs, and how many each


def cluster(seconds: float) -> tuple[str, int, int] | None:
    """HOST:PORT of host 0, number of hosts and this one's index, as jax finds them on Slurm, TPU pods and GKE.

    It may wait so long for host 0's name to be known. None where it finds no cluster, or where this jax no longer keeps its
    detection, which is private, at this place.
    """
    try:
        from jax._src import clusters

        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, int(seconds)
        )[:3]
    except (ImportError, AttributeError, TypeError) as error:
        logger.debug("jax's detection of clusters has changed: %s", error)
        return None
    return found if [type(part) for part in found] == [str, int, int] else None


def call(address: str, count: int, index: int, seconds: float) -> Found:
    """Returns when hosts 0 to count - 1 have called at HOST:PORT, or one was missing for so long.

    OSError: host 0 cannot listen there."""
    host, _, port = address.rpartition(":")
    return (
        _hear(int(port), count, seconds)
        if index == 0
        else _say(host.strip("[]"), int(port), count, index, seconds)
    )


def done_within(seconds: float, function: Callable[[], Any]) -> bool:
    """Calls it in a thread and waits so long: while jax waits for other hosts, the main thread would hear no signal."""
    errors: list[Exception] = []

    def call() -> None:
        try:
            function()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    until = time.monotonic() + seconds
    while thread.is_alive() and time.monotonic() < until:
        thread.join(0.5)
    if errors:
        raise errors[0]
    return not thread.is_alive()


def _hear(port: int, count: int, seconds: float) -> Found:
    until, here, twice, counts, others = time.monotonic() + seconds, {}, set(), {}, []
    with _listen(port) as server:
        server.settimeout(PIECE_S)
        while (
            (missing := _missing(here, count))
            and not twice
            and not counts
            and time.monotonic() < until
        ):
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            said = _line(connection, PIECE_S)
            if not re.fullmatch(r"\d+ \d+", said) or not 0 < (index := int(said.split()[0])):
                connection.close()  # a stranger
                continue
            if (expected := int(said.split()[1])) != count:
                counts[index] = expected
            if index in here:
                twice.add(index)
                others.append(here[index])
            here[index] = connection
        found = Found(
            missing, tuple(sorted(twice)), tuple({0: count, **counts}.items()) if counts else ()
        )
        for connection in (*here.values(), *others):
            with connection:
                try:
                    connection.sendall(json.dumps(found).encode() + b"\n")
                    _line(connection, PIECE_S)  # they hang up first: the port is then free at once
                except OSError:
                    continue  # gone since; jax's own wait will tell
    return found


def _missing(here: dict[int, socket.socket], count: int) -> tuple[int, ...]:
    """Who has not called; whoever has called and hung up is forgotten."""
    for index, connection in list(here.items()):
        if _gone(connection):
            here.pop(index).close()
    return tuple(i for i in range(1, count) if i not in here)


def _gone(connection: socket.socket) -> bool:
    connection.settimeout(0)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            logger.debug("no IPv6: %s", error)
    return socket.create_server(("", port))


def _say(host: str, port: int, count: int, index: int, seconds: float) -> Found:
    until = time.monotonic() + seconds
    for left in _pieces(until):
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(f"{index} {count}\n".encode())
                if heard := _line(
                    connection, seconds + 10 * PIECE_S
                ):  # host 0 began before: it answers within its time
                    missing, twice, counts = json.loads(heard)
                    return Found(tuple(missing), tuple(twice), tuple(map(tuple, counts)))
        except (OSError, ValueError) as error:
            logger.debug("%s:%d: %s", host, port, error)
        time.sleep(PIECE_S / 2)  # host 0 is not up yet, or has just gone
    return Found((0,))


def _pieces(until: float) -> Iterator[float]:
    """The seconds left, as long as there are some, but at most a few at a time."""
    while (left := until - time.monotonic()) > 0:
        yield min(left, 5.0)


def _line(connection: socket.socket, seconds: float) -> str:
    """The next line that arrives; what came so far when the connection ends or the time is over."""
    until, text = time.monotonic() + seconds, b""
    while (
        not text.endswith(b"\n") and len(text) < 10_000 and (left := until - time.monotonic()) > 0
    ):
        connection.settimeout(min(left, PIECE_S))
        try:
            part = connection.recv(1000)
        except TimeoutError:
            continue
        except OSError:
            break
        if not part:
            break
        text += part
    return text.decode(errors="replace").strip()
