"""The measured cooperative gain, every eval.every steps where eval.measured_gain is set.

    measured_gain/gain    mean of R(theta) - R(theta_hat) over held-out prompts, with one sample
                          each at the training temperature, from the same random keys for both
                          policies and at every evaluation of a run
    measured_gain/gain_stderr, _low, _high    standard error and 95% interval of the paired
                          differences
    eval/demo_logp        mean log-probability of the tokens of held-out demos: falls where the
                          policy forgets what SFT taught it
    eval/touched_*, eval/untouched_*    greedy accuracy on training prompts with and without a
                          demonstration (build.split_by_demos)

Left out: gradients and importance ratios, which every step logs (objectives.gradient_alignment,
objectives.shared_gain).
"""

from __future__ import annotations

import math

import numpy as np

from bridge_jax.data import batches
from bridge_jax.distributed import arrays
from bridge_jax.evaluation import intervals
from bridge_jax.training import rollouts
from bridge_jax.training.rollouts import StepSampler
from bridge_jax.types import TrainState


def measured_gain(sampler: StepSampler, state: TrainState) -> dict[str, float]:
    """The gain on the first eval.rows problems of the first split; {} without theta_hat."""
    if state.params.theta_hat is None:
        return {}
    setup, data, programs = sampler.setup, sampler.data, sampler.programs
    prompts, rows = next(iter(data.splits.values())), setup.settings.eval.rows
    indices = list(range(min(rows, len(prompts.problems))))
    batch = batches.prompt_batch(prompts, (indices * rows)[:rows], setup.buckets)
    device = rollouts.on_mesh(setup.decode_mesh, (batch.prompt_PS, batch.prompt_len_P))
    keys = programs.paired_keys(batch.ids_P, np.int32(0))
    rewards = []
    for name in ("theta", "theta_hat"):
        sample = programs.greedy[batch.prompt_PS.shape[1]]
        temperature = rollouts.sampling(setup, setup.settings.rollout.temperature)
        samples = sample(programs.policy[name](state.params), *device, keys, temperature)
        problems = [prompts.problems[i] for i in (indices * rows)[:rows]]
        graded = sampler.grade(problems, arrays.device_get("samples of the gain", samples))
        rewards.append(graded.reward_B[: len(indices)])
    found, n = intervals.difference_of_models(*rewards), len(indices)
    error = (rewards[0] - rewards[1]).std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
    return {
        "measured_gain/gain": found.mean,
        "measured_gain/gain_stderr": float(error),
        "measured_gain/gain_low": found.low,
        "measured_gain/gain_high": found.high,
    }


def demo_logp(sampler: StepSampler, state: TrainState) -> dict[str, float]:
    """The log-probability of held-out demos (build.read_data); {} where the task has none."""
    setup, demos, programs = sampler.setup, sampler.data.held_out_demos, sampler.programs
    if not demos.problems:
        return {}
    s, bucket = setup.settings, setup.buckets[-1]
    every = np.arange(len(demos.problems))
    rows = batches.demo_batch(demos, every, (bucket,), s.max_demo, s.eval.rows)
    phi = programs.policy["theta"](state.params)
    found = programs.demo_logp[bucket](phi, rollouts.on_mesh(setup.decode_mesh, rows))
    return {"eval/demo_logp": float(arrays.device_get("log-probability of demos", found))}


def measure(sampler: StepSampler, state: TrainState) -> dict[str, float]:
    """All of these metrics except for the accuracies of splits."""
    return measured_gain(sampler, state) | demo_logp(sampler, state)
