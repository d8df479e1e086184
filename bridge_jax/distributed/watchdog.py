"""Watches over a run of several hosts: nobody waits for ever for one that is gone, and each says which one that was.

A thread of every host tells the others, through the key-value store of jax's coordination service, that it lives and at which
wait it stands, every `beat` seconds, and listens to what they tell. Another judges by that, and ends the process, with one line
and exit code LOST, when
    another host has stopped and said why;
    another host gives no sign of life for half the timeout (killed, frozen, cut off), or the store does not answer for so long:
    host 0 keeps it, and a call to a host that is frozen, or behind a cut, returns neither an answer nor an error;
    this host waits longer than the timeout: the stacks of all threads come first, and who has not come is named.
A checkpoint may take longer to read or to write than any timeout that is of use for the rest: as long as a host says that it is
at its files, the timeout of the others' waits begins anew, PATIENCE times at most.
Hosts wait at the same places in the same order, so that the number of waits tells who is behind. Should jax's own runtime
abort the process first, as it does at once when host 0, with the coordination service, is gone, the abort is explained.
Should not even Python run any more, a timer outside of it ends the process. Left out: what the waits are for (multihost.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

LOST = 4  # exit code
PATIENCE = 20  # timeouts that a wait may last in all while a host reads or writes files
BROKEN = (
    "Gloo",
    "NCCL",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "ABORTED",
    "oordination service",
    "heartbeat",
    "onnection closed",
    "onnection reset",
    "onnection refused",
    "roken pipe",
)  # of errors that come from another host's end


class Lost(RuntimeError):
    """Another host is gone, has stopped, or does not come to where this one waits."""


class Wait(NamedTuple):
    """Where a host stands."""

    number: int  # of waits that it has begun
    what: str  # the last of them
    since: float | None  # clock; None: it is over


class Watch:
    """Of one host over the others. `client`: of jax's coordination service, at the address `coordinator`."""

    def __init__(self, client, index: int, count: int, timeout_s: float, coordinator: str):
        self.client, self.index, self.count, self.timeout_s, self.coordinator = (
            client,
            index,
            count,
            timeout_s,
            coordinator,
        )
        self.beat, self.silence = min(10.0, timeout_s / 40), timeout_s / 2
        self.names = [""] * count  # of the machines, once they are known
        self.left = threading.Event()  # set when this host is about to end: the watch is over
        self.ends: dict[
            int, tuple[int, str]
        ] = {}  # host -> exit code for the others, why it stopped
        self._wait, self._beats, self._failures, self._end_seen = (
            Wait(0, "the start", None),
            0,
            0,
            None,
        )
        self._told: dict[int, dict] = {}  # host -> its last pulse
        self._stores, self._stored = (
            0,
            float("-inf"),
        )  # whether this host is at its files; clock when a host last was
        self._heard = dict.fromkeys(range(count), time.monotonic())
        self._answered, self._failed = (
            time.monotonic(),
            "",
        )  # when the store last did; how it failed twice in a row
        self._thread = threading.Thread(target=self._run, name="watch over hosts", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._catch_abort()
        self._thread.start()

    def name(self, index: int) -> str:
        """What to call a host in a message."""
        return f"host {index}" + (f" ({self.names[index]})" if self.names[index] else "")

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[int]:
        """Around whatever needs the other hosts to go on; gives the number of this wait, the same on every host."""
        outer = self._wait
        number = outer.number + 1
        self._wait = Wait(number, what, time.monotonic())
        try:
            yield number
        finally:
            again = None if outer.since is None else time.monotonic()
            self._wait = Wait(self._wait.number, outer.what if again else what, again)

    @contextlib.contextmanager
    def storing(self) -> Iterator[None]:
        """Around the reading or writing of files that may take long, inside a wait or before one."""
        self._stores += 1
        try:
            yield
        finally:
            self._stores -= 1

    def announce(self, code: int, text: str) -> None:
        """Last words: why this host stops, and with which exit code the others shall follow it."""
        self.left.set()
        say_it = lambda: self.client.key_value_set(
            f"bridge/end/{self.index}", json.dumps([code, text]), allow_overwrite=True
        )
        attempt(say_it, 5.0)  # the store may be gone: then the others learn it from silence

    def see_off(self) -> None:
        """Host 0 stays until the living have said their last words, or had the time: jax aborts whoever outlives host 0."""
        until = time.monotonic() + 6 * self.beat + 5
        while self.index == 0 and time.monotonic() < until:
            with contextlib.suppress(Exception):
                self._listen()
                if not set(range(self.count)) - set(self.ends) - set(self._gone(4 * self.beat + 1)):
                    time.sleep(0.5)
                    return
            time.sleep(0.2)

    def blame(self, error: BaseException) -> Lost:
        """After a connection broke: who is gone, told by his last words, or by a silence of four beats."""
        until = time.monotonic() + 10 * self.beat + 2
        while time.monotonic() < until:
            if self.ends:
                return Lost(self._last_words()[1])
            if silent := self._silent(4 * self.beat + 1):
                return Lost(silent)
            time.sleep(0.2)
        return Lost(
            "the connection to another host broke, but all of them are alive: "
            + " ".join(str(error).split())[:200]
        )

    def _run(self) -> None:
        """The thread that judges."""
        threading.Thread(target=self._talk, name="talk between hosts", daemon=True).start()
        while not self.left.wait(self.beat):
            faulthandler.dump_traceback_later(
                1.5 * self.timeout_s + 30, exit=True, file=2
            )  # needs no Python
            self._judge()
        faulthandler.cancel_dump_traceback_later()

    def _talk(self) -> None:
        """The thread that tells and listens; a call may take for ever."""
        while not self.left.wait(self.beat):
            try:
                self._pulse()
                self._listen()
                self._failures = 0
            except Exception as error:
                self._failures += 1
                if self._failures > 1:
                    self._failed = " ".join(str(error).split())[:100]

    def _pulse(self) -> None:
        self._beats += 1
        wait = self._wait
        told = {
            "beat": self._beats,
            "number": wait.number,
            "what": wait.what,
            "waits": wait.since is not None,
            "stores": self._stores > 0,
        }
        self.client.key_value_set(
            f"bridge/pulse/{self.index}", json.dumps(told), allow_overwrite=True
        )

    def _listen(self) -> None:
        for key, text in self.client.key_value_dir_get("bridge/pulse/"):
            index, told = int(key.rpartition("/")[2]), json.loads(text)
            if told["beat"] != self._told.get(index, {}).get("beat"):
                self._told[index], self._heard[index] = told, time.monotonic()
        found = self.client.key_value_dir_get("bridge/end/")
        self.ends = {int(key.rpartition("/")[2]): tuple(json.loads(text)) for key, text in found}
        self._end_seen = self._end_seen or (time.monotonic() if self.ends else None)
        self._answered = time.monotonic()

    def _judge(self) -> None:
        """End this process if there is a reason."""
        wait, now = self._wait, time.monotonic()
        if self._at_files():
            self._stored = now
        if (
            self._end_seen and now - self._end_seen > 2 * self.beat + 2
        ):  # until then it may come to the same end by itself
            self._end(*self._last_words())
        elif self._failed:
            self._end(
                LOST,
                f"{self.name(0)}, which coordinates the others, does not answer: {self._failed}",
            )
        elif silent := self._silent(self.silence):
            self._end(LOST, silent)
        elif wait.since is not None and now - wait.since > self.timeout_s * PATIENCE:
            waited = f"{self.timeout_s * PATIENCE:.0f} s ({PATIENCE} times hosts.timeout_s)"
            self._end(LOST, self._late(wait, waited), stacks=True)
        elif wait.since is not None and now - max(wait.since, self._stored) > self.timeout_s:
            self._end(
                LOST, self._late(wait, f"{self.timeout_s:.0f} s (hosts.timeout_s)"), stacks=True
            )

    def _last_words(self) -> tuple[int, str]:
        index = min(self.ends)
        code, text = self.ends[index]
        return code, text if text.startswith(
            "host "
        ) else f"{self.name(index)} stopped: {text}"  # it may tell of yet another

    def _gone(self, seconds: float) -> list[int]:
        """Hosts that had given no sign of life for so long when the store last answered, and no last words."""
        return [
            i
            for i in range(self.count)
            if i != self.index and i not in self.ends and self._answered - self._heard[i] > seconds
        ]

    def _silent(self, seconds: float) -> str:
        """Who is gone, in words; "" if nobody."""
        since = lambda i: (
            f"no sign of life for {time.monotonic() - self._heard[i]:.0f} s, last seen {self._seen(i)}"
        )
        gone, unanswered = self._gone(seconds), time.monotonic() - self._answered
        if not gone and unanswered > seconds:
            return f"{self.name(0)}, which coordinates the others, has not answered for {unanswered:.0f} s"
        return "; ".join(f"{self.name(i)} is gone: {since(i)}" for i in gone)

    def _at_files(self) -> list[int]:
        """Hosts that read or write files."""
        return [
            i
            for i in range(self.count)
            if (self._stores if i == self.index else self._told.get(i, {}).get("stores"))
        ]

    def _late(self, wait: Wait, waited: str) -> str:
        """Who is not where this host has waited in vain."""
        others = {
            i: self._told.get(i, {}).get("number", 0) - wait.number
            for i in range(self.count)
            if i != self.index
        }
        found = [
            f"{self.name(i)} has not come, last seen {self._seen(i)}"
            for i, ahead in others.items()
            if ahead < 0
        ]
        found = found or [
            f"{self.name(i)} is further, {self._seen(i)}"
            for i, ahead in others.items()
            if ahead > 0
        ]
        found += [f"{self.name(i)} still reads or writes files" for i in self._at_files()]
        return (
            f"waited {waited} for the other hosts at {wait.what!r}: "
            + ("; ".join(found) or "all of them wait there, too")
            + "; the stacks of this host's threads stand above"
        )

    def _seen(self, index: int) -> str:
        told = self._told.get(index)
        return (
            "before its first step"
            if told is None
            else f"{'at' if told['waits'] else 'after'} {told['what']!r}"
        )

    def _end(self, code: int, text: str, stacks: bool = False) -> None:
        """End the process from the watch's thread: the main one hangs in a wait that nobody can break."""
        if self.left.is_set():
            return  # it is on its way out
        if stacks:
            faulthandler.dump_traceback(file=2, all_threads=True)
        say(text, code)
        self.announce(code, text)
        self.see_off()
        os._exit(code)

    def _catch_abort(self) -> None:
        """jax's runtime aborts when host 0 is gone, and Python's own signal handlers would come too late for that."""

        def explain(_) -> None:
            if self.left.is_set():
                time.sleep(5)  # this host is on its way out and has words of its own
            else:
                say(self._last_words()[1] if self.ends else self._why_aborted(), LOST)
            os._exit(LOST)

        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(explain)  # kept, or it would be freed
        ctypes.CDLL(None).signal(signal.SIGABRT, self._handler)

    def _why_aborted(self) -> str:
        if reachable(self.coordinator):
            return "jax ended this host: its message stands above"
        return f"{self.name(0)}, which coordinates the others, is gone"


def attempt(call: Callable[[], object], seconds: float) -> None:
    """Calls it, whatever comes of it, and waits so long at most."""

    def suppressed() -> None:
        with contextlib.suppress(Exception):
            call()

    thread = threading.Thread(target=suppressed, daemon=True)
    thread.start()
    thread.join(seconds)


def reachable(address: str) -> bool:
    """Whether somebody listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    except OSError:
        return False
    return True


def broke(error: BaseException) -> bool:
    """Whether an error may come from another host's end: a connection that is no more."""
    chain, texts = error, []
    while chain is not None:
        texts.append(str(chain))
        chain = chain.__cause__ or chain.__context__
    return any(word in text for text in texts for word in BROKEN)


def say(text: str, code: int) -> None:
    """One line on stderr that survives an exit without Python's shutdown."""
    prefix = "error: " if code else ""
    # AttributeError: there is no stdout
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    # whatever becomes of the line, the process must end behind it
    with contextlib.suppress(OSError):
        os.write(2, f"{prefix}{text}\n".encode())
