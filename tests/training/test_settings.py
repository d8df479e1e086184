"""An invalid setting is refused with a message that names the key and what is allowed."""

from __future__ import annotations

import pytest
from ml_collections import ConfigDict

from tests import errors
from tests.training.builds import build


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(stepz=3), ("config.stepz", "'steps'")),
        (
            dict(optim__base__learning_rat=1.0),
            ("config.optim.base.learning_rat", "'learning_rate'"),
        ),
        (dict(optim__bass=ConfigDict()), ("config.optim.bass", "'base'")),
        (
            dict(method__bridge__lamb=0.5),
            ("config.method.bridge.lamb", "'lam'"),
        ),
        (dict(task="arithmetic"), ("config.task", "'arithmetic'")),
        (
            dict(method__name="bridg"),
            ("method.name='bridg'", "bridge", "'bridge'"),
        ),
        (
            dict(method__name=""),
            ("method.name=''", "bridge", "sft", "srft"),
        ),
        (dict(task__name="arithmetics"), ("'arithmetics'", "'arithmetic'")),
        (dict(steps=0), ("config.steps=0", "at least 1")),
        (dict(steps=True), "config.steps=True"),
        (dict(seed=-1), "config.seed=-1"),
        (dict(optim__base__clip_norm="1"), ("config.optim.base.clip_norm='1'", "float")),
        (dict(rollout__temperature=0.0), "rollout.temperature=0.0"),
        (
            dict(rollout__calls=3),
            ("rollout.calls=3", "batch.prompts_per_step=2", "1, 2"),
        ),
        (dict(rollout__compactions=-2), ("rollout.compactions=-2", "0, 1, ..., or -1")),
        (dict(rollout__cache_segments=0), ("rollout.cache_segments=0", "1, 2, ..., or -1")),
        (dict(rollout__cache_dtype="fp8"), ("rollout.cache_dtype='fp8'", "float32, bfloat16")),
        (dict(model__dtype="float16"), ("model.dtype='float16'", "float32, bfloat16")),
        (dict(model__remat="some"), ("model.remat='some'", "none, dots, full")),
        (dict(eval__rows=0), ("eval.rows=0", "at least 1")),
        (dict(eval__every=-1), ("eval.every=-1", "at least 0")),
        (dict(log__skipped_limit=0), ("log.skipped_limit=0", "at least 1")),
        (
            dict(batch__samples_per_prompt=1),
            ("batch.samples_per_prompt=1", "at least 2"),
        ),
        (
            dict(batch__microbatch_rows=3),
            ("batch.samples_per_prompt=4", "batch.microbatch_rows=2 or 4"),
        ),
        (
            dict(batch__prompts_per_step=3),
            ("12", "batch.prompts_per_step=2 or 4"),
        ),
        (
            dict(mesh__data=3),
            ("mesh", "3", "'data': 1, 'fsdp': -1"),
        ),
    ],
)
def test_invalid_settings(given, message):
    """Unknown keys, wrong types and numbers out of range are refused with a way out."""
    with errors.raises(ValueError, message):
        build(**given)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("optim__base__b1", 1.5, "b1=1.5"),
        ("optim__lora__eps", 0.0, "eps=0.0"),
        ("log__ungraded_limit", -1.0, "ungraded_limit=-1.0"),
        ("log__mirrors", ("tensorbord",), ("log.mirrors='tensorbord'", "'tensorboard'")),
        ("model__lora_targets", "(", "model.lora_targets='('"),
        ("rollout__reward_noise", 1.5, "reward_noise=1.5"),
        ("eval__samples", 10, "eval.samples=10"),
        ("eval__samples", -1, ("eval.samples=-1", "at least 0")),
    ],
)
def test_invalid_values(key, value, message):
    """A value outside its range is refused with the key and the value."""
    with errors.raises(ValueError, message):
        build(**{key: value})
