"""Roll-calls over loopback, a thread for each host."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from bridge_jax.distributed import multihost, rendezvous
from tests.distributed import host_runs


def calls(
    count: int, indices, seconds: float = 20.0, late: dict | None = None, port: int = 0
) -> dict[int, rendezvous.Found]:
    """What each of the hosts that come is told; late: seconds after which a host comes."""
    address, told = f"127.0.0.1:{port or host_runs.free_port()}", {}

    def come(place: int, index: int) -> None:
        time.sleep((late or {}).get(index, 0.0))
        told[place] = rendezvous.call(address, count, index, seconds)

    threads = [threading.Thread(target=come, args=pair) for pair in enumerate(indices)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return told


@pytest.mark.parametrize("late", [{}, {0: 1.0}, {2: 1.0}])
def test_all_come(late):
    """In whatever order; and the port is free at once for whoever listens there next."""
    port = host_runs.free_port()
    assert calls(4, range(4), late=late, port=port) == dict.fromkeys(range(4), rendezvous.Found(()))
    with socket.socket() as following:
        following.bind(("127.0.0.1", port))  # without SO_REUSEADDR: nothing lingers


def test_the_missing_are_named_everywhere():
    assert set(calls(5, (0, 1, 3), seconds=2.0).values()) == {rendezvous.Found((2, 4))}


def test_without_host_0():
    assert set(calls(3, (1, 2), seconds=1.5).values()) == {rendezvous.Found((0,))}


def test_one_index_twice():
    """All are told at once, long before the time is over."""
    began = time.monotonic()
    assert {found.twice for found in calls(3, (0, 1, 1)).values()} == {(1,)}
    assert time.monotonic() - began < 10


def test_whoever_hangs_up_is_missing_and_strangers_do_not_count():
    port = host_runs.free_port()

    def disturb() -> None:
        time.sleep(0.3)
        for said in (b"1\n", b"hello\n", b"7\n", b""):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(said)

    thread = threading.Thread(target=disturb)
    thread.start()
    assert calls(3, (0, 2), seconds=3.0, port=port) == dict.fromkeys((0, 1), rendezvous.Found((1,)))
    thread.join()


def test_hosts_that_expect_other_numbers_of_hosts():
    """Both are told at once, long before the time is over, whoever expects more."""
    for counts in ((3, 2), (2, 3)):
        address, told = f"127.0.0.1:{host_runs.free_port()}", {}
        call = lambda index: told.update(
            {index: rendezvous.call(address, counts[index], index, 60.0)}
        )
        threads, began = (
            [threading.Thread(target=call, args=(index,)) for index in (0, 1)],
            time.monotonic(),
        )
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began < 20 and set(told) == {0, 1}
        assert all(found.counts == ((0, counts[0]), (1, counts[1])) for found in told.values())


def asked(**fields) -> multihost.Hosts:
    return multihost.Hosts(
        coordinator=f"127.0.0.1:{host_runs.free_port()}", count=3, index=0, timeout_s=10, **fields
    )


def test_what_the_user_is_told(monkeypatch):
    """Who is missing, for how long one waited, and a port that is taken."""
    given = asked()
    monkeypatch.setattr(rendezvous, "call", lambda *_: rendezvous.Found((1, 2)))
    with pytest.raises(
        multihost.Lost,
        match="host 0 waited up to 10 s .* and hosts 1, 2 of 3 did not come; start all hosts",
    ):
        multihost.call_the_roll(given)
    monkeypatch.setattr(rendezvous, "call", lambda *_: rendezvous.Found((), (2,)))
    with pytest.raises(
        ValueError, match="hosts.index=2 was given to two processes; each needs its own, 0 to 2"
    ):
        multihost.call_the_roll(given)
    monkeypatch.setattr(rendezvous, "call", lambda *_: rendezvous.Found((2,), (), ((0, 3), (1, 4))))
    with pytest.raises(
        ValueError,
        match="hosts.count differs: host 0 expects 3, host 1 expects 4; give all the same",
    ):
        multihost.call_the_roll(given)
    monkeypatch.undo()
    with socket.create_server(("", int(given.coordinator.rpartition(":")[2]))):
        with pytest.raises(
            ValueError,
            match="host 0 cannot listen there .*; give an address of this machine and a free port",
        ):
            multihost.call_the_roll(given)
