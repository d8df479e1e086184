"""The paper's three models trace at full size, for every method and step, unallocated."""

from __future__ import annotations

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import pytest

from bridge_jax import methods
from bridge_jax.models import lora, params
from bridge_jax.training import build, settings
from bridge_jax.types import Batch, Rollouts, Sequences

# parameters in each published checkpoint, and in rank-16 LoRA on its seven projections: sum of 16
# (in + out) per layer
PAPER = {
    "qwen25_3b": (
        3_085_938_688,
        16 * 36 * (2048 * 2 + 2 * (2048 + 256) + 2048 * 2 + 3 * (2048 + 11008)),
    ),
    "llama32_3b": (
        3_212_749_824,
        16 * 28 * (3072 * 2 + 2 * (3072 + 1024) + 3072 * 2 + 3 * (3072 + 8192)),
    ),
    "qwen3_8b": (
        8_190_735_360,
        16 * 36 * (4096 * 2 + 2 * (4096 + 1024) + 4096 * 2 + 3 * (4096 + 12288)),
    ),
}


PARTS = {  # method -> what it trains; the shipped ones that train more than theta, and two that must not
    "bridge": {"theta", "theta_hat", "w"},
    "joint": {"theta", "w"},
    "hybrid": {"theta"},
    "grpo": {"theta"},
}


def size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def traced_cases():
    """Every method on every model; beside bridge and grpo on one of them, for `make test-all`."""
    for name in PAPER:
        for method in methods.names():
            quick = name == "qwen25_3b" and method in ("bridge", "grpo")
            yield pytest.param(name, method, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize("name, method", traced_cases())
def test_state_and_step_of_the_papers_models_trace_at_full_size(name, method):
    """The paper's settings give states and updates of the expected shapes."""
    config = importlib.import_module(f"configs.{name}").get_config(method)
    s = settings.read(config, devices=1)
    assert (s.batch.prompts_per_step, s.batch.samples_per_prompt, s.rollout.max_new) == (
        64,
        5,
        3000,
    )
    assert {s.recipes.base.learning_rate, s.recipes.lora.learning_rate} == {5e-7}
    assert (s.model.lora_rank, s.model.lora_alpha) == (16, 16.0)
    cfg, _ = build.read_model(dataclasses.replace(s.model, path=""))
    policy = build.make_policy(
        cfg, s.model, lora.Lora(s.model.lora_rank, s.model.lora_alpha, s.model.lora_targets)
    )
    made = methods.load(method).make(s.method, policy, s.recipes, s.batch.microbatch)

    state = jax.eval_shape(
        made.init, params.abstract(cfg), jax.eval_shape(lambda: jax.random.key(0))
    )
    count, adapter = PAPER[name]
    sizes = {"theta": count, "theta_hat": count, "w": adapter}
    copies = {part: n for part, n in sizes.items() if getattr(state.params, part) is not None}
    assert copies.keys() == PARTS.get(method, copies.keys()) and "theta" in copies
    for part, expected in copies.items():
        assert size(getattr(state.params, part)) == expected, part
    # two Adam moments for each trained number, and a few counters
    assert 0 <= size(state.opt_state) - 2 * sum(copies.values()) < 10

    P, B, S, T = 64, 320, max(s.data.buckets), s.rollout.max_new
    ints, floats = (
        (lambda *d: jax.ShapeDtypeStruct(d, jnp.int32)),
        (lambda *d: jax.ShapeDtypeStruct(d, jnp.float32)),
    )
    rollouts = Rollouts(
        Sequences(ints(P, S), ints(P), ints(B, T), ints(B)), floats(B, T), floats(B), floats()
    )
    D = s.batch.demos_per_step + s.batch.demo_padding
    demos = Sequences(ints(D, S), ints(D), ints(D, T), ints(D))
    for spec in made.step_kinds:
        batch = Batch(demos if spec.demos else None, {"theta": rollouts} if spec.sampled_by else {})
        after, metrics = jax.eval_shape(made.update, state, batch)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
            lambda x: (x.shape, x.dtype), state
        )
        assert all(value.shape == () for value in metrics.values())
