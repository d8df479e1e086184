"""docs/logging.md explains every metric that is logged, and none that is not.

The keys of a method are those of its update, traced and not compiled. Those of the host come from
the functions that make them, and from the texts of the files that write them down by name.
"""

from __future__ import annotations

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from bridge_jax import methods, objectives
from bridge_jax.data.batches import Prompts
from bridge_jax.evaluation import evaluate, reading
from bridge_jax.training import budget
from bridge_jax.types import Problem
from tests import toys
from tests.methods import test_conformance as conformance

ROOT = pathlib.Path(__file__).resolve().parent.parent
# settings that add metrics; of each method that has them
ADDING = {"kl_coef", "variant__shadow_rollouts"}
# where the host names metrics: those of a step, of sampling, of evaluation
FILES = ("budget", "measured_gain", "rollouts", "step_log", "validation")
KEY = re.compile(r'f?"([a-z_]+/[a-z_{}A-Z]+)"')


@functools.cache
def explained() -> set[str]:
    """The keys in the first column of the page's tables."""
    page = (ROOT / "docs" / "logging.md").read_text()
    return set(re.findall(r"^\| `([a-z_]+/\w+)` \|", page, flags=re.M))


def on_the_pages() -> tuple[str, ...]:
    """Methods with a line in docs/methods.md; one that was just added may lack it."""
    page = (ROOT / "docs" / "methods.md").read_text()
    there = set(re.findall(r"^\| `(\w+)` \|", page, flags=re.M))
    return tuple(name for name in methods.names() if name in there)


def method_keys(name: str, fields: tuple) -> set[str]:
    """The metrics of every kind of step of a method, on the bigram table."""
    method = conformance.make(name, fields)
    state = jax.eval_shape(method.init, toys.bigram_theta(), jax.random.key(0))
    found: set[str] = set()
    for kind in range(len(method.step_kinds)):
        step = next(step for step in range(300) if method.kind_of_step(step) == kind)
        batch = conformance.make_batch(method, step)
        found |= set(jax.eval_shape(method.update, state, batch)[1])
    return found


@functools.cache
def keys_of_methods() -> frozenset[str]:
    """The metrics of all methods, with their settings that add some, and of gradients by layers."""
    found: set[str] = set()
    for case in conformance.cases():
        name, fields = case.values
        if name in on_the_pages() and {key for key, _ in fields} <= ADDING:
            found |= method_keys(name, fields)
    tree = {"layers": {"x": jnp.ones((3, 2))}, "embed": jnp.ones(2)}
    return frozenset(found | set(objectives.gradient_alignment(tree, tree)))


def evaluation_keys(monkeypatch) -> set[str]:
    """The metrics of a split, of one problem that was solved."""
    row = dict(id=1, outcome="correct", outcome_lenient="correct", tokens=3, stopped=True)
    monkeypatch.setattr(evaluate, "transcribe", lambda *_: [[row]])
    prompts = Prompts((Problem(1, "?", "!", "", 0),), ())
    return set(evaluate.evaluate(None, None, "SPLIT", prompts, 1, ())[0])


def host_keys(monkeypatch) -> set[str]:
    """The metrics that the host adds."""
    found = evaluation_keys(monkeypatch) | set(reading.rates([]))
    found |= set(budget.token_rates({"budget/generated_tokens": 1.0}, 1.0, 1.0))
    for name in FILES:
        text = (ROOT / "bridge_jax" / "training" / f"{name}.py").read_text()
        found |= {re.sub(r"\{split\}|held_out", "SPLIT", key) for key in KEY.findall(text)}
    # patterns by which a key is looked up
    return {key for key in found if "{" not in key}


def test_every_metric_of_a_method_is_explained():
    """Of each method, at its defaults and with the settings that add metrics."""
    assert keys_of_methods() - explained() == set()


def test_every_metric_of_the_host_is_explained(monkeypatch):
    """Of sampling, time, memory and evaluation."""
    assert host_keys(monkeypatch) - explained() == set()


def test_nothing_else_is_explained(monkeypatch):
    """A key on the page is one that is logged."""
    assert explained() - keys_of_methods() - host_keys(monkeypatch) == set()


@pytest.mark.parametrize("group", ["reward", "rl", "sft", "bridge", "budget", "eval", "time"])
def test_every_kind_of_metric_is_collected(monkeypatch, group):
    """The collection above finds something of each group."""
    collected = keys_of_methods() | host_keys(monkeypatch)
    assert any(key.startswith(f"{group}/") for key in collected)
