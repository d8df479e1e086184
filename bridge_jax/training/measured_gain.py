"""What cooperation does to a model, measured every eval.every steps where eval.cooperation is set.

    coop/gain                     mean of R(theta) - R(theta_hat) over held-out prompts, both sampled at the training
                                  temperature with the same keys, one sample each, the same ones at every evaluation of a run
    coop/gain_stderr, _low, _high standard error and 95% interval, by the paired differences
    coop/expert_logp              mean log-probability of held-out expert tokens: falls where SFT's knowledge is forgotten
    eval/touched_*, eval/untouched_*   greedy accuracy on training prompts with and without a demonstration (splits of
                                  setup.build); what SFT and RL did to them is the difference from step 0

Left out: gradients and ratios of the step itself, which every step logs (objectives.cooperation, bridge.shared_gain).
"""

from __future__ import annotations

import math

import numpy as np

from bridge_jax.data import batches
from bridge_jax.distributed import multihost
from bridge_jax.evaluation import evaluate, intervals
from bridge_jax.training import rollouts
from bridge_jax.training.build import Run
from bridge_jax.training.programs import Programs
from bridge_jax.types import TrainState


def measured_gain(run: Run, programs: Programs, state: TrainState) -> dict[str, float]:
    """On the first eval.rows problems of the first split; nothing for a method without theta_hat."""
    if state.params.theta_hat is None:
        return {}
    prompts, rows = next(iter(run.splits.values())), run.settings.eval.rows
    asked = list(range(min(rows, len(prompts.problems))))
    batch = batches.prompt_batch(prompts, (asked * rows)[:rows], run.buckets)
    device = rollouts.on_mesh(run, (batch.prompt_PS, batch.prompt_len_P), run.decode_mesh)
    keys = programs.paired_keys(batch.ids_P, np.int32(0))
    rewards = []
    for actor in ("theta", "theta_hat"):
        sample = programs.greedy[batch.prompt_PS.shape[1]]
        temperature = rollouts.sampling(run, run.settings.rollout.temperature)
        samples = sample(programs.policy[actor](state.params), *device, keys, temperature)
        problems = [prompts.problems[i] for i in (asked * rows)[:rows]]
        graded = evaluate.grade(
            run.task,
            run.tokenizer,
            problems,
            multihost.fetch("samples of the gain", samples),
            run.pool,
        )
        rewards.append(graded.reward_B[: len(asked)])
    found, n = intervals.difference_of_models(*rewards), len(asked)
    error = (rewards[0] - rewards[1]).std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
    return {
        "coop/gain": found.mean,
        "coop/gain_stderr": float(error),
        "coop/gain_low": found.low,
        "coop/gain_high": found.high,
    }


def expert_logp(run: Run, programs: Programs, state: TrainState) -> dict[str, float]:
    """On the held-out experts of setup.build; nothing where the task has none."""
    if run.held_out_demos is None:
        return {}
    rows = batches.demo_batch(
        run.held_out_demos,
        np.arange(len(run.held_out_demos.problems)),
        run.buckets[-1:],
        run.settings.rollout.max_new,
        run.settings.eval.rows,
    )
    phi = programs.policy["theta"](state.params)
    found = multihost.fetch(
        "log-probability of experts",
        programs.expert_logp(phi, rollouts.on_mesh(run, rows, run.decode_mesh)),
    )
    return {"coop/expert_logp": float(found)}


def measure(run: Run, programs: Programs, state: TrainState) -> dict[str, float]:
    """All that is not an accuracy of a split."""
    return measured_gain(run, programs, state) | expert_logp(run, programs, state)
