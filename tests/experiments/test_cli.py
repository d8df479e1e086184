"""What commands share: ~ in every flag and key that is a path, messages on one line, --version."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import typing

import pytest
from absl import flags
from ml_collections import config_flags

import bridge_jax
from bridge_jax import tasks
from bridge_jax.config import schema
from bridge_jax.filesystem import hf_folder
from bridge_jax.training import settings
from experiments import __main__ as overview
from experiments import cli, mistakes
from tests import errors, tiny_runs

ROOT = pathlib.Path(__file__).resolve().parents[2]
# flags that hold a text that is no path; a new one is a path, or belongs here
TEXTS = {"against", "topology", "metric", "slurm", "dtype", "stop"}
# of experiments.traces
TEXTS |= {"from", "subset", "split", "revision", "schema", "columns", "match", "decontaminate"}
TEXTS |= {"grader"}
# of a benchmark of one's own
TEXTS |= {"columns", "reward", "pattern", "instruction"}
# of experiments.sample
TEXTS |= {"prompt", "answer", "template", "task"}
# of experiments.reproduce, whose model is a name
TEXTS |= {"train_flags", "evaluate_flags", "reproduce.command model"}
# imported by some commands, so that a test of all must know it is there
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT / "experiments").with_suffix("").parts)
    for path in (ROOT / "experiments").rglob("*.py")
    if "def define_flags()" in path.read_text(encoding="utf-8")
)


def python(code: str, *arguments: str, home: pathlib.Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=os.environ | {"HOME": str(home), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_every_flag_that_is_a_path_is_defined_as_one(tmp_path):
    """Of every command: a string flag is a path, a choice, a list, or one of TEXTS."""
    code = (
        "import importlib, json, sys\n"
        "from absl import flags\n"
        "found = {}\n"
        "for name in sys.argv[1:]:\n"
        "    module, before = importlib.import_module('experiments.' + name), set(flags.FLAGS)\n"
        "    module.define_flags()\n"
        "    for flag in set(flags.FLAGS) - before:\n"
        "        found[f'{name} {flag}'] = type(flags.FLAGS[flag].parser).__name__\n"
        "        delattr(flags.FLAGS, flag)\n"
        "print(json.dumps(found))"
    )
    done = python(code, *COMMANDS, home=tmp_path)
    assert done.returncode == 0, done.stderr
    parsers = json.loads(done.stdout.splitlines()[-1])
    assert {name.split()[0] for name in parsers} == set(COMMANDS)
    plain = {name for name, kind in parsers.items() if kind == "ArgumentParser"}
    assert {name for name in plain if not TEXTS & {name, name.split()[1]}} == set()
    paths = {name for name, kind in parsers.items() if kind == "PathParser"}
    assert {"train workdir", "grade file", "report runs", "evaluate model", "export out"} <= paths


@pytest.mark.slow
def test_home_in_every_kind_of_flag(tmp_path):
    """A path, several, one of the config, and the config file itself."""
    (tmp_path / "tiny.py").write_text(
        "from tests import tiny_runs\ndef get_config(method):\n    return tiny_runs.config(method)\n"
    )
    code = (
        "import sys\nfrom absl import flags\nfrom experiments import cli, train\n"
        "train.define_flags()\n"
        "cli.define_path('runs', None, '', several=True)\n"
        "cli.parse_flags(sys.argv)\n"
        "print(flags.FLAGS.workdir, flags.FLAGS.runs, flags.FLAGS.config.method.name)"
    )
    given = ["--config=~/tiny.py:grpo", "--workdir=~/run", "--runs=~/a/*,b,~/c"]
    done = python(code, *given, home=tmp_path)
    expected = f"{tmp_path}/run {tmp_path}/a/*,b,{tmp_path}/c grpo\n"
    assert done.stdout == expected, done.stderr
    given[1] = "--workdir=~nobody-of-that-name/run"
    done = python(code, *given, home=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--workdir=~nobody-of-that-name/run" in done.stderr and "./~nobody" in done.stderr


def test_home_in_every_key_that_is_a_path(tmp_path, monkeypatch):
    """model.path, data.tokenizer, task.data_dir and task.traces, wherever the config is read."""
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tiny_runs.config("sft", model__path="~/m", data__tokenizer="~/t")
    config.task = {"name": "math", "data_dir": "~/d", "traces": "~/traces.jsonl", "prompt": "plain"}
    s = settings.read(config, 1)
    found = [s.model.path, s.data.tokenizer, s.task.data_dir, s.task.traces]
    assert found == [f"{tmp_path}/{name}" for name in ("m", "t", "d", "traces.jsonl")]
    assert settings.read(tiny_runs.config("sft"), 1).data.tokenizer == "chars"
    config.model.path = "~nobody-of-that-name/m"
    with errors.raises(
        ValueError, "config.model.path='~nobody-of-that-name/m'", "./~nobody-of-that-name/m"
    ):
        settings.read(config, 1)


def test_keys_that_are_paths_have_the_type_of_paths():
    """By their names: what a new group or task calls a folder, a file or a path is one."""
    groups = [
        settings.Model,
        settings.Data,
        settings.Rollout,
        settings.Eval,
        settings.Checkpoint,
        settings.Log,
    ]
    groups += [tasks.load(name).Config for name in tasks.names()]
    words = ("dir", "path", "file", "folder", "traces", "tokenizer")
    for group in groups:
        hints = typing.get_type_hints(group)
        for field in dataclasses.fields(group):
            if any(word in field.name.split("_") for word in words):
                assert hints[field.name] is schema.LocalPath, (group, field.name)


def test_a_sweep_over_models_at_home(tmp_path, monkeypatch):
    """Its runs are told apart by the weights that they begin from."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    assert (
        hf_folder.weights_hash("~/model") == hf_folder.weights_hash(str(tmp_path / "model")) != ""
    )


def test_expand_config_leaves_the_rest_alone(monkeypatch):
    """Only the path of --config is expanded."""
    monkeypatch.setenv("HOME", "/home/me")
    given = ["train", "--config=~/a.py:sft", "-config=~/b.py", "--config.model.path=~/m", "x~/y"]
    assert cli.expand_config(given) == [
        "train",
        "--config=/home/me/a.py:sft",
        "-config=/home/me/b.py",
        *given[3:],
    ]


def test_a_config_file_that_refuses_its_argument_shows_no_traceback(tmp_path):
    """A ValueError of the file is one line; every other message stays as it is."""
    file = tmp_path / "f.py"
    file.write_text("def get_config():\n    raise ValueError('no task of that name')\n")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    with pytest.raises(flags.Error, match="Traceback") as error:
        values(["program", f"--config={file}"])
    text = mistakes.without_traceback(str(error.value))
    assert text == f"flag --config={file}: no task of that name"
    for other in ("flag --steps=abc: no int", "Traceback (most recent call last)\nKeyError: 3"):
        assert mistakes.without_traceback(other) == other


def command(folder: pathlib.Path, *words: str, **given) -> subprocess.CompletedProcess:
    """`python -m WORDS` in another folder than the repository's."""
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        **given,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize("module", ["experiments.train", "experiments.bench"])
def test_version(module, tmp_path):
    """It takes one line, also of commands with required flags; --noversion asks for nothing."""
    done = command(tmp_path, module, "--version", capture_output=True)
    expected = f"bridge_jax {bridge_jax.__version__}, jax {importlib.metadata.version('jax')}\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")
    done = command(tmp_path, module, "--noversion", capture_output=True)
    assert done.returncode == 2 and expected not in done.stdout


def test_a_version_that_cannot_be_printed(tmp_path):
    """A full disk has its exit code here, too."""
    with open("/dev/full", "w") as full:
        done = command(
            tmp_path, "experiments.train", "--version", stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == cli.DISK_FULL and done.stderr.count("\n") == 1


def test_help_shows_every_flag_of_the_command(tmp_path):
    """Also those that cli.py defines for it."""
    done = command(tmp_path, "experiments.train", "--help", capture_output=True)
    for flag in ("--config", "--workdir", "--stop_at", "--[no]force_config", "--[no]version"):
        assert f"\n  {flag}: " in done.stdout


def test_the_overview_has_every_command():
    """`python -m experiments` names each with what it does, on one line."""
    lines = overview.overview().splitlines()
    names = [line.split()[2].removeprefix("experiments.") for line in lines]
    inner = {"bench.peers", "study.gradient_noise"}
    assert {name.removesuffix(".command") for name in COMMANDS} - inner <= set(names)
    assert "quickstart" in names and "__main__" not in names
    assert all(len(line.split()) > 3 and "`" not in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "sweep", "quickstart"])
def test_help_shows_the_flags_that_are_paths(name, tmp_path):
    """Of a command that is a file, and of those that are packages."""
    code = (
        "import runpy, sys; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
    )
    done = python(code, f"experiments.{name}", "--help", home=tmp_path)
    flag = "--out:" if name == "quickstart" else "--workdir:"
    assert flag in done.stdout and f"python -m experiments.{name}" in done.stdout, done.stderr
