"""Sampler beside trainer, an update beside another one: what differs too much FAILs."""

from __future__ import annotations

import numpy as np
import pytest

from bridge_jax.preflight import agreement
from bridge_jax.preflight.record import FAIL, NOTE, OK
from bridge_jax.types import Params
from tests.preflight import subjects

THETA = np.linspace(-1, 1, 100, dtype=np.float32)
CHANGE = np.sin(np.arange(100, dtype=np.float32)) * 1e-3


def params(change) -> Params:
    """Parameters after this change of theta; w stays."""
    return Params({"embed": THETA + change}, None, {"A": np.ones(3, np.float32)})


@pytest.mark.parametrize(
    "factor, dtype, grade",
    [
        (1.0, "float32", OK),
        (1.01, "float32", FAIL),
        (1.01, "bfloat16", OK),
        (0.0, "bfloat16", FAIL),
    ],
)
def test_an_update_that_differs(factor, dtype, grade):
    """The error is that of the change, not of the parameters, which is a thousandth of it."""
    record = agreement.judge_update(
        "update, CPU", params(0.0), params(factor * CHANGE), params(CHANGE), dtype
    )
    assert record.grade == grade and "theta" in record.text


def test_an_update_without_numbers_fails():
    """nan is no small error."""
    record = agreement.judge_update(
        "update, CPU", params(0.0), params(np.nan), params(CHANGE), "float32"
    )
    assert record.grade == FAIL


def test_two_equal_updates():
    """Bit for bit; on a GPU only noted, with the flag that makes it so."""
    other = params(CHANGE * (1 + 1e-6))
    assert agreement.judge_repeated(params(CHANGE), params(CHANGE), "gpu").grade == OK
    record = agreement.judge_repeated(params(CHANGE), other, "gpu")
    assert record.grade == NOTE and "xla_gpu_exclude_nondeterministic_ops" in record.way_out
    assert agreement.judge_repeated(params(CHANGE), other, "cpu").grade == FAIL


@pytest.mark.parametrize(
    "difference, dtype, grade",
    [
        (1e-6, "float32", OK),
        (1e-2, "float32", FAIL),
        (1e-2, "bfloat16", OK),
        (1.0, "bfloat16", FAIL),
    ],
)
def test_log_probabilities(difference, dtype, grade):
    """One token of a hundred that differs is enough in fp32."""
    trained = np.full(100, -2.0)
    sampled = trained + difference * (np.arange(100) == 7)
    assert agreement.judge_logp(sampled, trained, dtype).grade == grade


def test_beside_what_an_update_is_compared():
    """One of several devices; the CPU in fp32 where the run computes otherwise."""
    many = dict(devices=4, batch__prompts_per_step=8)
    assert list(agreement.others(subjects.make())) == []
    assert list(agreement.others(subjects.make(**many))) == ["update, 1 of 4"]
    found = agreement.others(subjects.make(model__dtype="bfloat16", **many))
    assert [made.settings.model.dtype for made in found.values()] == ["bfloat16", "float32"]


@pytest.mark.slow
def test_on_simulated_devices():
    """Samples and updates of the tiny model on four devices, two of which share the heads."""
    subject = subjects.make(devices=4, method="bridge", mesh__tensor=2, batch__prompts_per_step=4)
    assert agreement.sampler_and_trainer(subject).grade == OK
    records = {record.name: record for record in agreement.updates(subject)}
    assert list(records) == ["update, twice", "update, 1 of 4"]
    assert records["update, 1 of 4"].grade == OK
