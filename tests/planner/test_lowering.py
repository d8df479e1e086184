"""Programs of every method are lowered for GPUs and TPUs, without either and without a compiler."""

from __future__ import annotations

import jax
import pytest

from bridge_jax import methods
from bridge_jax.planner import phases
from bridge_jax.training import build
from tests.planner.setups import config

# the module of a custom call that only a CPU's compiler has
OF_CPU = ("lapack_", "__xla_cpu")


@pytest.mark.slow
@pytest.mark.parametrize("method", methods.names())
def test_programs_are_lowered_for_accelerators(method):
    """Sampler, log-probabilities and updates; no call in them belongs to a CPU."""
    given = config(method)
    # methods that pair demonstrations with prompts need one for each
    given.batch.demos_per_step = given.batch.prompts_per_step
    setup = build.make_setup(given, jax.devices()[:8])
    for phase in phases.phases(setup, build.abstract_state(setup)):
        traced = phase.trace()
        for platform in ("cuda", "tpu"):
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            assert "func.func public @main" in text, (phase.name, platform)
            assert not any(name in text for name in OF_CPU), (phase.name, platform)
