"""The recipes of docs/launch.md, read out of it: flags, devices, expert traces, and scripts around
them.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import stat
import subprocess
import time
import types

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from bridge_jax.distributed import rendezvous, sharding
from bridge_jax.models import params
from bridge_jax.training import build, settings
from tests import errors
from tests.distributed.host_runs import ROOT

DEVICES = {  # of all processes together, by the heading above a recipe, in the order of its commands
    "By hand": (16, 4),
    "One GPU": (1, 1, 1),
    "Eight GPUs": (8,),
    "Slurm": (16,),
    "A TPU pod slice": (64,),
    "GKE through xpk": (64,),
}
SIZES = {
    "Slurm": r"--nodes=(\d+)[^$]*--ntasks-per-node=(\d+)",
    "A TPU pod slice": r"v5litepod-(\d+)",
    "GKE through xpk": r"--tpu-type=v5litepod-(\d+) --num-slices=(\d+)",
}  # whose product must be that number


@dataclasses.dataclass(frozen=True)
class Device:
    """In place of one."""

    id: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


def sections() -> dict[str, str]:
    """Code of each section by its heading, lines that go on joined."""
    page = (ROOT / "docs" / "launch.md").read_text()
    found = dict(part.partition("\n")[::2] for part in re.split(r"^## ", page, flags=re.M)[1:])
    code = lambda text: "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    return {heading: re.sub(r"\\\n\s*", "", code(text)) for heading, text in found.items()}


def commands() -> list[tuple[str, int, str, list[str]]]:
    """(heading, devices, what stands before the flags, flags) of every training and plan there
    is.
    """
    found = []
    for heading, code in sections().items():
        matches = re.findall(r"(.*?-m experiments\.(?:train|plan))((?: +--[^\s\"]+)+)", code)
        assert len(matches) == len(DEVICES.get(heading, ())), (
            f"{heading}: {len(matches)} commands; set their DEVICES"
        )
        found += [
            (heading, devices, before, options.split())
            for devices, (before, options) in zip(DEVICES.get(heading, ()), matches)
        ]
    return found


@pytest.mark.parametrize(
    "heading, devices, before, options",
    commands(),
    ids=[f"{one[0]}, {one[1]}" for one in commands()],
)
def test_recipe(heading, devices, before, options):
    """As experiments.train would read it there, up to the devices' layout; a method that wants
    demos is given some.
    """
    given, line = (
        flags.FlagValues(),
        ["command", *(re.sub(r"^--config=", f"--config={ROOT}/", option) for option in options)],
    )
    config_flags.DEFINE_config_file(
        "config", None, "", flag_values=given, lock_config=True, sys_argv=line
    )
    for name in ("workdir", "topology"):
        flags.DEFINE_string(name, "", "", flag_values=given)
    given(line)
    s = settings.read(given.config, devices)
    here = [Device(i) for i in range(devices)]
    mesh = sharding.make_mesh(s.mesh, here)
    assert mesh.size == devices
    if s.model.arch:
        cfg = params.read_config(s.model.arch)
        decode = sharding.make_decode_mesh(build.decode_mesh_config(s, cfg, here), here)
        build.check_mesh(s, cfg, mesh, decode)
    if devices <= len(jax.devices()) and s.model.arch:
        build.make_setup(given.config, jax.devices()[:devices])
    if "experiments.train" in before and s.method_name == "bridge" and hasattr(s.task, "traces"):
        assert s.task.traces, "the hub's rows of this task have no solutions"
    read = rendezvous.read(
        s.hosts, dict(re.findall(r"\b(BRIDGE_\w+)=(\S+)", before.replace("$i", "1")))
    )
    assert bool(read.coordinator) == ("GPU" not in heading)


@pytest.mark.parametrize("heading", SIZES)
def test_sizes(heading):
    """The sizes in a recipe's text multiply to the number of devices that it is tested for."""
    sizes = re.search(SIZES[heading], sections()[heading])
    product = 1
    for size in sizes.groups():
        product *= int(size)
    assert (product,) == DEVICES[heading]


@pytest.mark.parametrize("late, code", [(True, 0), (False, 0), (False, 4)])
def test_slurm_script(tmp_path, late, code):
    """With stand-ins for Slurm: towards the limit the tasks get SIGTERM, and once they have saved
    the job is queued again.
    """
    script = sections()["Slurm"].replace("$SLURM_JOB_ID", "77")
    calls = tmp_path / "calls"
    stand_ins = {
        "srun": f'trap "echo saved >> {calls}; exit 0" TERM; echo $$ > {tmp_path}/pid\n'
        + ("for i in $(seq 300); do sleep 0.1; done" if late else "sleep 0.3")
        + f"\nexit {code}",
        "scancel": f"echo scancel $* >> {calls}; kill -TERM $(cat {tmp_path}/pid)",
        "scontrol": f"echo scontrol $* >> {calls}",
    }
    for name, text in stand_ins.items():
        (tmp_path / name).write_text("#!/bin/bash\n" + text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    job = subprocess.Popen(
        ["bash", "-c", script], env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    )
    if late:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
    assert job.wait(240) == code
    expected = "scancel --signal=TERM 77\nsaved\nscontrol requeue 77\n" if late else ""
    assert (calls.read_text() if calls.exists() else "") == expected


def test_xpk_hands_the_signal_to_python(tmp_path):
    """Around the command of the recipe what xpk puts around it: a shell in the background, to which
    SIGTERM is sent.
    """
    command = re.search(r'--command="(.*?)"', sections()["GKE through xpk"])[1]
    assert command.startswith("pip install -r requirements.txt 'jax[tpu]' && ")
    (tmp_path / "pip").write_text("#!/bin/bash\n")
    (tmp_path / "python").write_text(
        f'#!/bin/bash\ntrap "echo saved > {tmp_path}/said; exit 0" TERM\necho up > {tmp_path}/said\n'
        "for i in $(seq 300); do sleep 0.1; done"
    )
    for name in ("pip", "python"):
        (tmp_path / name).chmod(stat.S_IRWXU)
    script = f"({command}) & PID=$!; trap 'kill -TERM $PID' TERM; while kill -0 $PID 2>/dev/null; do sleep 0.1; done; wait $PID"
    job = subprocess.Popen(
        ["bash", "-c", script], env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    )
    while not (tmp_path / "said").exists():
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(240) == 0 and (tmp_path / "said").read_text() == "saved\n"


def test_no_traces_no_start(monkeypatch):
    """What a recipe without them would come to: the error names the key, and no advice that does
    not help.
    """
    from bridge_jax import tasks
    from configs import qwen25_3b

    config = qwen25_3b.get_config("bridge")
    config.mesh.decode_tensor = 1
    monkeypatch.setattr(build, "read_model", lambda model: (params.read_config(model.arch), {}))
    run = build.make_setup(config, jax.devices()[:1])
    monkeypatch.setattr(build, "make_setup", lambda *_: run)
    nothing = types.SimpleNamespace(train=(), demos=(), splits={}, messages=None, demo_counts={})
    monkeypatch.setattr(tasks, "load", lambda name: types.SimpleNamespace(make=lambda cfg: nothing))
    monkeypatch.setattr(tasks, "check_rows", lambda *_, **__: None)
    monkeypatch.setattr(build, "make_tokenizer", lambda *_: None)
    monkeypatch.setattr(build.tokenizers, "check_vocabulary", lambda *_: None)
    with errors.raises(ValueError, "'bridge'", "demonstrations", "'limr'", "task.traces=FILE"):
        build.build(config)
