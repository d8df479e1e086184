"""The config group of a task, with the defaults of its file; not an experiment itself.

`config.task = tasks.group("limr", data_dir="...")` in a config file selects a task. The command
line cannot change the task of a config, since tasks have different keys, except with
configs/any_task.py.
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


def names() -> tuple[str, ...]:
    """All tasks there are."""
    return tuple(tasks.names())
