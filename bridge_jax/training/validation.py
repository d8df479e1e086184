"""Evaluation on the held-out splits during training."""

from __future__ import annotations

import functools
import time

import numpy as np

from bridge_jax.data import batches
from bridge_jax.distributed import arrays, multihost
from bridge_jax.evaluation import evaluate
from bridge_jax.training import measured_gain, rollouts
from bridge_jax.training.interrupt import Interrupt
from bridge_jax.types import TrainState


def evaluation(
    sampler: rollouts.StepSampler, state: TrainState, interrupt: Interrupt, book, step: int
) -> dict[str, float]:
    """Greedy accuracy on every held-out split, as in experiments.evaluate.

    With eval.samples also the mean accuracy of so many samples, eval/{split}_sampled_accuracy; with
    eval.measured_gain the metrics of measured_gain.py. The solved problems, and the numbers of
    right samples, go to the logbook. Raises Stopped between two batches after a signal.
    """
    setup, data, programs = sampler.setup, sampler.data, sampler.programs
    s, began, phi = setup.settings, time.monotonic(), programs.policy["theta"](state.params)

    def generate_one(phi, batch: batches.PromptBatch, sample: int | None = None):
        """One completion per prompt: greedy, or the sample with this number."""
        interrupt.check()
        prompt = rollouts.on_mesh(setup.decode_mesh, (batch.prompt_PS, batch.prompt_len_P))
        greedy = sample is None
        keys = programs.eval_keys if greedy else programs.paired_keys(batch.ids_P, np.int32(sample))
        settings = rollouts.sampling(setup, 0.0 if greedy else s.rollout.temperature)
        generate = programs.greedy[batch.prompt_PS.shape[1]]
        with multihost.watchdog("samples of an evaluation"):
            return arrays.device_get(
                "samples of an evaluation", generate(phi, *prompt, keys, settings)
            )

    def correct(generate, split, prompts, too_long):
        scores, transcripts = evaluate.evaluate(
            functools.partial(generate, phi),
            evaluate.Grading(data.task, data.tokenizer, sampler.pool),
            split,
            prompts,
            s.eval.rows,
            setup.buckets,
            too_long,
        )
        solved_ids = (row for row in transcripts if row["outcome"] == evaluate.Outcome.correct)
        return scores, {row["id"] for row in solved_ids}, transcripts

    metrics, solved, records = {}, {}, []
    for split, prompts in data.splits.items():
        problems = data.task.splits.get(split, prompts.problems)[: s.eval.limit or None]
        scores, solved_ids, transcripts = correct(
            generate_one, split, prompts, len(problems) - len(prompts.problems)
        )
        records += [
            {"policy": f"theta, greedy, {split}"} | row
            for row in transcripts[: s.log.eval_problems]
        ]
        metrics |= scores
        solved[split] = "".join(str(int(problem.id in solved_ids)) for problem in problems)
        if s.eval.samples and split in data.task.splits:
            solved_by_sample = [
                correct(functools.partial(generate_one, sample=k), split, prompts, 0)[1]
                for k in range(s.eval.samples)
            ]
            counts = [
                sum(problem.id in solved_ids for solved_ids in solved_by_sample)
                for problem in problems
            ]
            metrics[f"eval/{split}_sampled_accuracy"] = sum(counts) / (
                s.eval.samples * len(problems)
            )
            solved[f"{split}_sampled"] = "".join(map(str, counts))
    with multihost.watchdog("the measured gain"):
        metrics |= measured_gain.measure(sampler, state) if s.eval.measured_gain else {}
    book.write_solved(step, solved)
    if records:
        book.write_rollouts(step, records, "eval")
    return metrics | {"time/eval_s": time.monotonic() - began}
