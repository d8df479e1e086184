"""A model, data or mesh that does not fit the settings is refused before any compute."""

from __future__ import annotations

import importlib
import inspect
import json
import logging

import jax
import pytest
from ml_collections import ConfigDict

from bridge_jax import methods
from bridge_jax.training import build as training_build
from bridge_jax.training import settings
from bridge_jax.training.build import Setup
from tests import tiny_runs
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
    """model.path and model.arch, both given, must agree; a folder without weights is named by what
    it lacks.
    """
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
