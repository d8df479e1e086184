"""The settings of a task, with the defaults that stand in its file; not an experiment itself.

`config.task = tasks.group("limr", data_dir="...")` in a config file chooses a task. From the
command line a task cannot be changed for another, which has other keys, but with
configs/any_task.py.
"""

from ml_collections import ConfigDict

from bridge_jax import tasks
from bridge_jax.config import schema


def group(name: str, **given) -> ConfigDict:
    """config.task for the task of bridge_jax/tasks/<name>.py: its settings, but for those given."""
    defaults = tasks.defaults(name)
    for key in given:
        if key not in defaults:
            raise ValueError(f"unknown key task.{key}: {schema.did_you_mean(key, defaults)}")
    return ConfigDict({"name": name} | defaults | given)
