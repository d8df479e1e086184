"""Whole runs of a model of 19 thousand parameters on the arithmetic task, for the tests of the loop
and the commands.

Programs are compiled once for all runs that differ only in what does not enter them; such a run
takes a second. The task is graded by the parity of the text's length: an untrained model is never
right, and RL would stand still.
"""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from bridge_jax.grading.outcome import Outcome
from bridge_jax.rundir import checkpoint, logbook
from bridge_jax.tasks import arithmetic
from bridge_jax.training import build, trainer
from configs import base, from_scratch

STEPS = 5
TINY = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    intermediate_size=64,
)
NOT_PROMISED = ("time/", "compile/", "memory/")  # metrics that no two runs share
_programs, _unbroken = {}, {}


def config(method: str = "bridge", **given):
    """configs/from_scratch.py made tiny; given: {"group__key": value}."""
    c = from_scratch.get_config(method)
    c.steps = STEPS
    c.model.arch.update(TINY)
    c.optim.base.learning_rate, c.optim.lora.learning_rate = 1e-2, 3e-3
    c.task.update(dict(levels=(1, 2), weights=(3.0, 1.0), train_size=24, demo_size=12, eval_size=8))
    c.data.buckets = (6,)
    c.rollout.update(dict(max_new=15, calls=2))
    c.batch.update(
        dict(prompts_per_step=2, samples_per_prompt=4, demos_per_step=2, microbatch_rows=8)
    )
    c.eval.update(dict(every=3, rows=8))
    c.checkpoint.update(dict(every=2, keep=9))
    c.log.rollouts_every = 1
    if method == "cold_start":
        c.method.cold_start.sft_steps = 2  # of five
    for path, value in given.items():
        *groups, key = path.split("__")
        place = c
        for group in groups:
            place = place[group]
        with place.ignore_type():  # what a config file may do, if not a command line
            place[key] = value
    return c


def parity(problem, answer: str) -> Outcome:
    """Correct where the answer has an even length."""
    return Outcome.wrong if len(answer) % 2 else Outcome.correct


def whole(text: str) -> str:
    """The text as the answer."""
    return text


def compiled_once(setup, state, demo_logp=False):
    """trainer.compile_programs, remembered for runs whose programs are the same."""
    s = setup.settings
    key = repr(
        (
            s.seed,
            s.method_name,
            s.method,
            s.train,
            s.recipes,
            s.model,
            # what is done with samples once they are fetched
            dataclasses.replace(s.rollout, stop=(), task_stop=True),
            s.batch,
            s.mesh,
            s.max_demo,
            s.eval.rows,
            bool(s.eval.every),
            bool(s.eval.samples),
            setup.buckets,
            setup.mesh,
            demo_logp,
        )
    )
    if key not in _programs:
        _programs[key] = compile_programs(setup, state, demo_logp)
    return _programs[key]


compile_programs = trainer.compile_programs


@pytest.fixture
def quick(monkeypatch):
    """Runs share their programs, and rewards vary."""
    monkeypatch.setattr(trainer, "compile_programs", compiled_once)
    monkeypatch.setattr(arithmetic, "compare", parity)
    monkeypatch.setattr(arithmetic, "after_mark", whole)


@pytest.fixture
def unbroken(quick, tmp_path_factory):
    """Function from a method to the directory of its run of STEPS steps, made once for all
    tests.
    """

    def of(method: str):
        if method not in _unbroken:
            made = tmp_path_factory.mktemp(f"unbroken_{method}")
            assert go(made, method)["step"] == STEPS
            # kept once it is whole: one run that failed fails one test, and the next makes another
            _unbroken[method] = made
        return _unbroken[method]

    return of


def go(workdir, method: str = "bridge", stop_at=None, force=False, **given):
    """train.train of the tiny config on one device."""
    return trainer.train(
        config(method, **given), str(workdir), stop_at, force, base.get_config(), jax.devices()[:1]
    )


def lines(workdir) -> list[dict]:
    """metrics.jsonl without what no two runs share."""
    kept = lambda line: {
        key: value for key, value in line.items() if not key.startswith(NOT_PROMISED)
    }
    return [kept(line) for line in logbook.read(str(workdir))]


def state(workdir, method: str = "bridge", **given) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint by its path: parameters and optimizer states."""
    setup, _ = build.build(config(method, **given), jax.devices()[:1])
    with checkpoint.Checkpoints(str(workdir), read_only=True) as store:
        restored, _ = store.restore(build.abstract_state(setup))
    leaves = jax.tree_util.tree_flatten_with_path(restored)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_run(one, other, method: str = "bridge") -> None:
    """Metrics, transcripts and final state of two run directories are equal, the state bit for
    bit.
    """
    assert lines(one) == lines(other)
    names, expected = (
        sorted(path.name for path in (run / "rollouts").glob("*")) for run in (one, other)
    )
    assert names == expected
    for name in names:
        assert (one / "rollouts" / name).read_text() == (other / "rollouts" / name).read_text(), (
            name
        )
    mine, theirs = state(one, method), state(other, method)
    assert mine.keys() == theirs.keys()
    assert [key for key in mine if mine[key].tobytes() != theirs[key].tobytes()] == []


def rows(path) -> list[dict]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
