"""The worker process: no jax in it, no output but outcomes, limits as far as the system allows."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import pytest

from bridge_jax.grading import worker
from bridge_jax.grading.outcome import DeferredComparison

GOOD = DeferredComparison("x+1", "1+x")


def test_worker_cannot_import_jax():
    """A worker has no jax module and cannot import one."""
    code = (
        "import sys; from bridge_jax.grading import worker; sys.stdin = open('/dev/null'); worker.main(4 << 30, 1.0)\n"
        "bad = [n for n in sys.modules if n.split('.')[0] in ('jax', 'jaxlib', 'flax') and sys.modules[n] is not None]\n"
        "try:\n    import jax\nexcept ImportError:\n    print('none', bad, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert (
        done.stdout.splitlines()[0] == worker.READY and done.stderr.splitlines()[-1] == "none []"
    ), done.stderr


def test_a_worker_whose_parent_is_gone_ends_in_silence():
    """Its answer has no reader: that is no error to tell of."""
    reads, writes = os.pipe()
    code = "from bridge_jax.grading import worker; worker.main(4 << 30, 5.0)"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=writes, stderr=subprocess.PIPE
    )
    os.close(writes)
    assert os.read(reads, 100) == b"ready\n"
    os.close(reads)
    _, errors = child.communicate((json.dumps(GOOD) + "\n").encode(), timeout=240)
    assert errors == b"" and child.returncode == 1


def test_what_a_library_prints_is_no_answer():
    """The protocol has a stream of its own: stdout of the worker's libraries goes to stderr."""
    code = (
        "import sys; from bridge_jax.grading import worker, equivalence\n"
        "equivalence.symbolic = lambda comparison: print('noise') or 'wrong'\nworker.main(4 << 30, 1.0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(GOOD) + "\n",
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout == "ready\nwrong\n" and "noise" in done.stderr


@pytest.mark.parametrize("hard, allowed", [(resource.RLIM_INFINITY, 10**9), (3, 3)])
def test_limits_that_the_shell_has_set(monkeypatch, hard, allowed):
    """ulimit -t, ulimit -v: what is lower already stays, and no hard limit is raised, which only
    root may.
    """
    given = {}
    monkeypatch.setattr(worker.resource, "getrlimit", lambda kind: (hard, hard))
    monkeypatch.setattr(worker.resource, "setrlimit", given.__setitem__)
    worker.limit_memory(10**9)
    worker.limit_cpu_time(10**9)
    assert given[resource.RLIMIT_AS] == (allowed, allowed)
    soft, same = given[resource.RLIMIT_CPU]
    assert same == hard and soft >= allowed and (hard < 0 or soft <= hard)


def test_limits_that_the_system_refuses(monkeypatch):
    """macOS refuses a limit of the address space: the worker judges without."""

    def refuse(*_):
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(worker.resource, "setrlimit", refuse)
    worker.limit_memory(10**9)
    worker.limit_cpu_time(1.0)


def test_no_stderr():
    """What a library prints is no answer either where the parent was started without stderr."""
    code = (
        "import sys; from bridge_jax.grading import worker, equivalence\n"
        "equivalence.symbolic = lambda comparison: print('noise') or print('more', file=sys.stderr) or 'wrong'\n"
        "worker.main(4 << 30, 1.0)"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code],
        input=json.dumps(GOOD) + "\n",
        stdout=subprocess.PIPE,
        text=True,
        timeout=240,
    )
    assert done.stdout == "ready\nwrong\n"
