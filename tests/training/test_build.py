"""A model, data or mesh that does not fit the settings is refused before any compute."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import logging
import types

import jax
import pytest
from ml_collections import ConfigDict

from bridge_jax import methods
from bridge_jax.training import build as training_build
from bridge_jax.training import settings
from bridge_jax.training.build import Setup
from tests import errors, tiny_runs
from tests.training.builds import EXPERIMENTS, build


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
        (
            dict(model__path="no/such/folder/at/all"),
            "'no/such/folder/at/all'",
        ),
        (
            dict(model__arch=ConfigDict(dict(model_type="mamba"))),
            ("model_type='mamba'", "llama", "qwen2", "qwen3"),
        ),
        (dict(model__arch=ConfigDict()), ("model.path", "model.arch")),
        (
            dict(model__arch__vocab_size=15),
            ("tokenizer", "15", "14"),
        ),
        (
            dict(model__arch__max_position_embeddings=20),
            ("data.buckets=(6,)", "rollout.max_new=15", "21", "20"),
        ),
        (dict(model__lora_targets="layers/qq"), "model.lora_targets='layers/qq'"),
        (dict(data__tokenizer=""), ("data.tokenizer", "model.path")),
        (dict(data__buckets=()), ("buckets ()", "rising")),
        (
            dict(data__buckets=(6, 4)),
            ("buckets (6, 4)", "rising"),
        ),
        (dict(task__train_size=0), ("task.train_size=0", "at least 1")),
        (
            dict(task__demo_size=0),
            ("'bridge'", "demonstrations", "'arithmetic'", "task.demo_size"),
        ),
        (dict(data__buckets=(3,)), "3"),
        (
            dict(rollout__max_new=2),
            ("12", "6 tokens", "2 tokens"),
        ),
    ],
)
def test_models_and_data_that_do_not_fit(given, message):
    """A model, tokenizer or task that does not fit the settings is refused with the key."""
    with errors.raises(ValueError, message):
        build(**given)


def test_a_folder_of_another_model(tmp_path):
    """model.path and model.arch, both given, must agree; a folder without weights is named by what
    it lacks.
    """
    (tmp_path / "config.json").write_text(
        json.dumps(tiny_runs.config().model.arch.to_dict() | {"hidden_size": 48})
    )
    with errors.raises(ValueError, str(tmp_path), "model.safetensors"):
        build(model__path=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with errors.raises(ValueError, "model.arch", "48", "32"):
        build(model__path=str(tmp_path))


def test_what_does_not_fit_is_dropped_and_counted(caplog):
    """Prompts of six characters against a bucket of four, traces of fifteen tokens against
    fourteen.
    """
    with caplog.at_level(logging.WARNING):
        _, data = build(data__buckets=(4,), rollout__max_new=14)
    assert {len(tokens) for tokens in data.prompts.tokens} == {4} and len(
        data.prompts.problems
    ) < 24
    dropped = 24 - len(data.prompts.problems)
    gone = {problem.id for problem in data.task.train} - {
        problem.id for problem in data.prompts.problems
    }
    warnings = [
        record.getMessage()
        for record in caplog.records
        if "prompt longer than 4 tokens" in record.getMessage()
    ]
    assert (
        f"left out {dropped} of 24 problems" in warnings[0] + warnings[1] and len(gone) == dropped
    )
    lines = [line for line in warnings if f"left out {dropped} of 24" in line]
    assert any(all(f"{id} (6)" in line for id in sorted(gone)[:10]) for line in lines)
    caplog.clear()
    build(rollout__max_new=14)
    assert "left out 1 of 12 problems: trace longer than 14 tokens" in caplog.text


def test_buckets_that_no_prompt_needs_are_not_compiled_for():
    """Only buckets that some prompt falls into are kept."""
    assert build(data__buckets=(2, 4, 6, 64))[0].buckets == (4, 6)
    assert inspect.signature(training_build.build).parameters["devices"].default is None


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
            (
                "4 prompts",
                "8",
                "rollout.calls=2 or mesh.decode_tensor=2 or batch.prompts_per_step=32",
            ),
            [dict(rollout__calls=2), dict(mesh__decode_tensor=2), dict(batch__prompts_per_step=32)],
        ),
        # decode_tensor=4 would do for the prompts, but not for two heads
        (
            dict(rollout__calls=8),
            ("2 prompts", ": rollout.calls=2 or batch.prompts_per_step=64"),
            [dict(rollout__calls=2), dict(batch__prompts_per_step=64)],
        ),
        (
            dict(batch__prompts_per_step=24, batch__microbatch_rows=1, rollout__calls=2),
            (
                "12 prompts",
                "rollout.calls=3 or mesh.decode_tensor=2 or batch.prompts_per_step=16 or 32",
            ),
            [
                dict(rollout__calls=3),
                dict(mesh__decode_tensor=2),
                dict(batch__prompts_per_step=16),
                dict(batch__prompts_per_step=32),
            ],
        ),
        (
            dict(batch__prompts_per_step=4, batch__pack=2),
            ": mesh.decode_tensor=2 or batch.prompts_per_step=8",
            [dict(mesh__decode_tensor=2), dict(batch__prompts_per_step=8)],
        ),
        (
            dict(eval__rows=12),
            ("eval.rows=12", "8 or 16"),
            [dict(eval__rows=8), dict(eval__rows=16)],
        ),
        (
            dict(eval__rows=3),
            ("eval.rows=3", ": 8"),
            [dict(eval__rows=8)],
        ),
        (
            dict(model__arch__hidden_size=36),
            ("mesh.fsdp=8", "width 36", "mesh.data=2, mesh.fsdp=4, mesh.tensor=1"),
            [dict(mesh__data=2, mesh__fsdp=4, mesh__tensor=1)],
        ),
        (
            dict(mesh__fsdp=1, mesh__tensor=8),
            ("mesh.tensor=8", "2 heads", "1 kv heads", "mesh.data=1, mesh.fsdp=4, mesh.tensor=2"),
            [dict(mesh__data=1, mesh__fsdp=4, mesh__tensor=2)],
        ),
        (
            dict(mesh__fsdp=4, mesh__tensor=2, model__arch__intermediate_size=63),
            ("mesh.tensor=2", "mlp width 63", "mesh.data=1, mesh.fsdp=8, mesh.tensor=1"),
            [dict(mesh__data=1, mesh__fsdp=8, mesh__tensor=1)],
        ),
        (
            dict(mesh__decode_tensor=3),
            ("mesh.decode_tensor=3", "8 devices", ": 2"),
            [dict(mesh__decode_tensor=2)],
        ),
    ],
)
def test_what_does_not_divide_over_the_mesh(given, says, ways):
    """Refused with the nearest that does, and each of those is taken."""
    with errors.raises(ValueError, says):
        on_eight(**given)
    for way in ways:
        on_eight(**given | way)


@pytest.mark.parametrize(
    "name, on_v5e, on_h100", [("qwen25_3b", 2, 1), ("llama32_3b", 4, 1), ("qwen3_8b", 8, 2)]
)
def test_recipes_decode_as_the_chip_allows(name, on_v5e, on_h100):
    """A copy of the weights for each GPU or pair of them; two to eight v5e share one."""
    config = importlib.import_module(f"configs.{name}").get_config("grpo")
    setup = training_build.make_setup(config, jax.devices()[:8])
    assert setup.decode_mesh.shape["tensor"] == setup.mesh.shape["tensor"] == 1
    for platform, kind, tensor in (
        ("tpu", "TPU v5 lite", on_v5e),
        ("gpu", "NVIDIA H100 80GB HBM3", on_h100),
    ):
        devices = [types.SimpleNamespace(platform=platform, device_kind=kind)] * 8
        chosen = training_build.decode_mesh_config(setup.settings, setup.cfg, devices)
        assert chosen.decode_tensor == tensor


def test_a_layout_of_decoding_that_is_given_stays():
    """And one is chosen among those that divide prompts and heads."""
    config = tiny_runs.config("grpo", mesh__decode_tensor=2, batch__prompts_per_step=16)
    setup = training_build.make_setup(config, jax.devices()[:8])
    devices = [types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")] * 8
    chosen = training_build.decode_mesh_config(setup.settings, setup.cfg, devices)
    assert chosen == setup.settings.mesh and setup.decode_mesh.shape["tensor"] == 2
    # 4 prompts a call: with a copy for each of 8 GPUs they would not divide
    few = dict(batch__prompts_per_step=8, batch__microbatch_rows=4)
    config = tiny_runs.config("grpo", mesh__decode_tensor=2, **few)
    s = training_build.make_setup(config, jax.devices()[:8]).settings
    free = s._replace(mesh=dataclasses.replace(s.mesh, decode_tensor=0))
    assert training_build.decode_mesh_config(free, setup.cfg, devices).decode_tensor == 2


def test_prompts_of_a_method_that_samples_nothing_need_not_divide():
    """Rows of rollouts must divide over the mesh only where the method samples."""
    given = ON_EIGHT | dict(
        batch__prompts_per_step=3, batch__samples_per_prompt=5, rollout__calls=2
    )
    training_build.make_setup(tiny_runs.config("sft", **given), jax.devices()[:8])
    with errors.raises(ValueError, "batch.samples_per_prompt=5"):
        training_build.make_setup(tiny_runs.config("grpo", **given), jax.devices()[:8])


def test_rows_of_an_evaluation_that_is_not_made():
    """Rows that do not divide over the devices pass where no evaluation is due."""
    on_eight(eval__rows=12, eval__every=0)


def test_demos_that_do_not_divide_into_parts():
    """8 demonstrations over eight devices are one on each."""
    sketch = lambda demos: training_build.make_setup(
        tiny_runs.config(
            "bridge", **ON_EIGHT, batch__demos_per_step=demos, method__bridge__sft_microbatches=2
        ),
        jax.devices()[:8],
    )
    with errors.raises(ValueError, "method.bridge.sft_microbatches=2", "1, or 0"):
        sketch(8)
    sketch(16)


@pytest.mark.parametrize("label", ["base", "lora"])
@pytest.mark.parametrize(
    "key, value", [("learning_rate", -1.0), ("schedule", "step"), ("moments", "int8")]
)
def test_an_invalid_recipe_is_named_by_its_label(label, key, value):
    """optim.base or optim.lora, whatever the method."""
    with pytest.raises(ValueError, match=rf"^optim\.{label}\.{key}={value!r}; allowed: "):
        training_build.make_setup(tiny_runs.config("sft", **{f"optim__{label}__{key}": value}))
