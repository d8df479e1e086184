"""The samples of a step: which prompts, what is recorded of them, what is counted."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest

from bridge_jax.data import batches
from bridge_jax.rundir import logbook
from bridge_jax.training import build, settings
from bridge_jax.training.rollouts import StepRows, StepSampler, with_noise
from bridge_jax.types import Rollouts, Sequences
from tests import tiny_runs
from tests.tiny_runs import go, quick, unbroken  # noqa: F401 (fixtures)


def test_rollout_files_are_complete(quick, unbroken):
    """Every sample with its prompt, ids, behaviour log-probabilities and outcome; the mean reward
    is theirs.
    """
    _, data = build.build(tiny_runs.config(), jax.devices()[:1])
    for line in logbook.read(str(unbroken("bridge")))[1:]:
        rows = tiny_runs.rows(unbroken("bridge") / "rollouts" / f"step_{line['step']:06d}.jsonl")
        drawn = batches.order(0, "rl", len(data.prompts.problems), 2 * (line["step"] - 1), 2)
        asked = [data.prompts.problems[i].id for i in drawn]
        assert [(row["id"], row["sample"]) for row in rows] == [
            (id, sample) for id in asked for sample in range(4)
        ]
        known = {problem.id: problem for problem in data.task.train}
        for row in rows:
            problem = known[row["id"]]
            assert (row["question"], row["answer"], row["level"]) == (
                problem.question,
                problem.answer,
                problem.level,
            )
            assert (
                row["text"] == data.tokenizer.decode(row["ids"])
                and len(row["logp"]) == len(row["ids"]) > 0
            )
            assert (
                row["stopped"] == (row["ids"][-1] == 0)
                and max(row["logp"]) <= 0
                and row["policy"] == "theta"
            )
            assert row["outcome"] == tiny_runs.parity(problem, row["text"])
        assert np.mean([row["outcome"] == "correct" for row in rows]) == line["reward/mean"]
        assert sum(len(row["ids"]) for row in rows) == line["rollout/tokens"]


@pytest.mark.slow
def test_own_shadow_rollouts_are_counted(quick, tmp_path):
    """theta_hat samples too: its tokens are generated and pass backward once, like theta's."""
    go(tmp_path, method__bridge__variant__shadow_rollouts="own", steps=2, eval__every=0)
    rows = tiny_runs.rows(tmp_path / "rollouts" / "step_000002.jsonl")
    assert [row["policy"] for row in rows] == ["theta"] * 8 + ["theta_hat"] * 8
    last = logbook.read(str(tmp_path))[-1]
    sampled = [
        sum(len(row["ids"]) for row in tiny_runs.rows(file))
        for file in (tmp_path / "rollouts").glob("step_*")
    ]
    assert last["budget/generated_tokens"] == sum(sampled)
    assert last["budget/gradient_tokens"] == sum(sampled) + last["budget/demo_tokens"]


@pytest.mark.slow
def test_a_prompt_that_comes_twice_in_a_step_gets_other_samples(quick, tmp_path):
    """Three problems for eight prompts a step: equal prompts, different samples, whatever part of
    the step they are in.
    """
    go(tmp_path, "grpo", steps=1, eval__every=0, batch__prompts_per_step=8, task__train_size=3)
    rows = tiny_runs.rows(tmp_path / "rollouts" / "step_000001.jsonl")
    groups = [tuple(tuple(row["ids"]) for row in rows[i : i + 4]) for i in range(0, 32, 4)]
    assert len({row["id"] for row in rows}) == 3 and len(set(groups)) == 8


def test_equal_groups_are_replaced(monkeypatch):
    """Groups 0 and 2 are equal: the useful group of the next prompts takes the first place, none is
    left for the second.
    """
    setup, data = build.build(
        tiny_runs.config(
            "dapo",
            batch__prompts_per_step=3,
            batch__microbatch_rows=4,
            rollout__calls=1,
            method__dapo__resample_rounds=1,
        ),
        jax.devices()[:1],
    )
    rows = lambda first, reward: Rollouts(
        Sequences(
            np.full((3, 4), first), np.arange(3) + first, np.full((12, 5), first), np.full(12, 5)
        ),
        np.full((12, 5), float(first)),
        np.asarray(reward, np.float32),
        np.float32(1),
    )
    here, more = (
        rows(10, [1] * 4 + [1, 0, 0, 0] + [0] * 4),
        rows(20, [0] * 4 + [0, 1, 0, 0] + [1] * 4),
    )
    asked = []
    monkeypatch.setattr(StepSampler, "dispatch", lambda self, phi, rows, prompts: prompts)
    monkeypatch.setattr(
        StepSampler,
        "fetch",
        lambda self, rows, prompts, parts: asked.append(list(prompts)) or (more, ["graded"], 0.5),
    )
    programs = types.SimpleNamespace(policy={"theta": lambda params: None})
    step_sampler = StepSampler(setup, data, programs, None)
    step = StepRows(4, setup.method.batch_spec(4), 6, np.arange(3), 9, None, 0)
    rounds, seconds = step_sampler.replace_equal_groups(None, step, here)
    assert seconds == 0.5 and [list(group.prompts) for group in rounds] == asked
    assert asked == [list(batches.order(0, "rl", len(data.prompts.problems), 9, 3))]
    np.testing.assert_array_equal(here.reward_B, [0, 1, 0, 0] + [1, 0, 0, 0] + [0] * 4)
    np.testing.assert_array_equal(here.seqs.prompt_PS[:, 0], [20, 10, 10])
    np.testing.assert_array_equal(here.seqs.prompt_len_P, [21, 11, 12])
    np.testing.assert_array_equal(here.logp_BT[:, 0], [20] * 4 + [10] * 8)


def test_reward_noise():
    """A fifth of the rewards flips, by seed, step and problem alone; none without it."""
    of = lambda p: settings.read(
        tiny_runs.config("grpo", rollout__reward_noise=p, batch__samples_per_prompt=4), 1
    )
    s, ids, R = of(0.2), list(range(20)) * 25, np.zeros(2000, np.float32)
    flipped = with_noise(s, R, ids, 3)
    assert set(flipped.tolist()) == {0.0, 1.0} and flipped.dtype == np.float32
    steps = [with_noise(s, np.zeros(80, np.float32), list(range(20)), step) for step in range(50)]
    assert abs(np.concatenate(steps).mean() - 0.2) < 0.03
    # the same problems at the same step
    np.testing.assert_array_equal(flipped[:80], flipped[80:160])
    np.testing.assert_array_equal(with_noise(s, 1 - R, ids, 3), 1 - flipped)
    assert not np.array_equal(with_noise(s, R, ids, 4), flipped)
    np.testing.assert_array_equal(with_noise(of(0.0), R, ids, 3), R)
