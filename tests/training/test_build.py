"""Bad input dies before any compute with a sentence that helps; configs/base.py lists what the dataclasses have."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import logging
import pathlib

import jax
import pytest
from ml_collections import ConfigDict

from bridge_jax import methods, optim, tasks
from bridge_jax.config import schema
from bridge_jax.distributed import sharding
from bridge_jax.training import build as training_build
from bridge_jax.training import settings
from bridge_jax.training.advice import warn_schedules
from bridge_jax.training.build import RunData, Setup
from configs import any_task, base
from configs import tasks as task_groups
from tests import tiny_runs

CONFIGS = sorted(
    path.stem for path in pathlib.Path(base.__file__).parent.glob("*.py") if path.stem != "__init__"
)
EXPERIMENTS = [
    name
    for name in CONFIGS
    if name not in ("base", "tasks")
    and list(inspect.signature(importlib.import_module(f"configs.{name}").get_config).parameters)
    == ["method"]
]  # the others are parts of these


def build(**given) -> tuple[Setup, RunData]:
    return training_build.build(tiny_runs.config(**given), jax.devices()[:1])


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
    """Its name and its settings with their defaults, but for what is given; read back as they are."""
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
    with pytest.raises(ValueError, match="'arithmetics' does not exist. Did you mean 'arithmetic'"):
        task_groups.group("arithmetics")
    with pytest.raises(ValueError, match="unknown key task.trainsize: did you mean 'train_size'"):
        task_groups.group("limr", trainsize=3)


def test_any_task_is_chosen_on_the_command_line():
    """METHOD,TASK behind the config's name; the task's own keys can be set."""
    config = any_task.get_config("grpo,knights_knaves")
    assert config.method.name == "grpo"
    assert config.task == task_groups.group("knights_knaves")
    assert any_task.get_config("grpo") == any_task.get_config("grpo,arithmetic")


def test_base_has_a_group_for_every_method():
    """So that a new method's keys can be set from the command line, and read what their defaults are."""
    listed = schema.to_json(base.get_config().method)
    groups = {name: defaults(methods.load(name).Config) for name in methods.names()}
    assert listed == {"name": "bridge", **groups}
    assert set(base.get_config()) == set(settings.KEYS)


@pytest.mark.parametrize("method", methods.names())
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_config_is_read(name, method, caplog):
    """For every method: no unknown key, and nothing set that the method never reads."""
    config = importlib.import_module(f"configs.{name}").get_config(method)
    assert settings.read(config, devices=1).method_name == method
    assert [record for record in caplog.records if "never reads" in record.message] == []
    assert (
        inspect.getdoc(importlib.import_module(f"configs.{name}")).count("python -m experiments.")
        >= 1
    )


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(stepz=3), r"unknown key config.stepz: did you mean 'steps'\?"),
        (
            dict(optim__base__learning_rat=1.0),
            r"config.optim.*learning_rat: did you mean 'learning_rate'\?",
        ),
        (dict(optim__bass=ConfigDict()), r"unknown key config.optim.bass: did you mean 'base'\?"),
        (
            dict(method__bridge__lamb=0.5),
            r"unknown key config.method.bridge.lamb: did you mean 'lam'\?",
        ),
        (dict(task="arithmetic"), "config.task must be a group of keys, got 'arithmetic'"),
        (
            dict(method__name="bridg"),
            "method.name='bridg' is unknown; allowed: .*, bridge, .*Did you mean 'bridge'",
        ),
        (
            dict(method__name=""),
            "method.name='' is unknown; allowed: .*, bridge, .*, sft, .*srft",
        ),
        (dict(task__name="arithmetics"), "Did you mean 'arithmetic'"),
        (dict(steps=0), "config.steps=0; allowed: a whole number of at least 1"),
        (dict(steps=True), "config.steps=True; allowed"),
        (dict(seed=-1), "config.seed=-1; allowed"),
        (dict(optim__base__clip_norm="1"), "clip_norm='1' is of type str; wanted: float"),
        (dict(rollout__temperature=0.0), "rollout.temperature=0.0"),
        (
            dict(rollout__calls=3),
            "rollout.calls=3 must divide batch.prompts_per_step=2; allowed: 1, 2",
        ),
        (dict(rollout__compactions=-2), "rollout.compactions=-2; allowed: 0, 1, ..., or -1"),
        (dict(rollout__cache_segments=0), "rollout.cache_segments=0; allowed: 1, 2, ..., or -1"),
        (dict(rollout__cache_dtype="fp8"), "rollout.cache_dtype='fp8'; allowed: float32, bfloat16"),
        (dict(model__dtype="float16"), "model.dtype='float16'; allowed: float32, bfloat16"),
        (dict(model__remat="some"), "model.remat='some'; allowed: none, dots, full"),
        (dict(eval__rows=0), "eval.rows=0; allowed: a whole number of at least 1"),
        (dict(eval__every=-1), "eval.every=-1; allowed: a whole number of at least 0"),
        (dict(log__skipped_limit=0), "log.skipped_limit=0; allowed: a whole number of at least 1"),
        (
            dict(batch__samples_per_prompt=1),
            "batch.samples_per_prompt=1: must be a whole number of at least 2 .the adv",
        ),
        (
            dict(batch__microbatch_rows=3),
            r"which neither divide batch.samples_per_prompt=4.*Nearest that work: "
            r"batch.microbatch_rows=2 or 4",
        ),
        (
            dict(batch__prompts_per_step=3),
            r"12 rollout rows are not a whole number.*batch.prompts_per_step=2 or 4",
        ),
        (
            dict(mesh__data=3),
            "mesh .*takes a multiple of 3 devices, there are 1; nearest that takes all: .'data': 1, 'fsdp': -1, ",
        ),
    ],
)
def test_settings_that_cannot_be_meant(given, message):
    """Unknown keys, wrong types and numbers out of range are refused with a way out."""
    with pytest.raises(ValueError, match=message):
        build(**given)


@pytest.mark.parametrize(
    "given, message",
    [
        (
            dict(model__path="no/such/folder/at/all"),
            "model folder 'no/such/folder/at/all' does not exist",
        ),
        (
            dict(model__arch=ConfigDict(dict(model_type="mamba"))),
            "model_type='mamba', which is not supported; allowed: .*llama.*qwen2.*qwen3",
        ),
        (dict(model__arch=ConfigDict()), "neither model.path nor model.arch is set"),
        (
            dict(model__arch__vocab_size=15),
            "the tokenizer uses ids up to 15, the model's end at 14",
        ),
        (
            dict(model__arch__max_position_embeddings=20),
            r"data.buckets=\(6,\) and rollout.max_new=15 make up to 21 "
            "positions, the model has 20",
        ),
        (dict(model__lora_targets="layers/qq"), "matches no tensor"),
        (dict(data__tokenizer=""), "data.tokenizer is empty and there is no model.path"),
        (dict(data__buckets=()), r"prompt buckets \(\); allowed: positive, in rising order"),
        (
            dict(data__buckets=(6, 4)),
            r"prompt buckets \(6, 4\); allowed: positive, in rising order",
        ),
        (dict(task__train_size=0), "task.train_size=0; it must be at least 1"),
        (
            dict(task__demo_size=0),
            "method 'bridge' learns from demonstrations, task 'arithmetic' has none; raise task",
        ),
        (dict(data__buckets=(3,)), "none of .* problems remains"),
        (
            dict(rollout__max_new=2),
            "none of 12 problems remains; allowed: prompt at most 6 tokens, trace at most 2 tokens",
        ),
    ],
)
def test_models_and_data_that_do_not_fit(given, message):
    """A model, tokenizer or task that does not fit the settings is refused with the key."""
    with pytest.raises(ValueError, match=message):
        build(**given)


def test_a_folder_of_another_model(tmp_path):
    """model.path and model.arch, both given, must agree; a folder without weights is named by what it lacks."""
    (tmp_path / "config.json").write_text(
        json.dumps(tiny_runs.config().model.arch.to_dict() | {"hidden_size": 48})
    )
    with pytest.raises(ValueError, match="lacks weights: neither model.safetensors"):
        build(model__path=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        ValueError, match="is not the model that model.arch describes: width .48 there, 32 in model"
    ):
        build(model__path=str(tmp_path))


def test_keys_that_the_method_never_reads(caplog):
    """Set and different from the default: named. At the default: nothing said."""
    told = lambda: " ".join(
        record.getMessage() for record in caplog.records if "is set, but" in record.getMessage()
    )
    build(method="bridge")
    assert told() == ""
    build(method="sft", method__bridge__lam=0.25, method__grpo__clip_low=0.2)
    assert (
        "method.bridge.lam=0.25 is set, but the method is 'sft'" in told()
        and "clip_low" not in told()
    )


def test_keys_that_the_chosen_schedule_never_reads(caplog):
    """A schedule that is set up and not chosen never leaves its start: its keys are named, those of the chosen one are not."""
    told = lambda: [
        record.getMessage() for record in caplog.records if "never reads" in record.getMessage()
    ]
    build(
        method__bridge__lam_schedule__end=0.9,
        method__bridge__lam_schedule__steps=5,
        optim__base__decay_steps=130,
    )
    assert len(told()) == 1
    named = set(told()[0].partition(": ")[2].split(", "))
    assert named == {
        "optim.base.decay_steps=130",
        "method.bridge.lam_schedule.end=0.9",
        "method.bridge.lam_schedule.steps=5",
    }
    caplog.clear()
    lam = dict(kind="linear", end=0.9, steps=5, boundaries=(2,))
    build(
        method="joint",
        **{f"method__joint__lam_schedule__{key}": value for key, value in lam.items()},
    )
    assert [line.partition(": ")[2] for line in told()] == [
        "method.joint.lam_schedule.boundaries=(2,)"
    ]


FALLING = dict(
    optim__base__schedule="cosine",
    optim__base__warmup_steps=10,
    optim__base__decay_steps=90,
    optim__lora__schedule="linear",
    optim__lora__decay_steps=1000,
)


@pytest.mark.parametrize(
    "method, given, expected",
    [
        ("grpo", dict(steps=100), []),
        ("grpo", dict(steps=101), ["optim.base: the learning rate is 0 from step 101 on"]),
        ("grpo", dict(steps=101, optim__base__end_ratio=0.1), []),
        ("grpo", dict(steps=101, optim__base__schedule="constant"), []),
        ("grpo", dict(steps=9), ["optim.base: warmup_steps=10 is longer than the 9 steps"]),
        (
            "bridge",
            dict(steps=1001, optim__base__end_ratio=1e-3),
            ["optim.lora: the learning rate is 0 from step 1001 on"],
        ),
        # each of its phases has the schedule for itself
        ("cold_start", dict(steps=200, method__cold_start__sft_steps=100), []),
        (
            "cold_start",
            dict(steps=201, method__cold_start__sft_steps=100),
            ["optim.base: the learning rate is 0 from step 101 on"],
        ),
        (
            "cold_start",
            dict(steps=100, method__cold_start__sft_steps=100),
            ["method.cold_start.sft_steps: takes until step 101, and the run ends with step 100"],
        ),
        (
            "bridge",
            dict(
                steps=20,
                method__bridge__variant__resync_every=20,
                method__bridge__lam_schedule__kind="step",
                method__bridge__lam_schedule__boundaries=(20, 30),
                method__bridge__lam_schedule__values=(0.7, 0.9),
            ),
            [
                "method.bridge.lam_schedule.boundaries: takes until step 21",
                "method.bridge.variant.resync_every: takes until step 21",
            ],
        ),
        ("bridge", dict(steps=20, method__bridge__variant__resync_every=19), []),
        (
            "joint",
            dict(
                steps=5,
                optim__base__warmup_steps=0,
                optim__lora__warmup_steps=0,
                method__joint__lam_schedule__kind="step",
                method__joint__lam_schedule__boundaries=(5,),
                method__joint__lam_schedule__values=(0.7,),
            ),
            ["method.joint.lam_schedule.boundaries: takes until step 6"],
        ),
        (
            "bridge",
            dict(
                steps=20,
                method__bridge__lam_schedule__kind="linear",
                method__bridge__lam_schedule__steps=21,
            ),
            ["method.bridge.lam_schedule.steps: takes until step 21"],
        ),
        (
            "bridge",
            dict(
                steps=20,
                method__bridge__lam_schedule__kind="linear",
                method__bridge__lam_schedule__steps=20,
            ),
            [],
        ),
        (
            "chord",
            dict(steps=20, method__chord__mu_schedule__steps=21),
            ["method.chord.mu_schedule.steps: takes until"],
        ),
        ("chord", dict(steps=20, method__chord__mu_schedule__steps=20), []),
        (
            "chord",
            dict(
                steps=20,
                method__chord__mu_schedule__steps=21,
                method__chord__mu_schedule__kind="constant",
            ),
            [],
        ),
    ],
)
def test_schedules_that_do_not_fit_the_run_are_named(method, given, expected, caplog):
    """Steps behind a schedule that has ended at 0, and what would come after the last step; all else goes without a word."""
    build(method=method, **FALLING | given)
    told = [
        record.getMessage()
        for record in caplog.records
        if record.getMessage().startswith(("optim.", "method."))
        and "never reads" not in record.getMessage()
    ]
    assert len(told) == len(expected), told
    assert all(line.startswith(start) for line, start in zip(sorted(told), expected)), told


@pytest.mark.parametrize("method", methods.names())
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_schedules_of_the_configs_fit_their_runs(name, method, caplog):
    """But for chord in ladder's, whose sweeps set its steps."""
    config = importlib.import_module(f"configs.{name}").get_config(method)
    s = settings.read(config, devices=1)
    made = methods.load(method).make(s.method, None, s.recipes)
    warn_schedules(s, made, adapter=True)
    assert bool(caplog.records) == ((name, method) == ("ladder", "chord"))


def test_what_does_not_fit_is_dropped_and_counted(caplog):
    """Prompts of six characters against a bucket of four, traces of fifteen tokens against fourteen."""
    with caplog.at_level(logging.WARNING):
        _, data = build(data__buckets=(4,), rollout__max_new=14)
    assert {len(tokens) for tokens in data.prompts.tokens} == {4} and len(
        data.prompts.problems
    ) < 24
    dropped = 24 - len(data.prompts.problems)
    gone = {problem.id for problem in data.task.train} - {
        problem.id for problem in data.prompts.problems
    }
    told = [
        record.getMessage()
        for record in caplog.records
        if "prompt longer than 4 tokens" in record.getMessage()
    ]
    assert f"left out {dropped} of 24 problems" in told[0] + told[1] and len(gone) == dropped
    lines = [line for line in told if f"left out {dropped} of 24" in line]
    assert any(all(f"{id} (6)" in line for id in sorted(gone)[:10]) for line in lines)
    caplog.clear()
    build(rollout__max_new=14)
    assert "left out 1 of 12 problems: trace longer than 14 tokens" in caplog.text


def test_buckets_that_no_prompt_needs_are_not_compiled_for():
    """Only buckets that some prompt falls into are kept."""
    assert build(data__buckets=(2, 4, 6, 64))[0].buckets == (4, 6)
    assert inspect.signature(training_build.build).parameters["devices"].default is None


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("optim__base__b1", 1.5, "b1=1.5"),
        ("optim__lora__eps", 0.0, "eps=0.0"),
        ("log__ungraded_limit", -1.0, "ungraded_limit=-1.0"),
        ("log__mirrors", ("tensorbord",), "did you mean 'tensorboard'"),
        ("model__lora_targets", "(", "not a regular expression"),
        ("rollout__reward_noise", 1.5, "reward_noise=1.5"),
        ("eval__samples", 10, "eval.samples=10"),
        ("eval__samples", -1, "at least 0"),
    ],
)
def test_values_that_cannot_be_meant(key, value, message):
    """A value outside its range is refused with the key and the value."""
    with pytest.raises(ValueError, match=message):
        build(**{key: value})


ON_EIGHT = dict(
    batch__prompts_per_step=16,
    batch__samples_per_prompt=2,
    batch__microbatch_rows=2,
    rollout__calls=1,
)


def on_eight(**given) -> Setup:
    """16 prompts x 2 samples on eight devices, of a model of 2 heads and width 32."""
    return training_build.make_setup(
        tiny_runs.config("grpo", **ON_EIGHT | given), jax.devices()[:8]
    )


@pytest.mark.parametrize(
    "given, says, ways",
    [
        (
            dict(rollout__calls=4),
            "4 prompts a part, which do not divide over the 8 groups of devices that sample; nearest that do: "
            "rollout.calls=2 or mesh.decode_tensor=2 or batch.prompts_per_step=32",
            [dict(rollout__calls=2), dict(mesh__decode_tensor=2), dict(batch__prompts_per_step=32)],
        ),
        # decode_tensor=4 would do for the prompts, but not for two heads
        (
            dict(rollout__calls=8),
            "makes 2 prompts a part, .* nearest that do: rollout.calls=2 or batch.prompts_per_step=64$",
            [dict(rollout__calls=2), dict(batch__prompts_per_step=64)],
        ),
        (
            dict(batch__prompts_per_step=24, batch__microbatch_rows=1, rollout__calls=2),
            "makes 12 prompts a part, .* nearest that do: "
            "rollout.calls=3 or mesh.decode_tensor=2 or batch.prompts_per_step=16 or 32$",
            [
                dict(rollout__calls=3),
                dict(mesh__decode_tensor=2),
                dict(batch__prompts_per_step=16),
                dict(batch__prompts_per_step=32),
            ],
        ),
        (
            dict(batch__prompts_per_step=4, batch__pack=2),
            "nearest that do: mesh.decode_tensor=2 or batch.prompts_per_step=8$",
            [dict(mesh__decode_tensor=2), dict(batch__prompts_per_step=8)],
        ),
        (
            dict(eval__rows=12),
            "eval.rows=12 does not divide over the 8 groups of devices that sample; nearest: 8 or 16$",
            [dict(eval__rows=8), dict(eval__rows=16)],
        ),
        (
            dict(eval__rows=3),
            "eval.rows=3 does not divide over the 8 groups of .* sample; nearest: 8$",
            [dict(eval__rows=8)],
        ),
        (
            dict(model__arch__hidden_size=36),
            "mesh.fsdp=8 does not divide the model's width 36; nearest that does: mesh.data=2, "
            "mesh.fsdp=4, mesh.tensor=1$",
            [dict(mesh__data=2, mesh__fsdp=4, mesh__tensor=1)],
        ),
        (
            dict(mesh__fsdp=1, mesh__tensor=8),
            "mesh.tensor=8 does not divide the model's 2 heads and 1 kv heads; nearest that does: "
            "mesh.data=1, mesh.fsdp=4, mesh.tensor=2$",
            [dict(mesh__data=1, mesh__fsdp=4, mesh__tensor=2)],
        ),
        (
            dict(mesh__fsdp=4, mesh__tensor=2, model__arch__intermediate_size=63),
            "mesh.tensor=2 does not divide the model's mlp width 63; "
            "nearest that does: mesh.data=1, mesh.fsdp=8, mesh.tensor=1$",
            [dict(mesh__data=1, mesh__fsdp=8, mesh__tensor=1)],
        ),
        (
            dict(mesh__decode_tensor=3),
            "mesh.decode_tensor=3 does not divide the 8 devices; nearest that does: 2",
            [dict(mesh__decode_tensor=2)],
        ),
    ],
)
def test_what_does_not_divide_over_the_mesh(given, says, ways):
    """Refused with the nearest that does, and each of those is taken."""
    with pytest.raises(ValueError, match=says):
        on_eight(**given)
    for way in ways:
        on_eight(**given | way)


def test_prompts_of_a_method_that_samples_nothing_need_not_divide():
    """Rows of rollouts must divide over the mesh only where the method samples."""
    given = ON_EIGHT | dict(
        batch__prompts_per_step=3, batch__samples_per_prompt=5, rollout__calls=2
    )
    training_build.make_setup(tiny_runs.config("sft", **given), jax.devices()[:8])
    with pytest.raises(ValueError, match="neither divide batch.samples_per_prompt=5"):
        training_build.make_setup(tiny_runs.config("grpo", **given), jax.devices()[:8])


def test_rows_of_an_evaluation_that_is_not_made():
    """Rows that do not divide over the devices pass where no evaluation is due."""
    on_eight(eval__rows=12, eval__every=0)


def test_experts_that_cannot_be_cut_finer():
    """8 demonstrations over eight devices are one on each."""
    sketch = lambda demos: training_build.make_setup(
        tiny_runs.config(
            "bridge", **ON_EIGHT, batch__demos_per_step=demos, method__bridge__sft_microbatches=2
        ),
        jax.devices()[:8],
    )
    with pytest.raises(
        ValueError,
        match="method.bridge.sft_microbatches=2 does not divide the 1 demonstration.*allowed: 1, or 0",
    ):
        sketch(8)
    sketch(16)
