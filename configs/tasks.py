"""The config group of a task, with the defaults of its file; not an experiment itself.

`config.task = tasks.group("limr", data_dir="...")` in a config file selects a task. Tasks have
different keys, so that the command line cannot change the task of a config by a key: config files
that suit any task take METHOD,TASK as their argument (`choose`).
"""

from ml_collections import ConfigDict

from bridge_jax import tasks
from bridge_jax.config import schema


def group(name: str, **given) -> ConfigDict:
    """config.task for bridge_jax/tasks/<name>.py: its defaults, with the given settings changed."""
    defaults = tasks.defaults(name)
    for key in given:
        if key not in defaults:
            raise ValueError(f"unknown key task.{key}: {schema.did_you_mean(key, defaults)}")
    return ConfigDict({"name": name} | defaults | given)


def choose(argument: str) -> tuple[str, str]:
    """METHOD or METHOD,TASK as (method, task), "" for what is left out.

    ValueError where the argument is the name of a task alone.
    """
    method, _, task = argument.partition(",")
    if method in names():
        raise ValueError(f"{method} is a task; give METHOD,TASK, such as bridge,{method}")
    return method, task


def refuse(argument: str) -> None:
    """ValueError for METHOD,TASK, by a config that has a task of its own."""
    if "," in argument:
        raise ValueError(
            f"{argument!r}: this config has a task of its own; those for any task are "
            "configs/any_task.py, and with a tokenizer configs/qwen25_3b.py and the like "
            "(configs/quickstart.py: texts of digits and +-=;# alone)"
        )


def names() -> tuple[str, ...]:
    """All tasks there are."""
    return tuple(tasks.names())
