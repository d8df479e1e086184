"""Watches over each other through a store in memory: who is gone, who is late, who has stopped and why."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from bridge_jax.distributed import watchdog
from bridge_jax.rundir import checkpoint
from tests.distributed import host_runs


class Store:
    """What watch.py uses of jax's key-value store."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def key_value_dir_get(self, prefix):
        return [(key, value) for key, value in list(self.values.items()) if key.startswith(prefix)]


class Ended(BaseException):
    """In place of the process's end."""


@pytest.fixture
def hosts(monkeypatch):
    """Three watches over each other, with a timeout of two seconds; `ends` gathers (index, code) of the processes that ended."""
    store, ends = Store(), []
    made = [watchdog.Watch(store, i, 3, 2.0, "127.0.0.1:1") for i in range(3)]
    of_thread = {}

    def end(code):
        ends.append((of_thread[threading.get_ident()], code))
        raise Ended

    def run(one):
        of_thread[threading.get_ident()] = one.index
        try:
            one._run()
        except Ended:
            pass

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback_later", lambda *_, **__: None)
    for one in made:
        one.names = ["alpha", "beta", "gamma"]
        one._thread = threading.Thread(target=run, args=(one,), daemon=True)
        one._thread.start()
    yield made, ends
    for one in made:
        one.left.set()
    for one in made:
        one._thread.join()


def until(condition, seconds: float = 15.0) -> None:
    """Waits for it."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()


def test_nobody_ends_while_all_live(hosts):
    made, ends = hosts
    with made[0].waiting("samples"), made[1].waiting("samples"):
        time.sleep(1.5)
    time.sleep(1)
    assert ends == []


def test_who_falls_silent_is_named(hosts, capfd):
    """As when it is killed: the others end by themselves within the timeout."""
    made, ends = hosts
    with made[1].waiting("rewards of step 3"):
        time.sleep(0.5)
        made[1].left.set()
        until(lambda: len(ends) == 2, 10)
    assert sorted(ends) == [(0, watchdog.LOST), (2, watchdog.LOST)]
    lines = capfd.readouterr().err.splitlines()
    assert all("error: host 1 (beta) is gone: no sign of life for " in line for line in lines)
    assert any("last seen at 'rewards of step 3'" in line for line in lines)


def test_who_is_late_is_named_and_stacks_are_shown(hosts, capfd):
    """It lives, but does not come to where the others wait."""
    made, ends = hosts
    for one in made:
        with one.waiting("samples of step 1"):
            pass
    with made[0].waiting("outcomes"), made[1].waiting("outcomes"):
        until(lambda: {(0, watchdog.LOST), (1, watchdog.LOST)} <= set(ends), 30)
    said = capfd.readouterr().err
    assert (
        "error: waited 2 s (hosts.timeout_s) for the other hosts at 'outcomes': host 2 (gamma) has not come, last seen "
        "after 'samples of step 1'"
    ) in said
    assert (
        "Current thread" in said and 'File "' in said and "host 0 (alpha) has not come" not in said
    )


def test_nobody_gives_up_on_a_host_at_its_files(hosts, capfd):
    """While one reads longer than the timeout the others wait; when it is done and does not come, they end, as they do after
    PATIENCE timeouts."""
    made, ends = hosts
    with made[0].waiting("reading of the checkpoint"), made[1].waiting("reading of the checkpoint"):
        with made[2].waiting("reading of the checkpoint"), made[2].storing():
            time.sleep(5)
            assert ends == []
        until(
            lambda: len(ends) == 3, 10
        )  # the third follows the two that waited, and host 0 sees all off
    assert set(ends) == {(i, watchdog.LOST) for i in range(3)} and ends[-1][0] == 0
    assert (
        "waited 2 s (hosts.timeout_s) for the other hosts at 'reading of the checkpoint': all of them wait there, too;"
        in (capfd.readouterr().err)
    )


def test_files_have_a_limit_too(hosts, capfd, monkeypatch):
    monkeypatch.setattr(watchdog, "PATIENCE", 2)
    made, ends = hosts
    with made[0].waiting("the end of the last checkpoint"), made[1].storing():
        until(lambda: len(ends) == 3, 10)  # the others follow host 0, which sees them off
    assert set(ends) == {(i, watchdog.LOST) for i in range(3)} and ends[-1][0] == 0
    assert (
        "error: waited 4 s (2 times hosts.timeout_s) for the other hosts at 'the end of the last checkpoint': host 1 (beta) "
        "has not come, last seen after 'the start'; host 2 (gamma) has not come, last seen after 'the start'; host 1 (beta) "
        "still reads or writes files"
    ) in capfd.readouterr().err


def test_reading_and_writing_of_checkpoints_is_told(monkeypatch, tmp_path):
    """What other hosts may have to wait for: reading, a save before, the end."""
    told, inside = [], []

    @contextlib.contextmanager
    def record(what: str):
        told.append(what), inside.append(what)
        yield
        inside.remove(what)

    monkeypatch.setattr(checkpoint.multihost, "io_grace", lambda: record("files"))
    monkeypatch.setattr(checkpoint.multihost, "watchdog", record)
    store = checkpoint.Checkpoints(str(tmp_path))
    for method in ("wait_until_finished", "restore", "close"):
        of_orbax = getattr(store._manager, method)

        def checked(*given, of_orbax=of_orbax, method=method, **named):
            assert "files" in inside, method
            assert method != "close" or inside == ["the end of the last checkpoint", "files"]
            told.append(method)
            return of_orbax(*given, **named)

        monkeypatch.setattr(store._manager, method, checked)
    store.save(1, {"x": jnp.ones(3)}, {})
    store.restore({"x": jax.ShapeDtypeStruct((3,), jnp.float32)})
    store.close()
    assert {"wait_until_finished", "restore", "close"} <= set(told) and inside == []
    assert store._manager._options.async_options.timeout_secs == checkpoint.LONGEST_WRITE_S


def test_last_words_end_the_others_alike(hosts, capfd):
    """With the exit code that the one who stopped gives them: 0 after a signal."""
    made, ends = hosts
    made[2].announce(0, "by a signal, before a step was begun")
    until(lambda: len(ends) == 2)
    assert sorted(ends) == [(0, 0), (1, 0)]
    assert (
        capfd.readouterr().err.splitlines()[0]
        == "host 2 (gamma) stopped: by a signal, before a step was begun"
    )


def test_a_store_that_does_not_answer_is_host_0_frozen(hosts, capfd, monkeypatch):
    """A call to a frozen host gives neither an answer nor an error; last words stay unsaid, and nobody else is blamed."""
    made, ends = hosts
    until(lambda: all(one._told.keys() == {0, 1, 2} for one in made))
    thawed = threading.Event()
    frozen = lambda *given, **more: thawed.wait()
    made[0].left.set()  # host 0 itself
    monkeypatch.setattr(made[0].client, "key_value_set", frozen)
    monkeypatch.setattr(
        watchdog, "attempt", lambda call, seconds, attempt=watchdog.attempt: attempt(call, 0.5)
    )
    began = time.monotonic()
    try:
        until(lambda: {index for index, _ in ends} == {1, 2}, 10)
    finally:
        thawed.set()
    assert [code for _, code in ends] == [
        watchdog.LOST
    ] * 2 and time.monotonic() - began < 2.0 + 2.0
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and all(
        line.startswith(
            "error: host 0 (alpha), which coordinates the others, has not answered for 1 s"
        )
        for line in lines
    )


def test_a_broken_connection_is_blamed_on_who_is_gone(hosts):
    made, _ = hosts
    error = ValueError(
        "UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:37071"
    )
    assert watchdog.broke(error) and not watchdog.broke(ValueError("steps=0; allowed: at least 1"))
    time.sleep(0.3)
    made[2].left.set()
    assert str(made[0].blame(error)).startswith("host 2 (gamma) is gone: no sign of life for ")


def test_a_broken_connection_of_nobody_gone(hosts):
    made, _ = hosts
    time.sleep(0.3)
    assert str(made[0].blame(ValueError("Gloo failed"))).endswith(
        "all of them are alive: Gloo failed"
    )


def test_nested_waits_are_counted_alike():
    one = watchdog.Watch(Store(), 0, 2, 60, "127.0.0.1:1")
    with one.waiting("outer") as a:
        with one.waiting("inner") as b:
            assert one._wait.what == "inner"
        assert one._wait.what == "outer" and one._wait.since is not None
    with one.waiting("next") as c:
        pass
    assert (a, b, c) == (1, 2, 3) and one._wait.since is None


@pytest.mark.parametrize(
    "listens, told",
    [
        (False, "host 0, which coordinates the others, is gone"),
        (True, "jax ended this host: its message stands above"),
    ],
)
def test_an_abort_is_explained(listens, told):
    """What jax's runtime does when host 0 is gone."""
    port = host_runs.free_port()
    code = (
        "import os, socket; from bridge_jax.distributed import watchdog; "
        f"server = socket.create_server(('127.0.0.1', {port})) if {listens} else None; "
        f"one = watchdog.Watch(None, 1, 2, 60, '127.0.0.1:{port}'); one._catch_abort(); os.abort()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=host_runs.ROOT, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (watchdog.LOST, f"error: {told}\n")
