"""Mistakes on the command line are answered by one line with the way out, as a user types them."""

from __future__ import annotations

import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from absl import flags

from bridge_jax.filesystem import project
from experiments import cli, evaluate, export, grade, mistakes, pretrain, report, train
from experiments.sweep import command as sweep

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMANDS = (train, evaluate, export, grade, report, sweep)


@pytest.fixture
def parse(monkeypatch, capsys):
    """Parses a line of a command with flags of its own; returns what it says on stderr."""

    def parsed(command, line: str) -> str:
        argv = ["command", *shlex.split(line)]
        values = flags.FlagValues()
        monkeypatch.setattr(flags, "FLAGS", values)
        monkeypatch.setattr(sys, "argv", argv)
        for name in ("DEFINE", "DEFINE_bool", "DEFINE_integer", "DEFINE_float", "DEFINE_list"):
            bind(monkeypatch, flags, name, values)
        for name in ("DEFINE_string", "DEFINE_enum", "DEFINE_multi_string"):
            bind(monkeypatch, flags, name, values)
        bind(monkeypatch, flags, "mark_flags_as_required", values)
        if hasattr(command, "config_flags"):
            bind(monkeypatch, command.config_flags, "DEFINE_config_file", values)
        command.define_flags()
        with pytest.raises(SystemExit) as ended:
            cli.parse_flags(argv, command.EXAMPLE)
            sys.exit(0)
        reply = capsys.readouterr().err
        assert ended.value.code == (2 if reply else 0) and reply.count("\n") <= 1
        return reply

    return parsed


def bind(monkeypatch, module, name: str, values: flags.FlagValues) -> None:
    """Has a function of absl define flags in `values` instead of the process's."""
    function = getattr(module, name)
    function = getattr(function, "unbound", function)

    def bound(*given, **named):
        return function(*given, **{"flag_values": values} | named)

    bound.unbound = function
    monkeypatch.setattr(module, name, bound)


def test_a_missing_flag_is_shown_with_an_example(parse, monkeypatch):
    """Of every command that has required flags; the example itself is accepted."""
    monkeypatch.chdir(ROOT)
    for command in COMMANDS:
        reply = parse(command, "")
        assert re.match(r"error: --\w+( and --\w+)? missing; for example: ", reply), reply
        assert command.EXAMPLE in reply
        module, _, given = command.EXAMPLE.removeprefix("python -m ").partition(" ")
        assert module == command.__name__.removesuffix(".command")
        assert parse(command, given) == ""
    reply = parse(train, "--config=configs/quickstart.py:grpo")
    assert reply.startswith("error: --workdir missing; for example: python -m experiments.train ")


def test_the_method_stands_behind_the_config(parse, monkeypatch):
    """--config.method=NAME and --config.task=NAME are groups: the message says where names go."""
    monkeypatch.chdir(ROOT)
    reply = parse(train, "--config=configs/quickstart.py:sft --config.method=grpo --workdir=w")
    assert reply == (
        "error: --config.method=grpo: the method stands behind the config's name: "
        "--config=configs/quickstart.py:grpo\n"
    )
    reply = parse(train, "--config configs/quickstart.py --config.method grpo --workdir=w")
    assert "--config=configs/quickstart.py:grpo" in reply
    reply = parse(train, "--config=configs/ladder.py:sft --config.task=gsm8k --workdir=w")
    assert "--config=configs/any_task.py:bridge,gsm8k" in reply
    assert "--config=configs/qwen25_3b.py:bridge,gsm8k" in reply
    reply = parse(train, "--config=configs/llama32_3b.py:sft,math --config.task=custom --workdir=w")
    assert reply == (
        "error: --config.task=custom: the task stands behind the method: "
        "--config=configs/llama32_3b.py:sft,custom, and then --config.task.train=FILE; "
        "see docs/data.md\n"
    )
    reply = parse(train, "--config=configs/ladder.py:sft,gsm8k --workdir=w")
    assert "'sft,gsm8k'" in reply and "configs/any_task.py" in reply and "qwen25_3b" in reply
    reply = parse(train, "--config=configs/qwen25_3b.py:gsm8k --workdir=w")
    assert "gsm8k is a task; give METHOD,TASK, such as bridge,gsm8k" in reply
    reply = parse(train, "--config=configs/qwen25_3b.py:sft,gsm9k --workdir=w")
    assert "task 'gsm9k' does not exist. Did you mean 'gsm8k'?" in reply
    fine = "--config=configs/quickstart.py:sft --config.method.name=grpo --workdir=w"
    assert parse(train, fine) == ""


def test_a_config_file_that_does_not_exist_lists_those_that_do(parse, monkeypatch):
    """The nearest name first; parts of configs are not among them."""
    monkeypatch.chdir(ROOT)
    reply = parse(train, "--config=configs/laddr.py:grpo --workdir=w")
    assert reply.startswith("error: --config=configs/laddr.py: no such file; there are ")
    named = re.findall(r"configs/(\w+)\.py", reply.partition("there are")[2])
    assert named[0] == "ladder" and {"quickstart", "qwen25_3b"} < set(named)
    assert not {"base", "tasks"} & set(named)
    assert "a folder" in parse(train, "--config=configs --workdir=w")


def test_another_folder_than_the_projects(parse, monkeypatch, tmp_path):
    """A file that is there from the project's folder: the message names both folders."""
    monkeypatch.chdir(tmp_path)
    reply = parse(train, "--config=configs/ladder.py:grpo --workdir=w")
    assert f"current folder, {tmp_path}, " in reply and f"(cd {project.ROOT})" in reply
    reply = parse(train, "--config=configs/laddr.py:grpo --workdir=w")
    assert "no such file; there are configs/ladder.py" in reply


def test_from_another_folder_as_a_process(environment, tmp_path):
    """The shell's own line, from elsewhere: one line, no traceback."""
    done = subprocess.run(
        [sys.executable, *"-m experiments.train --config=configs/ladder.py --workdir=w".split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and f"(cd {ROOT})" in done.stderr


def test_the_keys_of_the_default_config_file(parse, monkeypatch):
    """A command whose --config has a default names the keys of that file."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(pretrain, "EXAMPLE", "", raising=False)
    line = shlex.join(pretrain.with_default_config(["command", "--config.stepz=3"])[1:])
    assert line.startswith("--config=configs/ladder.py:base ")
    reply = parse(pretrain, line)
    assert reply.startswith("error: unknown key config.stepz: did you mean 'steps'?")
    given = ["command", "--config=configs/from_scratch.py:sft"]
    assert pretrain.with_default_config(given) == given


def test_what_the_file_gives_without_the_command_line(parse, monkeypatch):
    """file_config() has the file's values, whatever was set."""
    monkeypatch.chdir(ROOT)
    assert parse(train, "--config=configs/ladder.py:sft --config.steps=7 --workdir=w") == ""
    assert flags.FLAGS.config.steps == 7 and cli.file_config().steps == 100
    assert cli.file_config().method.name == "sft"


def test_a_config_file_is_run_once(parse, monkeypatch, tmp_path):
    """A file may do more than to return a config."""
    file = tmp_path / "counting.py"
    file.write_text(
        "import pathlib\nfrom configs import base\n\ndef get_config(method):\n"
        f"    with open({str(tmp_path / 'count')!r}, 'a') as count:\n        count.write('x')\n"
        "    return base.get_config(method)\n"
    )
    assert parse(train, f"--config={file}:sft --config.steps=7 --workdir=w") == ""
    assert cli.file_config().steps == 100 and flags.FLAGS.config.steps == 7
    assert (tmp_path / "count").read_text() == "x"


def test_a_line_without_mistakes_of_this_kind():
    """No message."""
    given = ["train", "--config=configs/ladder.py:sft", "--config.method.bridge.lam=0.3"]
    assert mistakes.chosen_by_key(given) == mistakes.missing_config(given[:1]) == ""
    assert mistakes.config_of(given) == "configs/ladder.py:sft"
    assert mistakes.missing_flags("flag --steps=x: no int", "example") == ""


@pytest.mark.parametrize(
    "given, reply",
    [
        ("--config.steps=ten", "--config.steps=ten; wanted: a whole number, such as 10"),
        ("--config.steps=1.5", "--config.steps=1.5; wanted: a whole number, such as 10"),
        ("--config.optim.base.eps=x", "--config.optim.base.eps=x; wanted: a number, such as"),
        ("--config.rollout.task_stop=no!", "--config.rollout.task_stop=no!; wanted: True or False"),
        ("--steps=5", "there is no flag --steps; keys of the config are set by --config.steps=..."),
        ("--method.chord.mu=0.3", "set by --config.method.chord.mu=..."),
        ("--method.bridge.lam=0.3", "set by --config.method.bridge.lam=..."),
        (
            "--lr=3",
            "by --config.optim.base.learning_rate=... or --config.optim.lora.learning_rate=...",
        ),
        ("--nothing=3", "Unknown command line flag 'nothing'"),
        (
            "--config.optim.lr=3",
            "unknown key config.optim.lr: did you mean config.optim.base.learning_rate or config.",
        ),
        ("--config.lam=3", "unknown key config.lam: did you mean config.method.bridge.lam?"),
        ("--config.method.bridge.lamb=3", "unknown key config.method.bridge.lamb: did you mean 'l"),
    ],
)
def test_invalid_keys_and_values(parse, monkeypatch, given, reply):
    """One line that says what is wanted, or the key in full."""
    monkeypatch.chdir(ROOT)
    line = f"--config=configs/quickstart.py:bridge --workdir=w {given}"
    assert parse(train, line).startswith("error: ") and reply in parse(train, line)


def test_other_slips(parse, monkeypatch):
    """Keys before the file; dots for slashes."""
    monkeypatch.chdir(ROOT)
    reply = parse(train, "--config.steps=3 --config=configs/ladder.py --workdir=w")
    assert (
        reply
        == "error: --config=FILE must stand before the keys that change it, --config.KEY=VALUE\n"
    )
    reply = parse(train, "--config=configs.ladder:sft --workdir=w")
    assert "there are configs/ladder.py, " in reply


def test_a_task_where_a_method_is_wanted(parse, monkeypatch):
    """configs/any_task.py takes METHOD,TASK."""
    monkeypatch.chdir(ROOT)
    reply = parse(train, "--config=configs/any_task.py:gsm8k --workdir=w")
    assert "gsm8k is a task; give METHOD,TASK, such as bridge,gsm8k" in reply
