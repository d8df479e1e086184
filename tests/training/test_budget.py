"""FLOPs equal XLA's count and numbers by hand; seconds in a pause do not count."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from bridge_jax.models import layers, params
from bridge_jax.training import budget
from bridge_jax.types import Sequences
from tests import toys


def test_matrix_weights_by_hand():
    """Attention 4 matrices (4 heads, 2 kv heads of width 8), mlp 3, for 2 layers, and the tied
    embedding once.
    """
    per_layer = 16 * 4 * 8 + 2 * 16 * 2 * 8 + 4 * 8 * 16 + 3 * 16 * 24
    assert budget.matrix_weights(toys.CFG) == 2 * per_layer + 32 * 16


def test_step_by_hand():
    """10 prefilled, 20 generated, 30 + 12 tokens through a backward pass: 2 W and 4 L N H context
    each, thrice backward; prompts without the head.
    """
    W, head, attended = budget.matrix_weights(toys.CFG), 32 * 16, 4 * 2 * 4 * 8
    spent = {
        "budget/prefilled_tokens": 10,
        "budget/generated_tokens": 20,
        "budget/gradient_tokens": 30,
        "budget/gradient_prompt_tokens": 12,
    }
    expected = (10 + 36) * (2 * (W - head) + attended * 3) + (20 + 90) * (
        2 * W + attended * (6 + 4)
    )
    assert budget.step_flops(toys.CFG, spent, prompt=6.0, completion=8.0) == pytest.approx(expected)


def test_token_rates_by_hand():
    """20 tokens in 4 s of sampling; 30 + 12 through backward passes and 8 forward alone in 2 s;
    without samples one rate alone.
    """
    spent = {
        "budget/prefilled_tokens": 10,
        "budget/generated_tokens": 20,
        "budget/gradient_tokens": 30,
        "budget/gradient_prompt_tokens": 12,
        "budget/forward_tokens": 8,
        "budget/demo_tokens": 5,
    }
    assert budget.token_rates(spent, rollout_s=4.0, update_s=2.0) == {
        "time/rollout_tokens_per_s": 5.0,
        "time/update_tokens_per_s": 25.0,
    }
    assert budget.token_rates({"budget/gradient_tokens": 6}, 0.0, 2.0) == {
        "time/update_tokens_per_s": 3.0
    }


def test_against_the_compiler():
    """One layer (XLA counts a loop's body once), 8 rows of 48 tokens behind 16: within 10% of what
    XLA counts for the pass.
    """
    cfg = toys.qwen3.Config(**{**toys.CFG.__dict__, "layers": 1, "width": 64, "mlp": 192})
    ints = lambda *shape: jnp.ones(shape, jnp.int32)
    seqs = Sequences(ints(8, 16), 16 * ints(8), ints(8, 48), 48 * ints(8))
    theta = params.abstract(cfg)

    def logits(theta):
        return layers.forward(cfg, theta, seqs) @ layers.head_weights(cfg, theta).T

    counted = jax.jit(logits).lower(theta).compile().cost_analysis()["flops"]
    # attention is computed in full, and masked: every completion token against all 64 positions,
    # every prompt token against 16
    ours = budget.forward_flops(cfg, 8 * 48, 64) + budget.forward_flops(cfg, 8 * 16, 16, head=False)
    assert ours == pytest.approx(counted, rel=0.1)


class Clock:
    """The clock of `budget.time`, which the test moves: one second of work takes half a second of
    the processor.
    """

    def __init__(self):
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds

    def process_time(self) -> float:
        return self.seconds / 2


@pytest.fixture
def clock(monkeypatch):
    """Moved by hand, so that no outcome hangs on the machine's load."""
    moved = Clock()
    monkeypatch.setattr(budget, "time", moved)
    return moved


def test_meter_goes_on_from_an_earlier_process_and_leaves_pauses_out(clock):
    """Wall time adds to that of the earlier process; a pause counts nowhere."""
    meter = budget.Meter({"time/wall_s": 5.0})
    clock.seconds += 2
    with meter.paused():
        clock.seconds += 30
    clock.seconds += 1
    assert meter.read() == {"time/wall_s": 8.0, "time/cpu_s": 1.5}


def test_what_is_read_in_a_pause_is_what_was_spent_before(clock):
    """A checkpoint is saved in a pause: what a run spent must not stand in it twice."""
    meter = budget.Meter({})
    clock.seconds += 2
    with meter.paused():
        saved = meter.read()
        clock.seconds += 2
        assert meter.read() == saved == {"time/wall_s": 2.0, "time/cpu_s": 1.0}
    assert meter.read() == saved


def test_peak_memory():
    """The peak of this process's memory is reported in GiB."""
    assert 0.05 < budget.peak_memory()["memory/host_peak_gib"] < 100
