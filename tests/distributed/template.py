"""Processes that begin with everything imported, for tests that start many of them.

A template imports what a run imports, a quarter of a short run's processor time, and forks at each
request; the fork is a process of its own from there, to the ordinary end of the interpreter. The
template has no other thread, and has not looked for devices.

`python -m tests.distributed.template` is the template: a request a line.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Fork:
    """A process that a template has started, with what is used of subprocess.Popen."""

    def __init__(self, pid: int, code: pathlib.Path):
        self.pid, self._code = pid, code

    def poll(self) -> int | None:
        """The exit code, -N for signal N; None while it runs."""
        return int(self._code.read_text()) if self._code.exists() else None

    def wait(self, timeout: float = float("inf")) -> int:
        """The exit code; subprocess.TimeoutExpired after so many seconds."""
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.02)
        return code

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Template:
    """Starts processes that have imported these modules under this environment."""

    def __init__(self, modules: list[str], environment: Mapping[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.template", *modules],
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self._process.stdin.close)

    def start(self, argument: str, out: pathlib.Path, environment: Mapping[str, str]) -> Fork:
        """`main(argument)` of the first module, with its output in the file `out`.

        environment: what is added to the template's.
        """
        code = out.with_suffix(".code")
        code.unlink(missing_ok=True)
        request = dict(
            argument=argument, out=str(out), code=str(code), environment=dict(environment)
        )
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Fork(int(self._process.stdout.readline()), code)


def serve() -> dict | None:
    """Forks at each request, and returns it in the fork; None in the template, when none comes.

    Each fork has a parent of its own, which waits for it and writes its exit code.
    """
    for line in sys.stdin:
        request = json.loads(line)
        assert threads() in (None, 1), threads()
        if os.fork() == 0:
            if (fork := os.fork()) == 0:
                return request
            print(fork, flush=True)
            _, status = os.waitpid(fork, 0)
            code = pathlib.Path(request["code"])
            written = code.with_suffix(".written")
            written.write_text(str(os.waitstatus_to_exitcode(status)))
            written.rename(code)
            os._exit(0)
    return None


def threads() -> int | None:
    """Of this process, those of libraries too; None where the system does not say."""
    tasks = pathlib.Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else None


def become(request: dict) -> None:
    """Gives this process the output and the environment of its request."""
    out = os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream, number in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (out, 2)):
        os.dup2(stream, number)
    os.environ.update(request["environment"])


def main(modules: list[str]) -> None:
    """The template; or one of its forks."""
    first, *_ = [importlib.import_module(name) for name in modules]
    request = serve()
    if request:
        become(request)
        first.main(request["argument"])


if __name__ == "__main__":
    main(sys.argv[1:])
