"""The base config lists what the dataclasses of every group, task and method have."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
from ml_collections import ConfigDict

from bridge_jax import methods, optim, tasks
from bridge_jax.config import schema
from bridge_jax.distributed import sharding
from bridge_jax.training import settings
from configs import any_task, base, ladder, quickstart
from configs import tasks as task_groups
from tests import errors


def defaults(cls: type) -> dict:
    """Defaults of a dataclass as JSON would hold them."""
    return schema.to_json(dataclasses.asdict(cls()))


GROUPS = {
    "model": settings.Model,
    "data": settings.Data,
    "rollout": settings.Rollout,
    "batch": settings.Batch,
    "mesh": sharding.MeshConfig,
    "eval": settings.Eval,
    "checkpoint": settings.Checkpoint,
    "log": settings.Log,
    "optim.base": optim.Recipe,
    "optim.lora": optim.Recipe,
    "task": tasks.load("arithmetic").Config,
}


@pytest.mark.parametrize("group", GROUPS)
def test_base_lists_every_field_with_its_default(group):
    """Each group of the base config has its dataclass's fields and defaults, and no other."""
    listed = schema.to_json(base.get_config())
    for key in group.split("."):
        listed = listed[key]
    listed.pop("name", None)
    assert listed == defaults(GROUPS[group])


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_has_its_group(name):
    """Its name and its settings with their defaults, but for what is given; read back as they
    are.
    """
    Config = tasks.load(name).Config
    group = task_groups.group(name)
    assert schema.to_json(group) == {"name": name} | defaults(Config)
    assert schema.section(ConfigDict({"task": group}), "task", Config, ("name",)) == Config()
    field = dataclasses.fields(Config)[0].name
    assert task_groups.group(name, **{field: "given"}) == ConfigDict(
        group.to_dict() | {field: "given"}
    )


def test_a_task_that_is_unknown_is_named_with_the_nearest():
    """A misspelt task or key of a task is refused with the name that was meant."""
    with errors.raises(ValueError, "'arithmetics'", "'arithmetic'"):
        task_groups.group("arithmetics")
    with errors.raises(ValueError, "task.trainsize", "'train_size'"):
        task_groups.group("limr", trainsize=3)


def test_any_task_is_chosen_on_the_command_line():
    """METHOD,TASK behind the config's name; the task's own keys can be set."""
    config = any_task.get_config("grpo,knights_knaves")
    assert config.method.name == "grpo"
    assert config.task == task_groups.group("knights_knaves")
    assert any_task.get_config("grpo") == any_task.get_config("grpo,arithmetic")


@pytest.mark.parametrize("name", ["qwen25_3b", "llama32_3b", "qwen3_8b", "smollm2_arithmetic"])
def test_configs_with_a_tokenizer_take_any_task(name):
    """METHOD,TASK; without a task they are as they were; the task's defaults but for the prompt."""
    get_config = importlib.import_module(f"configs.{name}").get_config
    config = get_config("grpo,custom")
    assert (config.method.name, config.task.name) == ("grpo", "custom")
    other = get_config("grpo,gsm8k")
    wanted = task_groups.group("gsm8k", prompt="plain" if name == "llama32_3b" else "boxed")
    assert other.task == wanted and other.model == get_config("grpo").model
    own = "arithmetic" if name == "smollm2_arithmetic" else "limr"
    assert get_config("grpo").task.name == own
    assert get_config("grpo,arithmetic").task == task_groups.group("arithmetic")
    with errors.raises(ValueError, "gsm8k is a task", "bridge,gsm8k"):
        get_config("gsm8k")


def test_configs_with_a_task_of_their_own_refuse_another():
    """And name those that take one."""
    with errors.raises(ValueError, "'bridge,gsm8k'", "configs/any_task.py"):
        ladder.get_config("bridge,gsm8k")


def test_the_quickstarts_model_takes_a_task_of_its_characters():
    """Read by the model's own tokenizer; without a task it is what it was."""
    config = quickstart.get_config("grpo,custom")
    assert (config.method.name, config.task) == ("grpo", task_groups.group("custom"))
    assert (config.data.tokenizer, config.model.path) == ("", ladder.BASE)
    assert quickstart.get_config("grpo").task.name == "arithmetic"


def test_base_has_a_group_for_every_method():
    """So that a new method's keys can be set from the command line, and read what their defaults
    are.
    """
    listed = schema.to_json(base.get_config().method)
    groups = {name: defaults(methods.load(name).Config) for name in methods.names()}
    assert listed == {"name": "bridge", "train": "theta", **groups}
    assert set(base.get_config()) == set(settings.KEYS)
