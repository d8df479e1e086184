"""A setting that cannot be meant is refused with a sentence that helps."""

from __future__ import annotations

import pytest
from ml_collections import ConfigDict

from tests.training.builds import build


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
