"""A run warns of settings that nothing reads and of schedules that do not fit its steps."""

from __future__ import annotations

import importlib

import jax
import pytest

from bridge_jax import methods
from bridge_jax.training import build as training_build
from bridge_jax.training import settings
from bridge_jax.training.advice import warn_schedules
from tests import tiny_runs
from tests.training.builds import EXPERIMENTS, build


def test_keys_that_the_method_never_reads(caplog):
    """Set and different from the default: named. At the default: nothing said."""
    warnings = lambda: " ".join(
        record.getMessage() for record in caplog.records if "is set, but" in record.getMessage()
    )
    build(method="bridge")
    assert warnings() == ""
    build(method="sft", method__bridge__lam=0.25, method__grpo__clip_low=0.2)
    assert (
        "method.bridge.lam=0.25 is set, but the method is 'sft'" in warnings()
        and "clip_low" not in warnings()
    )


def test_keys_that_the_user_did_not_set(caplog):
    """Of what a config file sets for its other methods nothing is said; a flag is named."""
    config = tiny_runs.config("sft", method__bridge__lam=0.25, rollout__calls=2)
    messages = lambda: [record.getMessage() for record in caplog.records]
    training_build.build(config, jax.devices()[:1], given=())
    assert messages() == []
    given = ("method.bridge.lam", "rollout.calls")
    training_build.build(config, jax.devices()[:1], given=given)
    assert messages() == [
        "method.bridge.lam=0.25 is set, but the method is 'sft'",
        "set, but method 'sft' never reads with these settings: rollout.calls=2",
    ]


def test_keys_that_the_chosen_schedule_never_reads(caplog):
    """A schedule that is set up and not chosen never leaves its start: its keys are named, those of
    the chosen one are not.
    """
    warnings = lambda: [
        record.getMessage() for record in caplog.records if "never reads" in record.getMessage()
    ]
    build(
        method__bridge__lam_schedule__end=0.9,
        method__bridge__lam_schedule__steps=5,
        optim__base__decay_steps=130,
    )
    assert len(warnings()) == 1
    named = set(warnings()[0].partition(": ")[2].split(", "))
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
    assert [line.partition(": ")[2] for line in warnings()] == [
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
    """Steps behind a schedule that has ended at 0, and what would come after the last step; all
    else goes without a word.
    """
    build(method=method, **FALLING | given)
    warnings = [
        record.getMessage()
        for record in caplog.records
        if record.getMessage().startswith(("optim.", "method."))
        and "never reads" not in record.getMessage()
    ]
    assert len(warnings) == len(expected), warnings
    assert all(line.startswith(start) for line, start in zip(sorted(warnings), expected)), warnings


@pytest.mark.parametrize("method", methods.names())
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_schedules_of_the_configs_fit_their_runs(name, method, caplog):
    """But for chord in ladder's, whose sweeps set its steps."""
    config = importlib.import_module(f"configs.{name}").get_config(method)
    s = settings.read(config, devices=1)
    made = methods.load(method).make(s.method, None, s.recipes)
    warn_schedules(s, made, adapter=True)
    assert bool(caplog.records) == ((name, method) == ("ladder", "chord"))
