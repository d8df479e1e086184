"""Runs of several processes over loopback, for tests/distributed/test_host_runs.py,
test_host_faults.py and test_host_rare_faults.py.

Each is a whole `experiments.train` of the tiny config, graded by parity, with its own share of the
simulated devices; a plan may have it killed, signalled or frozen while the rollouts of a step are
written.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time
import types

from tests.distributed.template import Fork, Template
from tests.filesystem import full_disk

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEVICES = 4  # of all processes together
TIMEOUT = 20  # seconds, hosts.timeout_s; half of it without a heartbeat, and a host is gone
# a hang: many times the patience of a host, which a busy machine may stretch
HANG_S = 15 * TIMEOUT
CONFIG = dict(
    batch__prompts_per_step=8,
    batch__samples_per_prompt=2,
    batch__demos_per_step=8,
    batch__microbatch_rows=2,
    # its programs take as long to trace as the others
    eval__every=0,
    hosts__timeout_s=TIMEOUT,
)


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@functools.cache
def imported() -> Template:
    """Starts processes of this file; they share the session's folder of compiled programs."""
    environment = {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # numpy starts no threads
        "OPENBLAS_NUM_THREADS": "1",
    }
    modules = ["tests.distributed.host_runs", "tests.tiny_runs", "experiments.train"]
    return Template(modules, os.environ | environment)


def start(
    workdir: pathlib.Path,
    count: int,
    method: str = "grpo",
    at: dict | None = None,
    differ: dict | None = None,
    **given,
) -> list[Fork]:
    """`count` processes of one run.

    at: {index: [what, step]} of ACTS, or [what, step, "save"]; differ: {index: {key: value}}."""
    workdir.mkdir(parents=True, exist_ok=True)
    address, started = f"127.0.0.1:{free_port()}", []
    for index in range(count):
        # without a fault no wait is too long, however busy the machine
        own = CONFIG | ({} if at else {"hosts__timeout_s": 600}) | given
        own |= (differ or {}).get(index, {})
        if count > 1:
            own |= dict(hosts__coordinator=address, hosts__count=count)
        plan = workdir / f"plan_{index}.json"
        plan.write_text(json.dumps([str(workdir / "run"), method, own, (at or {}).get(index)]))
        # the last two: as in conftest.py
        flags = (
            f"--xla_force_host_platform_device_count={DEVICES // count} "
            "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
        )
        environment = {"XLA_FLAGS": flags}
        environment |= {"BRIDGE_HOST_INDEX": str(index)} if count > 1 else {}
        started.append(imported().start(str(plan), workdir / f"out_{index}.txt", environment))
    return started


def finish(processes: list[Fork], seconds: float = 700) -> list[int]:
    """Their exit codes; whoever is not done in time is killed, and fails the test with -9."""
    until = time.monotonic() + seconds
    try:
        for process in processes:
            process.wait(max(0.1, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in processes:
            process.kill()
    return [process.wait() for process in processes]


def run(workdir: pathlib.Path, count: int, **given) -> list[int]:
    """start and finish."""
    return finish(start(workdir, count, **given))


class Chain:
    """Attempts at one run, each of which goes on from what the one before has left."""

    def __init__(self, workdir: pathlib.Path):
        self.workdir, self.made = workdir, {}

    def go(self, name: str, count: int, **given) -> None:
        """One attempt; given: of `start`."""
        self.made[name] = attempt(self.workdir, count, **given)


def attempt(workdir: pathlib.Path, count: int, **given) -> types.SimpleNamespace:
    """A run's exit codes, outputs, seconds from the first end of a process to the last, and the
    checkpoints after it.
    """
    processes, seen = start(workdir, count, **given), []
    until = time.monotonic() + HANG_S
    while len(seen) < count and time.monotonic() < until:
        seen += [time.monotonic()] * (sum(p.poll() is not None for p in processes) - len(seen))
        time.sleep(0.05)
    codes = finish(processes, 1)
    saves = workdir / "run" / "checkpoints"
    return types.SimpleNamespace(
        codes=codes,
        texts=[output(workdir, i) for i in range(count)],
        errors=[errors(workdir, i) for i in range(count)],
        seconds=seen[-1] - seen[0],
        steps=sorted(int(path.name[5:]) for path in saves.glob("step_??????")),
        unfinished=[path.name for path in saves.glob("*tmp*")],
    )


def output(workdir: pathlib.Path, index: int) -> str:
    """What a process said."""
    return (workdir / f"out_{index}.txt").read_text()


def errors(workdir: pathlib.Path, index: int) -> list[str]:
    """Its lines "error: ..."."""
    return [line for line in output(workdir, index).splitlines() if line.startswith("error: ")]


def interrupt_twice() -> None:
    """As Ctrl-C, and once more when the first one was acknowledged."""
    from bridge_jax.training import interrupt

    acknowledged, tell = threading.Event(), interrupt.print_to_stderr
    interrupt.print_to_stderr = lambda text: (tell(text), acknowledged.set())
    os.kill(os.getpid(), signal.SIGINT)
    acknowledged.wait(TIMEOUT / 2)
    os.kill(os.getpid(), signal.SIGINT)
    # the end comes from another thread
    time.sleep(TIMEOUT / 2)


ACTS = {
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "freeze": lambda: time.sleep(1000),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "interrupt twice": interrupt_twice,
}


def fill(workdir: str) -> None:
    """Whatever is written from here on finds the disk full."""
    full_disk.fill(pathlib.Path(workdir))


def keep_compiled_programs() -> None:
    """Every process writes to the compilation cache.

    jax lets process 0 alone write, and on CPUs a program of another process has another key.
    """
    from jax._src import compilation_cache, compiler

    def write(key, seconds, name, backend, executable, host_callbacks):
        compilation_cache.put_executable_and_time(key, name, executable, backend, int(seconds))

    assert callable(compiler._cache_write)
    compiler._cache_write = write


def await_saved(workdir: str, step: int) -> None:
    """Saving goes on in the background: returns when the checkpoint of `step` is whole, so that a
    kill always finds it.
    """
    whole, until = (
        pathlib.Path(workdir, "checkpoints", f"step_{step:06d}", "commit_success.txt"),
        time.monotonic() + TIMEOUT / 2,
    )
    while not whole.exists():
        if time.monotonic() > until:
            raise TimeoutError(f"{whole} is not there after {TIMEOUT / 2:.0f} s")
        time.sleep(0.05)


def main(plan: str) -> None:
    """One process."""
    workdir, method, given, act = json.loads(pathlib.Path(plan).read_text())
    from absl import app

    from bridge_jax.rundir import checkpoint, logbook
    from experiments import cli
    from experiments import train as command
    from tests import tiny_runs

    keep_compiled_programs()
    tiny_runs.arithmetic.compare, tiny_runs.arithmetic.after_mark = (
        tiny_runs.parity,
        tiny_runs.whole,
    )
    write, save = logbook.Logbook.write_rollouts, checkpoint.Checkpoints.save

    def do(step, where):
        if act and [step, where] == [*act[1:], "step"][:2]:
            if act[0] == "die" and where == "step":
                await_saved(workdir, step - 1)
            fill(workdir) if act[0] == "fill" else ACTS[act[0]]()

    def write_rollouts(self, step, rows, kind="step"):
        rows = list(rows)
        if kind == "step":
            do(step, "step")
        return write(self, step, rows, kind)

    def save_and_do(self, step, *given, **named):
        # the files are written in the background, and count once all processes have written theirs
        save(self, step, *given, **named)
        do(step, "save")

    logbook.Logbook.write_rollouts, checkpoint.Checkpoints.save = write_rollouts, save_and_do
    given = {
        key: tuple(value) if isinstance(value, list) else value for key, value in given.items()
    }
    stop_at = given.pop("stop_at", None)
    command.define_flags()
    config = pathlib.Path(plan).with_suffix(".py")
    config.write_text(
        f"from tests import tiny_runs\ndef get_config(method):\n    return tiny_runs.config(method, **{given!r})\n"
    )
    stop = [f"--stop_at={stop_at}"] * bool(stop_at)
    app.run(
        command.main,
        ["train", f"--config={config}:{method}", f"--workdir={workdir}", *stop],
        cli.parse_flags,
    )
