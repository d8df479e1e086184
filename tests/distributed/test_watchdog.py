"""Looks at other hosts through a service in memory: who is gone, who has stopped and why, what was
waited for.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from bridge_jax.distributed import watchdog
from bridge_jax.rundir import checkpoint


class Service:
    """What watchdog.py uses of jax's client; `live` is what the service knows of heartbeats."""

    def __init__(self, count: int):
        self.values, self.live = {}, {i: 100 + i for i in range(count)}
        self.looks = 0  # how often hosts have asked who lives
        self.error = None  # in place of an answer

    def await_looks(self, count: int) -> None:
        """Until so many looks more are over but for the last few, which may be under way."""
        before = self.looks
        until(lambda: self.looks >= before + count)

    def key_value_set(self, key, value):
        self.values[key] = value

    def key_value_dir_get(self, prefix):
        return [pair for pair in list(self.values.items()) if pair[0].startswith(prefix)]

    def get_live_nodes(self, indices):
        self.looks += 1
        if self.error:
            raise self.error
        return dict(self.live)


class Ended(BaseException):
    """In place of the process's end."""


@pytest.fixture
def start(monkeypatch):
    """Function: (hosts of these names that look at each other, `ends`: (index, code) of processes
    that ended).
    """
    made, ends, under_way = [], [], []

    def leave_process(code):
        raise Ended

    def end(self, *given, end=watchdog.Peers.end):
        under_way.append(threading.current_thread())
        try:
            end(self, *given)
        except Ended:
            ends.append((self.index, given[0]))
            self._closed.set()

    def started(service: Service, names: list[str], which=None):
        for i in which or range(len(names)):
            one = watchdog.Peers(service, i, len(names), 2.0)
            one.names = names
            one.start()
            made.append(one)
        return made, ends

    monkeypatch.setattr(watchdog.Peers, "end", end)
    monkeypatch.setattr(os, "_exit", leave_process)
    for key, value in dict(BEAT_S=0.05, GRACE_S=0.2, LEAVE_S=1.0).items():
        monkeypatch.setattr(watchdog, key, value)
    yield started
    for one in made:
        one._closed.set()
    for thread in [*[one._thread for one in made], *under_way]:
        thread.join()


@pytest.fixture
def hosts(start):
    """The service, three hosts with a timeout of 2 s, and `ends`."""
    service = Service(3)
    return service, *start(service, ["host 0 (alpha)", "host 1 (beta)", "host 2 (gamma)"])


def until(condition, seconds: float = 240.0) -> None:
    """Waits for it."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


class Timer:
    """In place of threading.Timer: expires when it is told to, in a thread of its own."""

    def __init__(self, interval, function, given):
        self.interval, self.waits = interval, False
        self.thread = threading.Thread(target=function, args=given, daemon=True)

    def start(self):
        self.waits = True

    def cancel(self):
        self.waits = False

    def expire(self):
        assert self.waits
        self.thread.start()


@pytest.fixture
def timers(monkeypatch):
    """Fills with the timers that watchdogs start."""
    started = []
    make = lambda *given: started.append(Timer(*given)) or started[-1]
    monkeypatch.setattr(watchdog.threading, "Timer", make)
    return started


def test_nobody_ends_while_all_live(hosts, timers):
    """A wait that is over does not expire afterwards."""
    service, made, ends = hosts
    with made[0].watchdog("samples"), made[1].watchdog("samples"):
        assert [(timer.interval, timer.waits) for timer in timers] == [(2.0, True)] * 2
    assert [timer.waits for timer in timers] == [False] * 2
    service.await_looks(20)
    assert ends == []


@pytest.mark.parametrize("again", [False, True])
def test_who_is_gone_is_named(hosts, capfd, again):
    """As when it is killed; one that was started again is another process, and would never catch
    up.
    """
    service, made, ends = hosts
    until(lambda: all(one.live for one in made))
    made[1]._closed.set()
    service.live = service.live | {1: 7} if again else {0: 100, 2: 102}
    until(lambda: len(ends) == 2)
    assert sorted(ends) == [(0, watchdog.LOST), (2, watchdog.LOST)]
    lines = capfd.readouterr().err.splitlines()
    assert sum(line.startswith("error: ") and "host 1 (beta)" in line for line in lines) == 2


UNAVAILABLE = jax.errors.JaxRuntimeError("UNAVAILABLE: failed to connect")


def test_the_monitor_outlives_an_error(hosts, monkeypatch, capfd, caplog):
    """A warning each; a host that is killed after it is named as ever."""
    service, made, ends = hosts
    monkeypatch.setattr(watchdog, "heartbeat", lambda _: 240)
    until(lambda: all(one.live for one in made))
    service.error = UNAVAILABLE
    until(lambda: len(caplog.records) == 3)
    service.await_looks(20)
    assert len(caplog.records) == 3 and ends == []
    service.error = None
    service.await_looks(20)
    made[1]._closed.set()
    service.live = {0: 100, 2: 102}
    until(lambda: len(ends) == 2)
    assert sorted(ends) == [(0, watchdog.LOST), (2, watchdog.LOST)]
    assert capfd.readouterr().err.count("no heartbeat from host 1 (beta)") == 2


@pytest.mark.parametrize("error", [UNAVAILABLE, TypeError("a mistake in the monitor")])
def test_a_service_that_stays_silent_ends_the_hosts(hosts, monkeypatch, capfd, error):
    """Whatever the error is: once it has lasted for as long as a heartbeat may take."""
    service, _, ends = hosts
    monkeypatch.setattr(watchdog, "heartbeat", lambda _: 0.5)
    service.error = error
    until(lambda: len(ends) == 3)
    assert sorted(ends) == [(i, watchdog.LOST) for i in range(3)]
    assert service.looks > 3
    text = capfd.readouterr().err
    for name in ("host 0 (alpha)", "host 1 (beta)", "host 2 (gamma)"):
        assert f"error: {name} could not check the other hosts" in text
    assert f"({type(error).__name__}: {error})" in text


def test_a_wait_that_is_too_long_is_reported_with_stacks(hosts, capfd):
    """Its host shows its threads, and all hosts end."""
    _, made, ends = hosts
    with made[1].watchdog("rewards of step 3"):
        until(lambda: {index for index, _ in ends} == {0, 1, 2})
    assert {code for _, code in ends} == {watchdog.LOST}
    text = capfd.readouterr().err
    assert "error: host 1 (beta) waited 2 s (hosts.timeout_s)" in text
    assert "'rewards of step 3'" in text and 'File "' in text


@pytest.mark.slow
def test_files_get_more_time(hosts, capfd, monkeypatch):
    """But not any time."""
    monkeypatch.setattr(watchdog, "IO_GRACE", 3)
    _, made, ends = hosts
    began = time.monotonic()
    with made[0].watchdog("checkpoint of step 2", io_grace=True):
        until(lambda: (0, watchdog.LOST) in ends)
    assert time.monotonic() - began >= 3 * 2.0
    assert "waited 6 s (3 times hosts.timeout_s)" in capfd.readouterr().err


@pytest.mark.slow
def test_inner_waits_leave_the_outer_one_its_time(hosts, timers, capfd):
    """The outer wait goes on through inner ones that are over, and expires by its own time."""
    _, made, ends = hosts
    with made[0].watchdog("outer"):
        for _ in range(6):
            with made[0].watchdog("inner"):
                pass
        assert [timer.waits for timer in timers] == [True, *[False] * 6]
        timers[0].expire()
        until(lambda: (0, watchdog.LOST) in ends)
    text = capfd.readouterr().err
    assert "'outer'" in text and "'inner'" not in text


def test_stacks_come_from_the_late_host_alone(start, capfd):
    """Not from host 1, whose name is a part of host 10's."""
    service = Service(11)
    zero = watchdog.Peers(service, 0, 11, 2.0)
    zero.publish(watchdog.LOST, "host 0 waited; did not come: host 10", [10])
    _, ends = start(service, [f"host {i}" for i in range(11)], which=(1, 10))
    until(lambda: len(ends) == 2)
    text = capfd.readouterr().err
    assert sorted(ends) == [(1, watchdog.LOST), (10, watchdog.LOST)]
    assert text.count("error: host 0 waited; did not come: host 10") == 2
    assert text.count("Current thread") == 1


@pytest.mark.parametrize("code", [0, watchdog.LOST])
def test_a_reason_that_was_given_ends_the_others(hosts, capfd, code):
    """With the exit code that the host who stopped gives them: 0 after a signal."""
    _, made, ends = hosts
    made[2].announce(code, "the disk is full")
    until(lambda: len(ends) == 2)
    assert sorted(ends) == [(0, code), (1, code)]
    assert "host 2 (gamma) stopped: the disk is full" in capfd.readouterr().err


def test_who_comes_to_the_same_end_by_itself_says_its_own_words(hosts, monkeypatch, capfd):
    """A host that ends by itself is not ended by the message of another."""
    service, made, ends = hosts
    # however late the second one is on a busy machine; host 1, which announces nothing, is not
    # waited for
    monkeypatch.setattr(watchdog, "GRACE_S", 240.0)
    monkeypatch.setattr(made[1].leaving, "wait", lambda _: False)
    made[2].announce(watchdog.LOST, "diverged")
    # host 0 has seen it
    service.await_looks(10)
    made[0].announce(watchdog.LOST, "diverged")
    until(lambda: ends)
    service.await_looks(20)
    assert ends == [(1, watchdog.LOST)]
    # a host that is ended says why before it is gone
    assert capfd.readouterr().err.count("host 2 (gamma) stopped: diverged") == 1


def test_a_broken_connection():
    """Of another host, but no error of the config's."""
    error = ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:3")
    assert watchdog.broke(error) and not watchdog.broke(ValueError("steps=0; allowed: at least 1"))
    outer = OSError("could not be written")
    outer.__cause__ = error
    assert watchdog.broke(outer)


def test_a_broken_connection_of_nobody_gone(hosts, monkeypatch):
    """The error says that all hosts are alive."""
    _, made, _ = hosts
    monkeypatch.setattr(watchdog, "heartbeat", lambda _: 0.1)
    assert "all of them are alive: Gloo failed" in str(made[0].diagnose(ValueError("Gloo failed")))


@pytest.mark.slow
def test_host_0_leaves_last(monkeypatch):
    """jax aborts whoever outlives the service."""
    service = Service(3)
    made = [watchdog.Peers(service, i, 3, 60.0) for i in range(3)]
    made[0].start()
    monkeypatch.setattr(watchdog, "BEAT_S", 0.05)
    monkeypatch.setattr(watchdog, "LEAVE_S", 240.0)
    left = []
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: left.append(dict(service.live)))
    assert made[0].live == {}  # not known yet: nobody may have left
    leaving = threading.Thread(target=made[0].leave)
    leaving.start()
    service.await_looks(5)
    assert leaving.is_alive()
    service.live = {0: 100}
    leaving.join(240)
    assert not leaving.is_alive() and left == [{0: 100}]


def test_reading_and_writing_of_checkpoints_gets_more_time(monkeypatch, tmp_path):
    """Where the other hosts may wait: the end of the last save, choices while one is read."""
    graces = {}
    monkeypatch.setattr(
        checkpoint.multihost,
        "watchdog",
        lambda label, io_grace=False: graces.update({label: io_grace}) or contextlib.nullcontext(),
    )
    monkeypatch.setattr(
        checkpoint.multihost,
        "gather",
        lambda label, mine, io_grace=False: graces.update({label: io_grace}) or [mine],
    )
    monkeypatch.setattr(checkpoint.multihost, "_peers", object())
    with checkpoint.Checkpoints(str(tmp_path)) as store:
        store.save(1, {"x": jnp.ones(3)}, {})
        store.restore({"x": jax.ShapeDtypeStruct((3,), jnp.float32)})
    assert len(graces) >= 3 and all(graces.values()), graces
