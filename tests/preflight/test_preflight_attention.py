"""A wrong attention FAILs: in its mask, its packed rows, its gradients, or in being no number."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from bridge_jax.models.attention import einsums
from bridge_jax.preflight import attention
from bridge_jax.preflight.attention import Case
from bridge_jax.preflight.record import FAIL, OK
from tests.preflight import subjects

SHORT = (
    Case("with a prompt", 7, prompt=6),
    Case("packed", 9, segments=3),
    Case("far below zero", 5, logit=-120.0),
)


@pytest.fixture
def setup(monkeypatch):
    """The tiny run, and short cases, which compile once."""
    monkeypatch.setattr(attention, "CASES", SHORT)
    return subjects.make().setup


def without_segments(q, k, v, prompt=None, segment_BT=None, window=None):
    """A row's sequences see each other."""
    return einsums.causal(q, k, v, prompt, None, window)


def wrong_gradient(q, k, v, prompt=None, segment_BT=None, window=None):
    """The forward pass is right; queries get no gradient, as with a forgotten residual."""
    return einsums.causal(jax.lax.stop_gradient(q), k, v, prompt, segment_BT, window)


def no_number(q, k, v, prompt=None, segment_BT=None, window=None):
    """Far below zero the gradients are no numbers, as those of a version of cuDNN."""
    out = einsums.causal(q, k, v, prompt, segment_BT, window)
    far = jnp.max(jnp.abs(k)) > 100
    return out * jnp.where(far, jnp.nan, 1.0)


def test_the_form_that_auto_takes(monkeypatch, setup):
    """Within some roundings of the formula, with the run's heads named."""
    record = attention.check(subjects.make())
    assert record.grade == OK and "xla, 2 heads of 16 over 1, float32" in record.text


@pytest.mark.parametrize("wrong", [without_segments, wrong_gradient])
def test_wrong_forms(setup, wrong):
    """The way out is the form of einsums."""
    record = attention.judge(wrong, "cudnn", setup)
    assert record.grade == FAIL and "model.attention=xla" in record.way_out


def test_no_numbers(setup):
    """The line names the case."""
    record = attention.judge(no_number, "cudnn", setup)
    assert record.grade == FAIL and "far below zero" in record.text
