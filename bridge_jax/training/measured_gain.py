"""What cooperation does to a model, measured every eval.every steps where eval.cooperation is set.

    coop/gain                     mean of R(theta) - R(theta_hat) over held-out prompts, both sampled at the training
                                  temperature with the same keys, one sample each, the same ones at every evaluation of a run
    coop/gain_stderr, _low, _high standard error and 95% interval, by the paired differences
    coop/expert_logp              mean log-probability of held-out expert tokens: falls where SFT's knowledge is forgotten
    eval/touched_*, eval/untouched_*   greedy accuracy on training prompts with and without a demonstration (splits of
                                  build.touched_and_not); what SFT and RL did to them is the difference from step 0

Left out: gradients and ratios of the step itself, which every step logs
(objectives.gradient_alignment, objectives.shared_gain).
"""

from __future__ import annotations

import math

import numpy as np

from bridge_jax.data import batches
from bridge_jax.distributed import multihost
from bridge_jax.evaluation import intervals
from bridge_jax.training import rollouts
from bridge_jax.training.rollouts import StepSampler
from bridge_jax.types import TrainState


def measured_gain(sampler: StepSampler, state: TrainState) -> dict[str, float]:
    """On the first eval.rows problems of the first split.

    Nothing for a method without theta_hat.
    """
    if state.params.theta_hat is None:
        return {}
    setup, data, programs = sampler.setup, sampler.data, sampler.programs
    prompts, rows = next(iter(data.splits.values())), setup.settings.eval.rows
    asked = list(range(min(rows, len(prompts.problems))))
    batch = batches.prompt_batch(prompts, (asked * rows)[:rows], setup.buckets)
    device = rollouts.on_mesh(setup.decode_mesh, (batch.prompt_PS, batch.prompt_len_P))
    keys = programs.paired_keys(batch.ids_P, np.int32(0))
    rewards = []
    for actor in ("theta", "theta_hat"):
        sample = programs.greedy[batch.prompt_PS.shape[1]]
        temperature = rollouts.sampling(setup, setup.settings.rollout.temperature)
        samples = sample(programs.policy[actor](state.params), *device, keys, temperature)
        problems = [prompts.problems[i] for i in (asked * rows)[:rows]]
        graded = sampler.grade(problems, multihost.device_get("samples of the gain", samples))
        rewards.append(graded.reward_B[: len(asked)])
    found, n = intervals.difference_of_models(*rewards), len(asked)
    error = (rewards[0] - rewards[1]).std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
    return {
        "coop/gain": found.mean,
        "coop/gain_stderr": float(error),
        "coop/gain_low": found.low,
        "coop/gain_high": found.high,
    }


def expert_logp(sampler: StepSampler, state: TrainState) -> dict[str, float]:
    """On the held-out demos of build.read_data; nothing where the task has none."""
    setup, demos, programs = sampler.setup, sampler.data.held_out_demos, sampler.programs
    if not demos.problems:
        return {}
    s, bucket = setup.settings, setup.buckets[-1]
    every = np.arange(len(demos.problems))
    rows = batches.demo_batch(demos, every, (bucket,), s.rollout.max_new, s.eval.rows)
    phi = programs.policy["theta"](state.params)
    found = programs.demo_logp[bucket](phi, rollouts.on_mesh(setup.decode_mesh, rows))
    return {"coop/expert_logp": float(multihost.device_get("log-probability of demos", found))}


def measure(sampler: StepSampler, state: TrainState) -> dict[str, float]:
    """All that is not an accuracy of a split."""
    return measured_gain(sampler, state) | expert_logp(sampler, state)
