"""Processes that judge Claims, each claim under a deadline that the parent enforces with SIGKILL.

A claim that outlives its deadline is a `timeout`, one whose worker dies a `grader_error`; the worker is replaced, and a warm
spare stands by so that a kill costs no import. Workers are children of their own (`python -m bridge_jax.grading.worker`), not
forks: they never see the parent's devices, threads or __main__. Answers come in the order of the claims; equal claims of a
call are judged once. `grade` may be called from any thread, by one at a time. Left out: anything cheap (equivalence.compare).
"""

from __future__ import annotations

import collections
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path

from bridge_jax.grading.outcome import Claim, Outcome
from bridge_jax.grading.worker import READY

START_SECONDS = 120.0  # within which a new worker must have imported what it needs
LONGEST = 10_000  # characters of gold and answer together; more is not sent
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class PoolError(RuntimeError):
    """Workers cannot be started."""


class Worker:
    """One child process, its claim and its deadline."""

    def __init__(self, memory_bytes: int, deadline: float):
        paths = [str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bridge_jax.grading.worker", str(memory_bytes), str(deadline)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )  # a terminal's Ctrl-C is the parent's
        os.set_blocking(self.process.stdout.fileno(), False)
        self.started, self.ready, self.received = time.monotonic(), False, b""
        self.claim: Claim | None = None
        self.due = 0.0

    def send(self, claim: Claim, deadline: float) -> None:
        """Give it a claim; OSError if it is dead."""
        self.process.stdin.write((json.dumps(claim) + "\n").encode())
        self.process.stdin.flush()
        self.claim, self.due = claim, time.monotonic() + deadline

    def read(self) -> str | None:
        """A whole line, without its end, if there is one; EOFError if the process is gone."""
        while (found := self.received.find(b"\n")) < 0:
            piece = self.process.stdout.read(4096)
            if piece is None:
                return None
            if not piece:
                raise EOFError
            self.received += piece
        line, self.received = self.received[:found].decode(), self.received[found + 1 :]
        return line

    def kill(self) -> None:
        """SIGKILL, and no zombie is left."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            try:
                stream.close()
            except OSError:  # the claim that it never read
                pass


class Pool:
    """`workers` processes and a spare; seconds of `deadline` for each claim, `memory_bytes` of address space for each."""

    def __init__(self, workers: int = 2, deadline: float = 5.0, memory_bytes: int = 2 << 30):
        if workers < 1 or not deadline > 0:
            raise ValueError(
                f"Pool(workers={workers}, deadline={deadline}); allowed: at least 1, above 0 seconds"
            )
        self.deadline, self._memory_bytes, self._size = deadline, memory_bytes, workers
        self.killed = 0  # workers that had to be replaced
        self._failed_starts = 0  # in a row
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        self._fill()

    def grade(self, claims: list[Claim]) -> list[Outcome]:
        """One Outcome for each claim, in order; raises for no claim, PoolError if workers cannot be started any more."""
        with self._lock:
            if not self._workers:
                raise PoolError("the pool is closed; make a new one")
            found = {
                claim: Outcome.parse_error
                for claim in claims
                if len(claim.gold) + len(claim.answer) > LONGEST
            }
            waiting = collections.deque(
                dict.fromkeys(claim for claim in claims if claim not in found)
            )
            while waiting or any(worker.claim for worker in self._workers):
                self._assign(waiting)
                for worker in self._wait():
                    self._hear(worker, found)
                self._expire(found)
            return [found[claim] for claim in claims]

    def close(self) -> None:
        """End all workers; may be called twice."""
        while self._workers:
            self._workers.pop().kill()

    def _fill(self) -> None:
        """As many workers as asked for, and a spare."""
        while len(self._workers) <= self._size:
            self._workers.append(Worker(self._memory_bytes, self.deadline))

    def _assign(self, waiting: collections.deque) -> None:
        """Claims to workers that are ready; one worker stays the spare."""
        for worker in list(self._workers):
            busy = sum(worker.claim is not None for worker in self._workers)
            if waiting and worker.ready and worker.claim is None and busy < self._size:
                try:
                    worker.send(waiting[0], self.deadline)
                    waiting.popleft()
                except OSError:  # it died while idle: no claim's fault
                    self._replace(worker)

    def _wait(self) -> list[Worker]:
        """Workers that have something to say, or none when the next deadline is over."""
        now, ends = (
            time.monotonic(),
            [
                worker.due if worker.claim else worker.started + START_SECONDS
                for worker in self._workers
                if worker.claim or not worker.ready
            ],
        )
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            events = selector.select(max(0.0, min(ends, default=now) - now))
        return [key.data for key, _ in events]

    def _hear(self, worker: Worker, found: dict) -> None:
        """Take a worker's line; one that is gone leaves its claim as grader_error."""
        try:
            line = worker.read()
            if line == READY:
                worker.ready, self._failed_starts = True, 0
            elif line is not None:
                found[worker.claim], worker.claim = Outcome(line), None
        except (EOFError, OSError, ValueError):
            self._failed_starts += not worker.ready
            if self._failed_starts >= 3:
                self.close()
                raise PoolError(
                    "three grading workers ended before they were ready; what they said is above. Try by hand: "
                    f"python -m bridge_jax.grading.worker {self._memory_bytes} {self.deadline}"
                ) from None
            if worker.claim:
                found[worker.claim] = Outcome.grader_error
            self._replace(worker)

    def _expire(self, found: dict) -> None:
        """Kill what is over its deadline."""
        now = time.monotonic()
        for worker in list(self._workers):
            if worker.claim and now >= worker.due:
                found[worker.claim] = Outcome.timeout
                self._replace(worker)
            elif not worker.ready and now - worker.started > START_SECONDS:
                self.close()
                raise PoolError(
                    f"a grading worker was not ready after {START_SECONDS:.0f} s; is the machine out of memory?"
                )

    def _replace(self, worker: Worker) -> None:
        worker.kill()
        self._workers.remove(worker)
        self.killed += 1
        self._fill()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error) -> None:
        self.close()
