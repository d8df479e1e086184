"""A pool of worker processes for DeferredComparisons, each with a limit of processor time.

A comparison that uses up its processor time is a `timeout`, and its worker is killed by SIGKILL.
Time in which a worker does not run is not counted, so that a busy machine causes no timeout.

A worker may die (killed, out of memory) or freeze (it has a comparison and uses no processor) for a
reason outside the comparison. The comparison is then judged once more, by a worker that was started
after the loss, since the same cause may have hit idle workers too. The outcome after a second loss
is `grader_error` for a death and `timeout` for a freeze, so that a comparison costs at most two
workers. Lost workers are replaced; a spare worker is kept ready, so that no loss costs the time of
an import. Where none can be started (no memory, no processes left) the others continue; without
others, starts are repeated for a while before PoolError.

Workers are new processes (`python -m bridge_jax.grading.worker`), not forks: they have none of the
parent's devices, threads or __main__. Outcomes are in the order of the comparisons; equal
comparisons of a call are judged once. `grade` may be called from any thread, one call at a time.
Left out: cheap comparisons (equivalence.compare).
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
from bridge_jax.grading.worker import IMPORT_SECONDS, READY
from bridge_jax.grading.worker import environment as worker_environment

logger = logging.getLogger(__name__)
# processor time that a new worker may use for its imports
START_SECONDS = 120.0
# a worker is frozen that used less than STALL_SHARE of a processor for so many seconds of wall
# clock; a worker that competes for a busy processor gets more than this share
STALL_SECONDS = 30.0
STALL_SHARE = 0.001
# seconds between two checks of a worker's processor time, which the kernel counts in hundredths
TICK = 0.02
STARTS = 6  # failed starts in a row after which a pool without workers gives up
PAUSE = 1.0  # seconds before the third start in a row; the delay doubles with each later one
LONGEST_PAUSE = 60.0
USED_UP, FROZEN = "used up its processor time", "froze"
LONGEST = 10_000  # characters of gold and answer together; more is not sent
LONGEST_TEXT = 400_000  # the same where a function reads a whole completion
WORKER = "bridge_jax.grading.worker"  # the module that a child runs


class PoolError(RuntimeError):
    """No worker can be started."""


def cpu_seconds(pid: int) -> float | None:
    """Processor time of a process and its threads from /proc; None without /proc (macOS)."""
    try:
        # the name in brackets may contain anything, so fields are counted after it
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


class Worker:
    """A child process with its current comparison and limits; OSError if it cannot be started."""

    def __init__(self, memory_bytes: int, deadline: float):
        self.process = subprocess.Popen(
            [sys.executable, "-m", WORKER, str(memory_bytes), str(deadline)],
            env=worker_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # a terminal's Ctrl-C is the parent's
            start_new_session=True,
        )
        # a frozen worker must not block the parent, neither in reading nor in writing
        os.set_blocking(self.process.stdout.fileno(), False)
        os.set_blocking(self.process.stdin.fileno(), False)
        self.started, self.ready, self.received, self.unsent = time.monotonic(), False, b"", b""
        # no comparison was sent to it so far
        self.unused = True
        self.comparison: DeferredComparison | None = None
        # reward functions that it has; algebra is always there
        self.imported: set[str] = {""}
        self._set_limit(START_SECONDS)

    def send(self, comparison: DeferredComparison, deadline: float) -> None:
        """Sends a comparison; OSError if the process is dead.

        Before the first one of a reward function there is time to import it.
        """
        self._set_limit(deadline if comparison.function in self.imported else IMPORT_SECONDS)
        self.unsent = (json.dumps(comparison) + "\n").encode()
        self.push()
        self.comparison, self.unused = comparison, False

    def begin(self, deadline: float) -> None:
        """The worker is ready for the comparison that it was sent, if it was sent one."""
        self.ready = True
        if self.comparison:
            self.imported.add(self.comparison.function)
            self._set_limit(deadline)

    def push(self) -> None:
        """Writes as much of the comparison as the pipe accepts; OSError if the process is dead."""
        while self.unsent:
            try:
                self.unsent = self.unsent[os.write(self.process.stdin.fileno(), self.unsent) :]
            except BlockingIOError:
                return

    def read(self) -> str | None:
        """A complete line without its end, or None; EOFError if the process has ended."""
        while (found := self.received.find(b"\n")) < 0:
            piece = self.process.stdout.read(4096)
            if piece is None:
                return None
            if not piece:
                raise EOFError
            self.received += piece
        line, self.received = self.received[:found].decode(), self.received[found + 1 :]
        return line

    def _set_limit(self, seconds: float) -> None:
        """Limits the processor time from now on."""
        now, used = time.monotonic(), cpu_seconds(self.process.pid)
        self._limit, self._used_before = seconds, used
        # the last time at which progress was seen
        self._seen_at, self._used_then = now, used
        # without /proc the worker alone enforces the limit (worker.limit_cpu_time)
        self._patience = STALL_SECONDS if used is not None else max(STALL_SECONDS, 4 * seconds)
        # the earliest time at which a limit may be exceeded
        self.due = now + (self._patience if used is None else min(seconds, self._patience))

    def limit_exceeded(self) -> str | None:
        """USED_UP, FROZEN, or None within the limits."""
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
        """Kills and reaps the process; the exit code, which may be that of an earlier death."""
        self.process.kill()
        try:
            self.process.wait(10)
        # blocked in the kernel, by a lost file system
        except subprocess.TimeoutExpired:
            logger.warning("grading worker %d does not die of SIGKILL", self.process.pid)
        for stream in (self.process.stdin, self.process.stdout):
            try:
                stream.close()
            # the comparison that it never read
            except OSError:
                pass
        return self.process.returncode


class GradingJob:
    """The comparisons of one call of `grade`: waiting, to be retried, finished."""

    def __init__(self, comparisons: list[DeferredComparison]):
        long = [
            comparison
            for comparison in comparisons
            if len(comparison.gold) + len(comparison.answer)
            > (LONGEST_TEXT if comparison.function else LONGEST)
        ]
        self.outcomes = dict.fromkeys(long, Outcome.parse_error)
        self.waiting = collections.deque(
            dict.fromkeys(
                comparison for comparison in comparisons if comparison not in self.outcomes
            )
        )
        # those whose first worker was lost
        self.retries: list[DeferredComparison] = []
        # time of the loss
        self._lost_at: dict[DeferredComparison, float] = {}

    def next_for(self, worker: Worker, workers: list[Worker]) -> DeferredComparison | None:
        """The next comparison for a worker, or None.

        In this order: the latest that was lost before the worker was started; one that was lost and
        that no newer worker is there for (starts fail); the first that waits.
        """
        for comparison in reversed(self.retries):
            if self._is_new(worker, comparison):
                return comparison
        for comparison in self.retries:
            if not any(self._is_new(other, comparison) for other in workers):
                return comparison
        return self.waiting[0] if self.waiting else None

    def _is_new(self, worker: Worker, comparison: DeferredComparison) -> bool:
        """Whether a worker was started after the loss of this comparison and is still unused."""
        return worker.unused and worker.started >= self._lost_at[comparison]

    def mark_sent(self, comparison: DeferredComparison) -> None:
        """Removes a comparison that was sent to a worker."""
        if comparison in self.retries:
            self.retries.remove(comparison)
        else:
            self.waiting.remove(comparison)

    def record_loss(self, comparison: DeferredComparison, outcome: Outcome) -> None:
        """Schedules a retry for a comparison whose worker was lost.

        The second time, sets `outcome`.
        """
        if comparison in self._lost_at:
            self.outcomes[comparison] = outcome
        else:
            self._lost_at[comparison] = time.monotonic()
            self.retries.append(comparison)


class Pool:
    """`workers` worker processes and a spare one.

    deadline: processor seconds for each comparison; memory_bytes: address space of a worker.
    """

    def __init__(self, workers: int = 2, deadline: float = 5.0, memory_bytes: int = 2 << 30):
        if workers < 1 or not deadline > 0:
            raise ValueError(
                f"Pool(workers={workers}, deadline={deadline}); allowed: at least 1, above 0 "
                "seconds"
            )
        self.deadline, self._memory_bytes, self._size = deadline, memory_bytes, workers
        # workers that had to be replaced
        self.killed = 0
        self._closed = False
        # how many in a row
        self._failed_starts = 0
        self._last_failure = self._next_start = float("-inf")
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        self._fill()

    def grade(self, comparisons: list[DeferredComparison]) -> list[Outcome]:
        """The Outcome of each comparison, in order; PoolError if no worker can be started.

        No comparison raises an error.
        """
        with self._lock:
            if self._closed:
                raise PoolError("the pool is closed; make a new one")
            for worker in [worker for worker in self._workers if worker.comparison]:
                # a call before this one was interrupted
                self._remove(worker)
            job = GradingJob(comparisons)
            self._fill()
            while job.waiting or job.retries or any(worker.comparison for worker in self._workers):
                self._assign(job)
                for worker in self._wait():
                    self._receive(worker, job)
                self._kill_overdue(job)
                self._fill()
            return [job.outcomes[comparison] for comparison in comparisons]

    def close(self) -> None:
        """End all workers; may be called twice."""
        self._closed = True
        while self._workers:
            self._workers.pop().kill()

    def _fill(self) -> None:
        """Starts the missing workers and the spare one, unless a start has just failed."""
        while len(self._workers) <= self._size and time.monotonic() >= self._next_start:
            try:
                self._workers.append(Worker(self._memory_bytes, self.deadline))
            except OSError as error:
                self._start_failed(f"cannot be started ({error})")

    def _start_failed(self, reason: str) -> None:
        """Delays the next start.

        PoolError after too many failures in a row without any live worker.
        """
        now = time.monotonic()
        self._failed_starts, self._last_failure = self._failed_starts + 1, now
        if self._failed_starts > 1:
            self._next_start = now + min(PAUSE * 2 ** (self._failed_starts - 2), LONGEST_PAUSE)
        if self._failed_starts >= STARTS and not any(worker.ready for worker in self._workers):
            self.close()
            raise PoolError(
                f"grading workers {reason}, {STARTS} times in a row; is the machine out of memory "
                f"or of processes? Their output is above. Try by hand: python -m {WORKER} "
                f"{self._memory_bytes} {self.deadline}"
            )

    def _assign(self, job: GradingJob) -> None:
        """Sends comparisons to idle workers; one worker stays the spare."""
        for worker in list(self._workers):
            if sum(worker.comparison is not None for worker in self._workers) >= self._size:
                return
            if not worker.ready or worker.comparison:
                continue
            comparison = job.next_for(worker, self._workers)
            if comparison is None:
                continue
            try:
                worker.send(comparison, self.deadline)
                job.mark_sent(comparison)
            # it died while idle: no comparison's fault
            except OSError:
                self._on_loss(worker, job)
                # another is started before comparisons are given out again
                return

    def _wait(self) -> list[Worker]:
        """Waits for workers with output, or for the next limit; sends pending input meanwhile."""
        ends = [worker.due for worker in self._workers if worker.comparison or not worker.ready]
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

    def _receive(self, worker: Worker, job: GradingJob) -> None:
        """Reads a worker's outcome; an end of the process or an invalid line is a loss."""
        try:
            worker.push()
            line = worker.read()
            if line == READY:
                worker.begin(self.deadline)
                # after an import the outcome may have come with it
                line = worker.read() if worker.comparison else None
            if line is not None:
                if worker.comparison is None:
                    raise ValueError(f"{line!r} belongs to no comparison")
                job.outcomes[worker.comparison], worker.comparison = Outcome(line), None
                self._failed_starts, self._next_start = 0, float("-inf")
        except (EOFError, OSError, ValueError):
            self._on_loss(worker, job)

    def _kill_overdue(self, job: GradingJob) -> None:
        """Kills workers that have used up their time or are frozen."""
        for worker in [worker for worker in self._workers if worker.comparison or not worker.ready]:
            verdict = worker.limit_exceeded()
            if verdict == USED_UP and worker.comparison:
                job.outcomes[worker.comparison] = Outcome.timeout
                self._remove(worker)
            elif verdict:
                self._on_loss(worker, job, Outcome.timeout)

    def _on_loss(
        self, worker: Worker, job: GradingJob, outcome: Outcome = Outcome.grader_error
    ) -> None:
        """Removes a worker that ended without an outcome or must be killed."""
        code = self._remove(worker)
        if worker.comparison:
            logger.info("a grading worker was lost over a comparison (exit code %s)", code)
            # the kernel's limit of processor time strikes where the parent cannot see how much was
            # used
            job.record_loss(
                worker.comparison, Outcome.timeout if code == -signal.SIGXCPU else outcome
            )
        # workers that were started together fail together: one failure
        elif worker.unused and worker.started > self._last_failure:
            self._start_failed("ended before they were ready")

    def _remove(self, worker: Worker) -> int | None:
        """Ends a worker and returns its exit code; `_fill` starts another one."""
        code = worker.kill()
        self._workers.remove(worker)
        self.killed += 1
        return code

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error) -> None:
        self.close()
