"""experiments.processes: shares of cores and GPUs; one Ctrl-C of a terminal is one signal for every
child.
"""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from experiments import processes

ROOT = pathlib.Path(__file__).resolve().parents[2]
# notes every signal, and ends; where the folder has a file "slow", at a SIGINT alone
CHILD = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def count(number, frame):
    with open(folder / "signals", "a") as file:
        file.write(signal.Signals(number).name + " ")
    if number == signal.SIGINT or not (folder / "slow").exists():
        # what was sent besides is delivered before it ends
        signal.signal(number, signal.SIG_IGN)
        time.sleep(0.2)
        os._exit(0)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, count)
os.write(int(sys.argv[2]), b"x")
# not for long where nobody ends it
time.sleep(60)
"""
PARENT = """
import os, sys
from experiments import processes
from experiments.cli import interrupt_by_signals
folder, reads, writes = sys.argv[1], *os.pipe()
os.set_inheritable(writes, True)
interrupt_by_signals()
popen = processes.subprocess.Popen
processes.subprocess.Popen = lambda *args, **more: popen(*args, pass_fds=[writes], **more)
child = processes.start([sys.executable, "-c", {child!r}, folder, str(writes)], folder + "/log")
os.read(reads, 1)
try:
    print("ready", flush=True)
    child.wait()
finally:
    processes.end([child])
"""


@pytest.mark.parametrize("slow", [False, True])
def test_a_ctrl_c_is_one_signal(tmp_path, slow):
    """Sent to the whole group, as a terminal does; a second one goes to a child that is still
    saving.
    """
    noted = tmp_path / "signals"
    if slow:
        (tmp_path / "slow").touch()
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(child=CHILD), str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n", (tmp_path / "log").read_text()
    os.killpg(process.pid, signal.SIGINT)
    if slow:
        while not noted.exists() or "TERM" not in noted.read_text():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=240)
    sent = ["SIGTERM", "SIGINT"] if slow else ["SIGTERM"]
    assert noted.read_text().split() == sent


@pytest.mark.parametrize(
    "environment, found",
    [
        ({}, ["0", "1", "10"]),
        ({"CUDA_VISIBLE_DEVICES": "2,GPU-5a"}, ["2", "GPU-5a"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"HIP_VISIBLE_DEVICES": "3"}, ["3"]),
        ({"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "2"}, []),
    ],
)
def test_gpus_are_found_without_jax(tmp_path, environment, found):
    """By a variable, or by their device files; none where the run is on CPUs."""
    for name in ("nvidia10", "nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert processes.available_gpus(environment, str(tmp_path)) == found


def shares_on(monkeypatch, cores: int, gpus: int, jobs: int):
    """processes.shares on a machine with so many cores and GPUs."""
    monkeypatch.setattr(processes, "available_cores", lambda: list(range(cores)))
    monkeypatch.setattr(processes, "available_gpus", lambda: [str(i) for i in range(gpus)])
    return processes.shares(jobs)


def test_each_job_has_gpus_of_its_own(monkeypatch):
    """A single job has the whole machine; more jobs than GPUs are refused."""
    assert shares_on(monkeypatch, 4, 4, 1) == [processes.WHOLE]
    assert shares_on(monkeypatch, 4, 4, 2) == [((0, 1), ("0", "1")), ((2, 3), ("2", "3"))]
    assert shares_on(monkeypatch, 2, 0, 3) == [((0,), ()), ((1,), ()), ((0,), ())]
    with pytest.raises(ValueError, match="--jobs=3.* 1 to 2"):
        shares_on(monkeypatch, 4, 2, 3)


def test_a_job_sees_its_gpus_alone(tmp_path, monkeypatch):
    """Under both variables, and its cores; without a share the environment is as it was."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    show = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], len(os.sched_getaffinity(0)))"
    core = processes.available_cores()[0]
    for share, seen in ((processes.Share((core,), ("6",)), "6 1"), (processes.WHOLE, "5,6")):
        with processes.start([sys.executable, "-c", show], tmp_path / "log", share) as child:
            assert child.wait(120) == 0
        assert (tmp_path / "log").read_text().startswith(seen)
