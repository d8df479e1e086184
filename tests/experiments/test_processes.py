"""experiments.processes: one Ctrl-C of a terminal is one signal for every process that a command has started."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import pytest

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
    """Sent to the whole group, as a terminal does; a second one goes to a child that is still saving."""
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
