"""Alternation takes a step of GRPO, then one of SFT."""

from __future__ import annotations

import jax

from bridge_jax.types import Batch
from tests import toys
from tests.methods.by_hand import made, run


def test_alternate_is_grpo_then_sft():
    """Bit for bit: step 0 is grpo's, step 1 is what sft makes of that state; and so on."""
    method, states = run("alternate", 2)
    assert [method.batch_spec(step) for step in range(4)] == [(("theta",), False), ((), True)] * 2
    assert toys.same_bits(states[0], run("grpo", 1)[1][0])
    sft = made("sft", toys.recipes(0.1, 0.1))
    after, _ = jax.jit(sft.update)(states[0], Batch(toys.batch(1, vocab=toys.V).demos, {}))
    assert toys.same_bits(states[1], after)
