"""Runs of several processes over loopback, for tests/distributed/test_host_runs.py and
test_host_faults.py: `python -m tests.distributed.host_runs PLAN.json` is one of them.

Each is a whole `experiments.train` of the tiny config, graded by parity, with its own share of the
simulated devices; a plan may have it killed, signalled or frozen while the rollouts of a step are
written.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

from tests.filesystem import full_disk

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEVICES = 4  # of all processes together
TIMEOUT = 20  # seconds, hosts.timeout_s; half of it without a heartbeat, and a host is gone
CONFIG = dict(
    batch__prompts_per_step=8,
    batch__samples_per_prompt=2,
    batch__demos_per_step=8,
    batch__microbatch_rows=2,
    hosts__timeout_s=TIMEOUT,
)


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(
    workdir: pathlib.Path,
    count: int,
    cache,
    method: str = "grpo",
    at: dict | None = None,
    differ: dict | None = None,
    **given,
) -> list[subprocess.Popen]:
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
        flags = (
            f"--xla_force_host_platform_device_count={DEVICES // count} "
            "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
        )  # the last two: as in conftest.py
        environment = os.environ | {
            "XLA_FLAGS": flags,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        environment |= {"BRIDGE_HOST_INDEX": str(index)} if count > 1 else {}
        with open(workdir / f"out_{index}.txt", "w") as out:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.distributed.host_runs", str(plan)],
                    cwd=ROOT,
                    env=environment,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            )
    return started


def finish(processes: list[subprocess.Popen], seconds: float = 700) -> list[int]:
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


def run(workdir: pathlib.Path, count: int, cache, **given) -> list[int]:
    """start and finish."""
    return finish(start(workdir, count, cache, **given))


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


if __name__ == "__main__":
    main(sys.argv[1])
