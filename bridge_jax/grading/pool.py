"""Processes that judge DeferredComparisons, each claim within a limit of processor time that the
parent enforces with SIGKILL.

A claim that uses up its processor time is a `timeout`. A busy machine makes none: time in which a
worker does not run is not counted. A worker that dies (killed, out of memory) or freezes (stopped:
it has a claim and uses no processor) may have done so for a reason of its own: its claim is judged
once more, by a worker that was started since, because whatever it was may have struck those that
stand idle too. Only the second loss is the claim's, `grader_error` after a death and `timeout`
after a standstill, so that no claim costs more than two workers. Workers that are gone are
replaced, and a warm spare stands by so that a loss costs no import. Where none can be started (no
memory, no processes left) those that live go on; without any, starting is tried again for a while
before PoolError. Workers are children of their own (`python -m bridge_jax.grading.worker`), not
forks: they never see the parent's devices, threads or __main__. Answers come in the order of the
claims; equal claims of a call are judged once. `grade` may be called from any thread, by one at a
time. Left out: anything cheap (equivalence.compare).
"""

from __future__ import annotations

import collections
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from bridge_jax.grading.outcome import DeferredComparison, Outcome
from bridge_jax.grading.worker import READY

logger = logging.getLogger(__name__)
START_SECONDS = (
    120.0  # of processor time, within which a new worker must have imported what it needs
)
STALL_SECONDS = 30.0  # of wall clock: a worker that hardly ran for so long is frozen
STALL_SHARE = (
    0.001  # of one processor; a worker that waits for its turn on a busy machine gets more
)
# seconds between two looks at a worker's processor time, which the kernel counts in hundredths
TICK = 0.02
STARTS = 6  # failures in a row to start a worker, after which the pool without any gives up
PAUSE = 1.0  # seconds before the third start in a row; each later one waits twice as long
LONGEST_PAUSE = 60.0
USED_UP, FROZEN = "used up its processor time", "froze"
LONGEST = 10_000  # characters of gold and answer together; more is not sent
WORKER = "bridge_jax.grading.worker"  # the module that a child runs
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class PoolError(RuntimeError):
    """Workers cannot be started."""


def cpu_seconds(pid: int) -> float | None:
    """Processor time of a process and its threads, as the kernel counts it.

    None where no /proc shows it (macOS).
    """
    try:
        # the name in brackets may hold anything, so fields are counted from behind it
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


class Worker:
    """One child process, its claim and what it may still use for it.

    OSError if it cannot be started.
    """

    def __init__(self, memory_bytes: int, deadline: float):
        paths = [str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", WORKER, str(memory_bytes), str(deadline)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # a terminal's Ctrl-C is the parent's
        )
        # neither reading from nor writing to a frozen worker may hold up the parent
        os.set_blocking(self.process.stdout.fileno(), False)
        os.set_blocking(self.process.stdin.fileno(), False)
        self.started, self.ready, self.received, self.unsent = time.monotonic(), False, b"", b""
        self.fresh = True  # it was never given a claim
        self.claim: DeferredComparison | None = None
        self._allow(START_SECONDS)

    def send(self, claim: DeferredComparison, deadline: float) -> None:
        """Give it a claim; OSError if it is dead."""
        self._allow(deadline)
        self.unsent = (json.dumps(claim) + "\n").encode()
        self.push()
        self.claim, self.fresh = claim, False

    def push(self) -> None:
        """Write as much of the claim as the pipe takes; OSError if it is dead."""
        while self.unsent:
            try:
                self.unsent = self.unsent[os.write(self.process.stdin.fileno(), self.unsent) :]
            except BlockingIOError:
                return

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

    def _allow(self, seconds: float) -> None:
        """So much processor time from now on."""
        now, used = time.monotonic(), cpu_seconds(self.process.pid)
        self._limit, self._used_before = seconds, used
        self._seen_at, self._used_then = now, used  # when it was last known to get on
        # without a look at its processor time the limit is the worker's own (worker.grant)
        self._patience = STALL_SECONDS if used is not None else max(STALL_SECONDS, 4 * seconds)
        # when there can be something to say for the first time
        self.due = now + (self._patience if used is None else min(seconds, self._patience))

    def overdue(self) -> str | None:
        """USED_UP, FROZEN, or None while it may go on."""
        now = time.monotonic()
        if now < self.due:
            return None
        used, since = cpu_seconds(self.process.pid), now - self._seen_at
        if used is None or self._used_before is None:
            self.due = self._seen_at + self._patience
            return FROZEN if since >= self._patience else None
        left = self._limit - (used - self._used_before)
        if left <= 0:
            return USED_UP
        if since >= self._patience:
            if used - self._used_then < STALL_SHARE * since:
                return FROZEN
            self._seen_at, self._used_then = now, used
        self.due = min(now + max(TICK, left), self._seen_at + self._patience)
        return None

    def kill(self) -> int | None:
        """SIGKILL; no zombie is left, unless the kernel holds it.

        The exit code, which an earlier death decided.
        """
        self.process.kill()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:  # in the kernel, for a file system that is gone
            logger.warning("grading worker %d does not die of SIGKILL", self.process.pid)
        for stream in (self.process.stdin, self.process.stdout):
            try:
                stream.close()
            except OSError:  # the claim that it never read
                pass
        return self.process.returncode


class Work:
    """The claims of one call: which wait, which were lost once, what is known."""

    def __init__(self, claims: list[DeferredComparison]):
        long = [claim for claim in claims if len(claim.gold) + len(claim.answer) > LONGEST]
        self.found = dict.fromkeys(long, Outcome.parse_error)
        self.waiting = collections.deque(
            dict.fromkeys(claim for claim in claims if claim not in self.found)
        )
        self.again: list[DeferredComparison] = []  # lost once
        self._lost: dict[DeferredComparison, float] = {}  # clock of the loss

    def choose(self, worker: Worker, workers: list[Worker]) -> DeferredComparison | None:
        """The claim for a worker: the latest that was lost before it was started; one that was lost
        and to which no worker comes any more (starting fails); else the next that waits.
        """
        for claim in reversed(self.again):
            if self._is_new(worker, claim):
                return claim
        for claim in self.again:
            if not any(self._is_new(other, claim) for other in workers):
                return claim
        return self.waiting[0] if self.waiting else None

    def _is_new(self, worker: Worker, claim: DeferredComparison) -> bool:
        """Whether a worker was started after this claim was lost, and is still unused."""
        return worker.fresh and worker.started >= self._lost[claim]

    def given(self, claim: DeferredComparison) -> None:
        """A worker has it."""
        if claim in self.again:
            self.again.remove(claim)
        else:
            self.waiting.remove(claim)

    def lose(self, claim: DeferredComparison, outcome: Outcome) -> None:
        """Its worker is gone: the claim is judged again behind others, or, the second time, this is
        its outcome.
        """
        if claim in self._lost:
            self.found[claim] = outcome
        else:
            self._lost[claim] = time.monotonic()
            self.again.append(claim)


class Pool:
    """`workers` processes and a spare.

    `deadline` seconds of processor time for each claim, `memory_bytes` of address space.
    """

    def __init__(self, workers: int = 2, deadline: float = 5.0, memory_bytes: int = 2 << 30):
        if workers < 1 or not deadline > 0:
            raise ValueError(
                f"Pool(workers={workers}, deadline={deadline}); allowed: at least 1, above 0 "
                "seconds"
            )
        self.deadline, self._memory_bytes, self._size = deadline, memory_bytes, workers
        self.killed = 0  # workers that had to be replaced
        self._closed = False
        self._failed_starts = 0  # in a row
        self._last_failure = self._next_start = float("-inf")
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        self._fill()

    def grade(self, claims: list[DeferredComparison]) -> list[Outcome]:
        """One Outcome for each claim, in order.

        Raises for no claim, PoolError if workers cannot be started any more.
        """
        with self._lock:
            if self._closed:
                raise PoolError("the pool is closed; make a new one")
            for worker in [worker for worker in self._workers if worker.claim]:
                self._remove(worker)  # a call before this one was interrupted
            work = Work(claims)
            self._fill()
            while work.waiting or work.again or any(worker.claim for worker in self._workers):
                self._assign(work)
                for worker in self._wait():
                    self._hear(worker, work)
                self._expire(work)
                self._fill()
            return [work.found[claim] for claim in claims]

    def close(self) -> None:
        """End all workers; may be called twice."""
        self._closed = True
        while self._workers:
            self._workers.pop().kill()

    def _fill(self) -> None:
        """As many workers as asked for, and a spare, unless starting has just failed."""
        while len(self._workers) <= self._size and time.monotonic() >= self._next_start:
            try:
                self._workers.append(Worker(self._memory_bytes, self.deadline))
            except OSError as error:
                self._start_failed(f"cannot be started ({error})")

    def _start_failed(self, reason: str) -> None:
        """Wait before the next start.

        PoolError after too many in a row if no worker is left that could go on.
        """
        now = time.monotonic()
        self._failed_starts, self._last_failure = self._failed_starts + 1, now
        if self._failed_starts > 1:
            self._next_start = now + min(PAUSE * 2 ** (self._failed_starts - 2), LONGEST_PAUSE)
        if self._failed_starts >= STARTS and not any(worker.ready for worker in self._workers):
            self.close()
            raise PoolError(
                f"grading workers {reason}, {STARTS} times in a row; is the machine out of memory "
                f"or of processes? What they said is above. Try by hand: python -m {WORKER} "
                f"{self._memory_bytes} {self.deadline}"
            )

    def _assign(self, work: Work) -> None:
        """DeferredComparisons to workers that are ready; one worker stays the spare."""
        for worker in list(self._workers):
            if sum(worker.claim is not None for worker in self._workers) >= self._size:
                return
            if not worker.ready or worker.claim:
                continue
            claim = work.choose(worker, self._workers)
            if claim is None:
                continue
            try:
                worker.send(claim, self.deadline)
                work.given(claim)
            except OSError:  # it died while idle: no claim's fault
                self._lost(worker, work)
                return  # another is started before claims are given out again

    def _wait(self) -> list[Worker]:
        """Workers that have something to say, or none when the next limit may be reached.

        DeferredComparisons are written meanwhile.
        """
        ends = [worker.due for worker in self._workers if worker.claim or not worker.ready]
        if len(self._workers) <= self._size:
            ends.append(self._next_start)
        now = time.monotonic()
        with selectors.PollSelector() as selector:
            for worker in self._workers:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
                if worker.unsent:
                    selector.register(worker.process.stdin, selectors.EVENT_WRITE, worker)
            events = selector.select(max(0.0, min(ends, default=now) - now))
        return list(dict.fromkeys(key.data for key, _ in events))

    def _hear(self, worker: Worker, work: Work) -> None:
        """Take a worker's line; the claim of one that is gone or talks nonsense is lost."""
        try:
            worker.push()
            line = worker.read()
            if line == READY:
                worker.ready = True
            elif line is not None:
                if worker.claim is None:
                    raise ValueError(f"{line!r} answers no claim")
                work.found[worker.claim], worker.claim = Outcome(line), None
                self._failed_starts, self._next_start = 0, float("-inf")
        except (EOFError, OSError, ValueError):
            self._lost(worker, work)

    def _expire(self, work: Work) -> None:
        """Kill what has used up its time, or is frozen."""
        for worker in [worker for worker in self._workers if worker.claim or not worker.ready]:
            came_to = worker.overdue()
            if came_to == USED_UP and worker.claim:
                work.found[worker.claim] = Outcome.timeout
                self._remove(worker)
            elif came_to:
                self._lost(worker, work, Outcome.timeout)

    def _lost(self, worker: Worker, work: Work, outcome: Outcome = Outcome.grader_error) -> None:
        """A worker is gone without an answer, or has to go."""
        code = self._remove(worker)
        if worker.claim:
            logger.info("a grading worker was lost over a claim (exit code %s)", code)
            # the kernel's limit of processor time strikes where the parent cannot see how much was
            # used
            work.lose(worker.claim, Outcome.timeout if code == -signal.SIGXCPU else outcome)
        # workers that were started together fail together: one failure
        elif worker.fresh and worker.started > self._last_failure:
            self._start_failed("ended before they were ready")

    def _remove(self, worker: Worker) -> int | None:
        """End a worker; the exit code. `_fill` starts another."""
        code = worker.kill()
        self._workers.remove(worker)
        self.killed += 1
        return code

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error) -> None:
        self.close()
