"""What evaluation measures of cooperation, in a whole tiny run and against what it must be."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bridge_jax.evaluation import reading
from bridge_jax.rundir import logbook
from bridge_jax.training import build, measured_gain, rollouts, trainer
from bridge_jax.training.programs import compile_programs
from bridge_jax.types import Params
from tests import tiny_runs


@pytest.fixture(scope="module")
def made():
    """The sampler of a run of bridge, and a state."""
    config = tiny_runs.config("bridge", eval__measured_gain=True, task__demo_size=6)
    setup, data = build.build(config, jax.devices()[:1])
    programs = compile_programs(setup, build.abstract_state(setup), demo_logp=True)
    state = setup.method.init(build.initial_theta(setup), jax.random.key(0))
    return rollouts.StepSampler(setup, data, programs, None), state


@pytest.mark.slow
def test_splits(made):
    """Prompts with a demonstration, and without; disjoint, and both of the training set."""
    setup, data = made[0].setup, made[0].data
    ids = {
        name: {problem.id for problem in data.splits[name].problems}
        for name in ("touched", "untouched", "held_out")
    }
    assert (
        ids["touched"] <= {problem.id for problem in data.task.demos}
        and not ids["touched"] & ids["untouched"]
    )
    assert (
        ids["touched"] | ids["untouched"] <= {problem.id for problem in data.task.train}
        and not ids["held_out"] & ids["touched"]
    )
    assert len(ids["touched"]) == 6 and len(ids["untouched"]) == setup.settings.eval.rows


@pytest.mark.slow
def test_gain_is_paired(made, monkeypatch):
    """theta_hat == theta: exactly 0, with error 0, as both have the same keys; by hand with others.

    That eight answers are equal still leaves 1 - .025^(1/8) of the problems on which they may
    differ.
    """
    sampler, state = made
    unseen = 1 - 0.025 ** (1 / 8)
    assert measured_gain.measured_gain(sampler, state) == pytest.approx(
        {
            "measured_gain/gain": 0.0,
            "measured_gain/gain_stderr": 0.0,
            "measured_gain/gain_low": -unseen,
            "measured_gain/gain_high": unseen,
        }
    )
    rewards = iter([np.array([1, 1, 0, 1, 0, 0, 1, 0.0]), np.array([1, 0, 0, 0, 0, 1, 0, 0.0])])

    class Known:
        def __init__(self):
            self.reward_B = next(rewards)

    monkeypatch.setattr(rollouts.StepSampler, "grade", lambda *_: Known())
    found = measured_gain.measured_gain(sampler, state)
    difference = np.array([0, 1, 0, 1, 0, -1, 1, 0])
    assert found["measured_gain/gain"] == pytest.approx(difference.mean())
    error = np.sqrt(((difference - 0.25) ** 2).sum() / 7 / 8)
    assert found["measured_gain/gain_stderr"] == pytest.approx(error)
    assert found["measured_gain/gain_high"] == pytest.approx(
        0.25 + 2.364624 * error
    )  # Student's t, 7 degrees of freedom, by a table
    assert found["measured_gain/gain_low"] == pytest.approx(0.25 - 2.364624 * error)
    assert (
        measured_gain.measured_gain(
            sampler, state.replace(params=Params(state.params.theta, None, None))
        )
        == {}
    )


@pytest.mark.slow
def test_gain_is_of_held_out_prompts_sampled_as_in_training(made, monkeypatch):
    """What is graded are problems of held_out, and answers drawn at rollout.temperature, other than
    the greedy ones.
    """
    sampler, state = made
    settings = sampler.setup.settings
    seen, temperatures, factor = [], [], 1.0
    grade, sampling = reading.grade, rollouts.sampling

    def graded(task, tokenizer, problems, samples, pool):
        seen.append(({problem.id for problem in problems}, np.asarray(samples.seqs.tokens_BT)))
        return grade(task, tokenizer, problems, samples, pool)

    def sampled(setup, temperature):
        temperatures.append(temperature)
        return sampling(setup, factor * temperature)

    monkeypatch.setattr(reading, "grade", graded)
    monkeypatch.setattr(measured_gain.rollouts, "sampling", sampled)
    measured_gain.measured_gain(sampler, state)
    factor = 0.0
    measured_gain.measured_gain(sampler, state)
    held_out = {
        problem.id for problem in sampler.data.splits["held_out"].problems[: settings.eval.rows]
    }
    assert len(seen) == 4 and all(asked == held_out for asked, _ in seen)
    assert set(temperatures) == {settings.rollout.temperature} and settings.rollout.temperature > 0
    np.testing.assert_array_equal(seen[0][1], seen[1][1])  # theta_hat is theta, and has its keys
    assert (seen[0][1] != seen[2][1]).any()


@pytest.mark.slow
def test_demo_logp(made):
    """The mean over the tokens of held-out demos, as the policy computes it."""
    sampler, state = made
    from bridge_jax.data import batches

    setup, demos = sampler.setup, sampler.data.held_out_demos
    rows = batches.demo_batch(
        demos, np.arange(len(demos.problems)), setup.buckets[-1:], setup.settings.rollout.max_new
    )
    assert {problem.id for problem in demos.problems} <= {
        problem.id for problem in sampler.data.task.splits["held_out"]
    }
    phi = setup.policy.merge(state.params.theta, state.params.w)
    logp_BT = np.asarray(setup.policy.logp(phi, rollouts.on_mesh(setup.mesh, rows), 1.0)[0])
    kept = np.arange(logp_BT.shape[1]) < np.asarray(rows.length_B)[:, None]
    assert measured_gain.demo_logp(sampler, state)["eval/demo_logp"] == pytest.approx(
        logp_BT[kept].mean(), rel=1e-4
    )


@pytest.mark.slow
def test_in_a_run(tmp_path):
    """Every evaluation has it, nothing else does, and nothing compiles for it once training is
    under way.
    """
    trainer.train(
        tiny_runs.config("bridge", steps=4, eval__every=2, eval__measured_gain=True),
        str(tmp_path),
        devices=jax.devices()[:1],
    )
    lines = logbook.read(str(tmp_path))
    keys = {
        "measured_gain/gain",
        "measured_gain/gain_low",
        "eval/demo_logp",
        "eval/touched_accuracy",
    }
    assert [keys <= set(line) for line in lines] == [True, False, True, False, True]
    assert (
        lines[0]["measured_gain/gain"] == 0
        and lines[-1]["compile/count"] == lines[1]["compile/count"]
    )
    solved = (tmp_path / "solved.jsonl").read_text().splitlines()
    assert len(solved) == 3 and '"held_out"' in solved[0]
