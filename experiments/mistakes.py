"""Messages for mistakes on the command line: what was given, what is allowed, the way out.

cli.py calls these once the flags could not be parsed. Left out: invalid values of known keys, which
bridge_jax/training/settings.py checks.
"""

from __future__ import annotations

import re
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from bridge_jax.config import renamed, schema
from bridge_jax.filesystem import project


def missing_flags(text: str, example: str) -> str:
    """The message for required flags that are not given; "" where absl's error is another one."""
    names = re.findall(r"Flag --(\w+) must have a value other than None", text)
    if not names:
        return ""
    needed = " and ".join(f"--{name}" for name in dict.fromkeys(names))
    return f"{needed} missing" + (f"; for example: {example}" if example else "; see --help")


def config_of(argv: list[str]) -> str:
    """The value of --config on the command line, without a home directory filled in; or ""."""
    found = re.search(r"(?:^|\n)--?config(?:=|\n)(.+)", "\n".join(argv[1:]))
    return found[1] if found else ""


def chosen_by_key(argv: list[str]) -> str:
    """A message for --config.method=NAME or --config.task=NAME, which are groups; else ""."""
    found = re.search(r"(?:^|\n)--?config\.(method|task)(?:=|\n)([\w-]+)", "\n".join(argv[1:]))
    if not found:
        return ""
    group, name = found.groups()
    file = config_of(argv).partition(":")[0] or "configs/NAME.py"
    if group == "method":
        return (
            f"--config.method={name}: the method stands behind the config's name: "
            f"--config={file}:{name}"
        )
    keys = ", and then --config.task.train=FILE" if name == "custom" else ""
    if takes_task(Path(file)):
        method = config_of(argv).partition(":")[2].partition(",")[0] or "bridge"
        return (
            f"--config.task={name}: the task stands behind the method: "
            f"--config={file}:{method},{name}{keys}; see docs/data.md"
        )
    return (
        f"--config.task={name}: the argument of a config file chooses its task, for example "
        f"--config=configs/any_task.py:bridge,{name}, or with a model's tokenizer "
        f"--config=configs/qwen25_3b.py:bridge,{name}{keys}; see docs/data.md"
    )


def takes_task(file: Path) -> bool:
    """Whether a config file says that its argument may be METHOD,TASK."""
    return file.is_file() and "METHOD,TASK" in file.read_text(encoding="utf-8")


def missing_config(argv: list[str]) -> str:
    """A message for a config file that does not exist, with those that do; else ""."""
    path = schema.expand_user(config_of(argv).partition(":")[0])
    if not path or Path(path).is_file():
        return ""
    if message := project.wrong_folder(path):
        return f"--config: {message}"
    names = config_files(Path("configs") if Path("configs").is_dir() else project.ROOT / "configs")
    nearest = schema.nearest_first(path, names)
    kind = "a folder" if Path(path).is_dir() else "no such file"
    return f"--config={path}: {kind}; there are {', '.join(nearest)}, with :METHOD behind"


def config_files(folder: Path) -> list[str]:
    """The files of a folder that define get_config, without the defaults of all."""
    return [
        f"{folder.name}/{file.name}"
        for file in sorted(folder.glob("*.py"))
        if "def get_config(" in file.read_text(encoding="utf-8") and file.stem != "base"
    ]


# of absl's and Python's parsers -> what is wanted
WANTED = {
    "invalid literal for int()": "a whole number, such as 10",
    "could not convert string to float": "a number, such as 0.5 or 1e-4",
    "Non-boolean argument to boolean flag": "True or False",
}


def wrong_type(text: str) -> str:
    """The message for a value of the wrong type; "" where absl's error is another one."""
    flag, _, why = text.removeprefix("flag ").partition(": ")
    wanted = [wanted for part, wanted in WANTED.items() if part in why]
    return f"{flag}; wanted: {wanted[0]}" if wanted else ""


def config_key_as_flag(argv: list[str], name: str) -> str:
    """A message for a key of the config that is given without --config before it; else ""."""
    if "config" not in flags.FLAGS or not config_of(argv):
        return ""
    config = flags.FLAGS["config"].parser.parse(schema.expand_user(config_of(argv)))
    if not isinstance(config, ConfigDict):
        return ""
    ways = " or ".join(f"--config.{key}=..." for key in keys_named(config, name))
    return f"there is no flag --{name}; keys of the config are set by {ways}" if ways else ""


def keys_named(config: ConfigDict, name: str) -> list[str]:
    """Keys that end with the name; lr is the learning rate.

    Of those of methods the chosen method's, unless the name says "method".
    """
    name = re.sub(r"(^|\.)lr$", r"\1learning_rate", name)
    if name in schema.flatten(config):
        return [name]
    keys = [key for key in schema.flatten(config) if f".{key}".endswith(f".{name}")]
    read = ("method.name", "method.train", f"method.{config.method.name}.")
    other = lambda key: key.startswith("method.") and not key.startswith(read)
    return [key for key in keys if name.startswith("method.") or not other(key)]


def without_traceback(text: str) -> str:
    """An error of a config file on one line where the file refused its argument, else as it is.

    ml_collections puts the traceback into the message; a mistake in the file's code keeps it.
    """
    last = text.strip().splitlines()[-1]
    if "Traceback (most recent call last)" not in text or not last.startswith("ValueError: "):
        return text
    flag = text.split(": Error whilst parsing config file", 1)[0]
    return f"{flag}: {last.removeprefix('ValueError: ')}"


def unknown_key(argv: list[str]) -> str:
    """A message for the first --config.a.b that the config file does not have; else ""."""
    line = " ".join(argv[1:])
    config = flags.FLAGS["config"].parser.parse(schema.expand_user(config_of(argv)))
    for path in re.findall(r"(?:^| )--?(?:no)?(config\.[\w.]+)", line):
        group = config
        for key in path.split(".")[1:]:
            if not isinstance(group, ConfigDict) or key not in group:
                allowed = group if isinstance(group, ConfigDict) else ()
                if path.startswith(
                    ("config.method.", *(f"config.{name}." for name in renamed.GROUPS))
                ) and (hint := renamed.hint(config.method.name, key)):
                    return f"unknown key {path}: {hint}"
                if named := keys_named(config, path.split(".")[-1]):
                    ways = " or ".join(f"config.{name}" for name in named)
                    return f"unknown key {path}: did you mean {ways}?"
                return f"unknown key {path}: {schema.did_you_mean(key, allowed)}"
            group = group[key]
    return ""
