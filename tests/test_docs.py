"""Every page for people is read: its commands by their own flags, its links, the paths it names."""

from __future__ import annotations

import importlib
import pathlib
import re
import shlex
import sys

import pytest
from absl import flags

from bridge_jax import methods, tasks
from bridge_jax.training import settings
from configs import smollm2_arithmetic
from experiments import cli
from experiments.sweep import plan

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOP = ("README.md", "CONTRIBUTING.md")
PAGES = [ROOT / name for name in TOP if (ROOT / name).exists()]
PAGES += sorted((ROOT / "docs").glob("*.md"))
# words that a reader replaces, as they stand in a command
PLACEHOLDERS = (
    (r"config\.method\.METHOD\.KEY=VALUE", "config.method.bridge.lam=0.3"),
    (r"config\.task\.KEY=VALUE", "config.task.seed=1"),
    (r"METHOD,TASK\b", "bridge,arithmetic"),
    (r"\bbridge,NAME\b", "bridge,arithmetic"),
    (r"(\.py:)(?:METHOD|NAME)\b", r"\1bridge"),
)
# folders of the repository: a path in backticks that begins with one must exist
FOLDERS = ("bridge_jax", "configs", "docs", "experiments", "tests")
FILE = re.compile(r"[\w./*-]+\.(?:py|md|json|jsonl|png|html|toml|txt)|(?:\w+/)[\w./*-]+")
# what a run writes, and what a user has: not in the repository
ELSEWHERE = (
    "runs/",
    "models_local/",
    "rollouts/",
    "checkpoints/",
    "batches/",
    "tensorboard/",
    "train/",
)
README_WORDS = 900


def name_of(page: pathlib.Path) -> str:
    """The page's path, for the names of tests."""
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def code_lines(text: str) -> list[str]:
    """Lines of code, fenced or indented, those that go on joined; and code within the prose."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, flags=re.M | re.S)
    prose = re.sub(r"^ *```\w*\n.*?^ *```", "", text, flags=re.M | re.S)
    indented = "\n".join(re.findall(r"^ {4,}(.*)$", prose, flags=re.M))
    joined = re.sub(r"\\\n\s*", "", "\n".join((*blocks, indented)))
    return joined.splitlines() + re.findall(r"`([^`\n]+)`", prose)


def commands(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """(module, arguments) of every `python -m experiments.X ...` of a page."""
    found = []
    for line in code_lines(text):
        for piece in line.split("-m experiments.")[1:]:
            for pattern, example in PLACEHOLDERS:
                piece = re.sub(pattern, example, piece)
            # the command ends where the shell's own words begin, and where a quoted one closes
            piece = re.split(r"\s(?:&&?|\|+|>|2>|;|#|\.\.\.)(?=\s|$)", piece)[0]
            piece = piece.replace("[", "").replace("]", "")
            piece = piece[:-1] if piece.count('"') % 2 else piece
            module, *arguments = shlex.split(piece)
            found.append((f"experiments.{module}", tuple(arguments)))
    return found


def parse(module: str, arguments: tuple[str, ...], monkeypatch) -> None:
    """Read the arguments by the command's own flags, as a process of it would, up to its work."""
    command, before = importlib.import_module(module), set(flags.FLAGS)
    if hasattr(command, "__path__"):
        command = importlib.import_module(f"{module}.command")
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    monkeypatch.setattr(command, "run_command", lambda *_: None)
    try:
        # a command of one file has its flags in define_flags; that of a folder in start
        getattr(command, "start", getattr(command, "define_flags", None))()
        flags.FLAGS.unparse_flags()
        cli.parse_flags(sys.argv)
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            methods.load(flags.FLAGS.config.method.name)
        if "sweep" in flags.FLAGS:
            plan.load(flags.FLAGS.sweep)
    finally:
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)


@every_page
def test_commands(page, monkeypatch, capfd):
    """The module exists, its flags exist, the config file loads, its keys exist and fit."""
    monkeypatch.chdir(ROOT)
    wrong = []
    for module, arguments in dict.fromkeys(commands(page.read_text())):
        line = f"{module} {' '.join(arguments)}"
        try:
            parse(module, arguments, monkeypatch)
        except SystemExit:
            wrong.append(f"{line}\n    {capfd.readouterr().err.strip()}")
        except (ModuleNotFoundError, ValueError) as error:
            wrong.append(f"{line}\n    {error}")
    assert not wrong, "\n".join(wrong)


GOOD = "experiments.train --config=configs/quickstart.py:bridge --workdir=runs/one"


@pytest.mark.parametrize(
    "line, message",
    [
        (GOOD.replace("train", "trian"), "trian"),
        (GOOD.replace("quickstart", "quickstrat"), "quickstrat"),
        (GOOD.replace("bridge", "brigde"), "brigde"),
        (GOOD.replace("--workdir", "--wrokdir"), "wrokdir"),
        (GOOD.replace(" --workdir=runs/one", ""), "--workdir"),
        (f"{GOOD} --config.method.bridge.lamb=0.3", "lamb"),
        (f"{GOOD} --config.steps=many", "many"),
        ("experiments.sweep --sweep=configs/sweeps/lan.py --workdir=runs/lam", "lan"),
        ("experiments.quickstart --uot=runs/quickstart", "uot"),
    ],
)
def test_a_mistake_is_found(line, message, monkeypatch, capfd):
    """A typo in the module, file, method, flag, key or value; a flag that is missing."""
    monkeypatch.chdir(ROOT)
    ((module, arguments),) = commands(f"    python -m {line}\n")
    with pytest.raises((SystemExit, ModuleNotFoundError, ValueError)) as found:
        parse(module, arguments, monkeypatch)
    assert message in f"{found.value} {capfd.readouterr().err}"


def test_a_command_without_a_mistake_is_accepted(monkeypatch):
    """The line that the mistakes are made in, and a key of the config behind it."""
    monkeypatch.chdir(ROOT)
    for line in (GOOD, f"{GOOD} --config.method.bridge.lam=0.3"):
        ((module, arguments),) = commands(f"    python -m {line}\n")
        parse(module, arguments, monkeypatch)


def test_what_is_taken_for_a_command():
    """Indented, fenced, in a list, over several lines, inside prose and behind other words."""
    page = (
        "    python -m experiments.train --config=a.py:METHOD \\\n        --workdir=b   # why\n"
        "1. Item:\n\n        X=1 .venv/bin/python -m experiments.plan --fit > log 2>&1\n"
        "```\npython -m experiments.sweep --sweep=c [--dry_run] && wait\n```\n"
        'Prose `python -m experiments.methods` and `all "python -m experiments.grade --file=-"`.\n'
    )
    assert sorted(commands(page)) == [
        ("experiments.grade", ("--file=-",)),
        ("experiments.methods", ()),
        ("experiments.plan", ("--fit",)),
        ("experiments.sweep", ("--sweep=c", "--dry_run")),
        ("experiments.train", ("--config=a.py:bridge", "--workdir=b")),
    ]


@every_page
def test_links(page):
    """Every relative link leads to a file, and to a heading of it where it names one."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{name_of(page)} links to {target}"
        assert not heading or heading in anchors(there.read_text()), target


def test_every_page_is_found_from_the_readme():
    """By links from page to page."""
    found, new = set(), {ROOT / "README.md"}
    while new:
        page = new.pop()
        found.add(page)
        targets = re.findall(r"\]\(([^)\s#]+\.md)[^)]*\)", page.read_text())
        new |= {there for name in targets if (there := (page.parent / name).resolve()).exists()}
        new -= found
    assert set(PAGES) - found == set()


def anchors(text: str) -> set[str]:
    """What a link says for each heading of a page."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in headings}


@every_page
def test_paths_in_backticks(page):
    """A path that names a file of the repository exists; a pattern fits one."""
    missing = []
    for text in re.findall(r"`([^`\n]+)`", page.read_text()):
        if not FILE.fullmatch(text) or text.startswith(ELSEWHERE) or re.search("[A-Z]{3}", text):
            continue
        # a metric such as rl/J is no path; a bare file name is one of a run or of a data set
        if "/" not in text or not (text.startswith(FOLDERS) or "." in text):
            continue
        places = (ROOT, ROOT / "bridge_jax", page.parent)
        if not any(list(place.glob(text)) for place in places):
            missing.append(text)
    assert not missing, f"{name_of(page)}: {missing}"


def test_the_lines_of_bridge_in_the_readme_are_those_of_the_page():
    """Each of them, without its comment, is a line of bridge.step."""
    readme = (ROOT / "README.md").read_text()
    block = readme.partition("These are its directions")[2].split("\n\n")[1]
    lines = [line.partition("  #")[0].strip() for line in block.splitlines()]
    page = (ROOT / "bridge_jax" / "methods" / "bridge.py").read_text()
    assert len(lines) == 4 and all(f"    {line}\n" in page for line in lines)


def test_the_readme_is_short():
    """At most 900 words: what is more belongs into docs/."""
    assert len((ROOT / "README.md").read_text().split()) <= README_WORDS


def test_rows_of_the_page_on_data_are_read(tmp_path):
    """Its example of a JSONL file, as training problems and as held-out ones, by the task
    custom.
    """
    page = (ROOT / "docs" / "data.md").read_text()
    rows = re.findall(r"^    (\{.*\})$", page, flags=re.M)
    file = tmp_path / "problems.jsonl"
    file.write_text("\n".join(rows))
    config = smollm2_arithmetic.get_config("sft,custom")
    config.task.update(dict(train=str(file), test=str(file)))
    task = tasks.load("custom").make(settings.read(config, devices=1).task)
    assert len(task.train) == len(task.splits["test"]) == len(rows) == 2
    assert [problem.answer for problem in task.demos] == ["5"]
