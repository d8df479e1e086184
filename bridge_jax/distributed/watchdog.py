"""Limits every wait for another host, and ends this process when another host is lost.

jax's coordination service keeps heartbeats in C++ and notices a host that is gone. By default it
then aborts all others (SIGABRT). Our tasks are `recoverable`, so that they continue; a thread of
each host asks the service every second which hosts are alive, and ends its process with one line
and exit code LOST where one is gone, or where the service gives no answer for as long as a host may
go without a heartbeat. Without host 0 (main) there is no service; then jax aborts the others with a
message of its own.
A host that stops for a reason of its own writes it into the service's key-value store, and the
others end with that line. Left out: the waits themselves (multihost.py).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import faulthandler
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import jax

logger = logging.getLogger(__name__)
# exit code
LOST = 4
# times hosts.timeout_s, for waits in which a host may read or write a checkpoint
IO_GRACE = 20
# seconds between two checks of which hosts are alive
BEAT_S = 1.0
# seconds that a host has to end by itself after another one announced the end
GRACE_S = 4.0
# seconds that host 0, with the service, stays for the others
LEAVE_S = 15.0
# parts of error messages that are caused by the end of another host
BROKEN = (
    "Gloo",
    "NCCL",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "ABORTED",
    "CANCELLED",
    "oordination service",
    "heartbeat",
    "onnection closed",
    "onnection reset",
    "onnection refused",
    "roken pipe",
)


class Lost(RuntimeError):
    """Another host is gone, has stopped, or does not reach the barrier at which this one waits.

    late: the hosts that did not reach it; they are alive, and print their stacks.
    """

    def __init__(self, text: str, late: Sequence[int] = ()):
        super().__init__(text)
        self.late = late


class Peers:
    """The other hosts of the run. `client`: of jax's coordination service."""

    def __init__(self, client, index: int, count: int, timeout_s: float):
        self.client, self.index, self.count, self.timeout_s = client, index, count, timeout_s
        # with the machines' names, once they are known
        self.names = [f"host {i}" for i in range(count)]
        # host -> incarnation of its process: now, and when the service first answered
        self.live, self._first = {}, {}
        self.leaving, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor of hosts", daemon=True)

    def start(self) -> None:
        """Begin to monitor the other hosts."""
        self._thread.start()

    @contextlib.contextmanager
    def watchdog(self, label: str, io_grace: bool = False) -> Iterator[None]:
        """End the process if what is inside takes longer than the timeout."""
        timer = threading.Timer(self.limit(io_grace), self._expire, (label, io_grace))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def limit(self, io_grace: bool) -> float:
        """Seconds that a wait may take."""
        return self.timeout_s * (IO_GRACE if io_grace else 1)

    def waited(self, label: str, io_grace: bool) -> str:
        """A message: the seconds that this host has waited, and the label of the wait."""
        times = f"{IO_GRACE} times " if io_grace else ""
        waited = f"{self.limit(io_grace):.0f} s ({times}hosts.timeout_s)"
        return f"{self.names[self.index]} waited {waited} for the other hosts at {label!r}"

    def announce(self, code: int, reason: str) -> None:
        """Send the others the reason of this host's end, and the exit code with which they end."""
        self.publish(code, f"{self.names[self.index]} stopped: {reason}")

    def publish(self, code: int, text: str, late: Sequence[int] = ()) -> None:
        """End the others with this code and text; the late ones also print their stacks."""
        self.leaving.set()
        message = json.dumps([code, text, list(late)])
        # the service may be gone, with host 0
        attempt(lambda: self.client.key_value_set(f"bridge/end/{self.index}", message), 5.0)

    def leave(self) -> None:
        """Leave the run; host 0 leaves last, as jax aborts the others when its service ends."""
        self.leaving.set()
        self._stay()
        self._closed.set()
        attempt(jax.distributed.shutdown, LEAVE_S)
        if threading.current_thread() is not self._thread:
            self._thread.join(LEAVE_S)

    def _stay(self) -> None:
        until = time.monotonic() + LEAVE_S
        while self.index == 0 and set(self.live) != {0} and time.monotonic() < until:
            time.sleep(0.1)

    def diagnose(self, error: Exception) -> Exception:
        """The error, or Lost for a broken connection while all hosts live.

        Where one is gone, the monitor ends the process in the meantime.
        """
        if isinstance(error, Lost) or not broke(error):
            return error
        time.sleep(heartbeat(self.timeout_s) + 4 * BEAT_S + GRACE_S)
        host, reason = self.names[self.index], " ".join(str(error).split())[:200]
        return Lost(
            f"the connection of {host} to another host broke, but all of them are alive: {reason}"
        )

    def end(self, code: int, text: str, late: Sequence[int] = ()) -> None:
        """End the process from another thread: the main one may hang where no signal reaches it."""
        if self.leaving.is_set():
            return
        self.leaving.set()
        if self.index in late:
            faulthandler.dump_traceback(file=2, all_threads=True)
        self.publish(code, text, late)
        print_to_stderr(f"error: {text}" if code else text)
        self._stay()
        attempt(jax.distributed.shutdown, 2.0)
        os._exit(code)

    def _expire(self, label: str, io_grace: bool) -> None:
        text = f"{self.waited(label, io_grace)}; its own output shows the stacks of its threads"
        self.end(LOST, text, [self.index])

    def _run(self) -> None:
        """The monitor. An error does not end it: the service may answer the next time."""
        failing_since = None
        while not self._closed.wait(BEAT_S):
            try:
                self._check_hosts()
                failing_since = None
            # any exception: without this thread the loss of a host would go unnoticed
            except Exception as error:
                if failing_since is None:
                    failing_since = time.monotonic()
                    if not self.leaving.is_set():
                        logger.warning("the check of the other hosts failed, retrying: %r", error)
                self._end_if_silent(time.monotonic() - failing_since, error)

    def _check_hosts(self) -> None:
        """One check. get_live_nodes returns once all live hosts have called it."""
        self.live = self.client.get_live_nodes(list(range(self.count)))
        ends = self.client.key_value_dir_get("bridge/end/")
        self._first = self._first or self.live
        gone = [i for i in range(self.count) if self.live.get(i) != self._first.get(i, -1)]
        if ends and not self.leaving.wait(GRACE_S):
            _, message = min(ends)
            self._end_soon(*json.loads(message))
        elif gone and not ends:
            names = ", ".join(self.names[i] for i in gone)
            silence = f"no heartbeat from {names} for {heartbeat(self.timeout_s)} s"
            self._end_soon(LOST, f"{silence}: killed, frozen or cut off")

    def _end_if_silent(self, seconds: float, error: Exception) -> None:
        """End as for a lost host once checks have failed for longer than a heartbeat may take.

        The grace lets jax abort first where host 0 is gone (exit code 134).
        """
        if seconds < heartbeat(self.timeout_s) + GRACE_S:
            return
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        host, main = self.names[self.index], self.names[0]
        text = f"{host} could not check the other hosts for {seconds:.0f} s ({reason})"
        self._end_soon(LOST, f"{text}; see whether {main}, which runs jax's service, is reachable")

    def _end_soon(self, *end) -> None:
        """In a thread of its own: the monitor of host 0 must still see which hosts have left."""
        threading.Thread(target=self.end, args=end, daemon=True).start()


def heartbeat(timeout_s: float) -> int:
    """Seconds without a heartbeat after which a host counts as gone; 100 is jax's default."""
    return int(min(100, timeout_s / 2))


def attempt(call: Callable[[], object], seconds: float) -> concurrent.futures.Future:
    """Run call() in a thread, and return when it is done, has failed, or `seconds` are over."""
    future = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    # a daemon, unlike an executor's threads: the process may end while the call hangs
    threading.Thread(target=run, daemon=True).start()
    concurrent.futures.wait([future], seconds)
    return future


def broke(error: BaseException) -> bool:
    """Whether the end of another host may be the cause of an error: a broken connection."""
    chain, texts = error, []
    while chain is not None:
        texts.append(str(chain))
        chain = chain.__cause__ or chain.__context__
    return any(word in text for text in texts for word in BROKEN)


def print_to_stderr(text: str) -> None:
    """Print a line to stderr unbuffered; an exit without Python's shutdown loses buffers."""
    # AttributeError: there is no stdout
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    # the process must be able to end, whether or not the line was written
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
