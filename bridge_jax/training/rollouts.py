"""Rollouts of a step: its rows, sampling in parts, grading, re-sampling of uninformative groups.

All results are functions of seed, step and cursors alone. A part of the samples is graded while the
next one is generated.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bridge_jax.data import batches, packing
from bridge_jax.distributed import arrays, multihost, sharding
from bridge_jax.evaluation import reading
from bridge_jax.grading.pool import Pool
from bridge_jax.sampling import draw, sampler
from bridge_jax.training.build import RunData, Setup
from bridge_jax.training.programs import Programs
from bridge_jax.types import Batch, BatchSpec, Params, Problem, Rollouts, Sequences


def on_mesh(mesh: jax.sharding.Mesh, tree):
    """Puts host arrays on the mesh, with rows sharded over its data axes."""
    return arrays.place(tree, sharding.of_rows(mesh, tree))


def sampling(setup: Setup, temperature: float) -> draw.Sampling:
    """The traced settings of a sampler."""
    eos_E, limit = jnp.asarray(setup.eos_ids, jnp.int32), jnp.int32(setup.settings.rollout.max_new)
    return draw.Sampling(jnp.float32(temperature), eos_E, limit)


def pack_batch(pack: int, batch: Batch) -> Batch:
    """The batch with up to `pack` samples packed into each row; unchanged for 0."""

    def part(seqs: Sequences) -> Sequences:
        width = seqs.prompt_PS.shape[1] + seqs.tokens_BT.shape[1]
        return seqs.replace(packing=packing.plan(packing.lengths(seqs), width, pack))

    if not pack:
        return batch
    rollouts = {
        name: samples.replace(seqs=part(samples.seqs)) for name, samples in batch.rollouts.items()
    }
    return Batch(part(batch.demos) if batch.demos else None, rollouts)


class StepRows(NamedTuple):
    """The prompts and demonstrations of a step, padded to their common bucket."""

    step: int  # 0 for the first
    spec: BatchSpec
    bucket: int
    prompts: np.ndarray  # indices into data.prompts; empty where nothing is sampled
    prompt_cursor: int  # position in the order of prompts after these
    demos: Sequences | None
    demo_cursor: int  # position in the order of demonstrations after these


class PolicySamples(NamedTuple):
    """Samples of one policy in one round, on the host."""

    policy: str
    prompts: np.ndarray  # indices
    graded: list[reading.Graded]  # of each part


class Sampled(NamedTuple):
    """The samples of a step."""

    rollouts: dict[str, Rollouts]  # input of the update
    groups: list[PolicySamples]  # all samples, including those of further rounds
    prompt_cursor: int  # position in the order of prompts after all sampled ones
    metrics: dict[str, float]


class StepSampler(NamedTuple):
    """Samples and grades the steps of a run."""

    setup: Setup
    data: RunData
    programs: Programs
    pool: Pool | None  # for a task with DeferredComparisons

    def grade(self, problems: list[Problem], samples: sampler.Samples) -> reading.Graded:
        """Grades samples; row b belongs to problem b // M."""
        return reading.grade(self.data.task, self.data.tokenizer, problems, samples, self.pool)

    def rows(self, step: int, cursors: dict[str, int]) -> StepRows:
        """The step's prompts and demonstrations: a pure function of seed and cursors."""
        s, method, data = self.setup.settings, self.setup.method, self.data
        spec, prompts, demos = method.batch_spec(step), (), ()
        if spec.sampled_by:
            prompts = self.order(cursors["rl"])
        if spec.demos and method.paired:
            demos = prompts
        elif spec.demos:
            demos = batches.order(
                s.seed, "sft", len(data.demos.problems), cursors["sft"], s.batch.demos_per_step
            )
        used = [data.prompts.tokens[i] for i in prompts] + [data.demos.tokens[i] for i in demos]
        bucket = min(b for b in self.setup.buckets if b >= max(map(len, used)))
        if method.resample_rounds:
            # must fit the prompts of further rounds too
            bucket = self.setup.buckets[-1]
        demo_rows = None
        if spec.demos:
            count = s.batch.demos_per_step + s.batch.demo_padding
            demo_rows = batches.demo_batch(data.demos, demos, (bucket,), s.max_demo, count)
        demos_read = s.batch.demos_per_step * spec.demos
        return StepRows(
            step,
            spec,
            bucket,
            prompts,
            prompt_cursor=cursors["rl"] + len(prompts),
            demos=demo_rows,
            demo_cursor=cursors["sft"] + demos_read,
        )

    def order(self, cursor: int) -> np.ndarray:
        """Indices of the prompts of one round."""
        s = self.setup.settings
        count = len(self.data.prompts.problems)
        return batches.order(s.seed, "rl", count, cursor, s.batch.prompts_per_step)

    def start(self, params: Params, rows: StepRows) -> dict[str, list[sampler.Samples]]:
        """Dispatches sampling of the step's prompts by all policies, in parts; does not wait."""
        return {
            name: self.dispatch(self.programs.policy[name](params), rows, rows.prompts)
            for name in rows.spec.sampled_by
        }

    def dispatch(self, phi, rows: StepRows, prompts: np.ndarray) -> list[sampler.Samples]:
        """Dispatches sampling of these prompts with the weights phi."""
        s, parts = self.setup.settings, []
        size = len(prompts) // s.rollout.calls
        how = sampling(self.setup, s.rollout.temperature)
        # At the end of an epoch a prompt may occur twice in a step; its second group then has other
        # sample ids.
        earlier = [int(np.sum(prompts[:i] == index)) for i, index in enumerate(prompts)]
        first_P = np.asarray(earlier, np.int32) * s.batch.samples_per_prompt
        for begin in range(0, len(prompts), size):
            part = slice(begin, begin + size)
            batch = batches.prompt_batch(self.data.prompts, prompts[part], (rows.bucket,))
            keys = self.programs.keys(jnp.int32(rows.step), batch.ids_P, first_P[part])
            prompt = on_mesh(self.setup.decode_mesh, (batch.prompt_PS, batch.prompt_len_P))
            # on devices that run one program at a time this waits for the previous one
            with multihost.watchdog(f"the sampler's start in step {rows.step + 1}"):
                samples = self.programs.sample[rows.bucket](phi, *prompt, keys, how)
                parts.append(arrays.replicate(samples))
        return parts

    def collect(self, params: Params, rows: StepRows, handles: dict) -> Sampled:
        """Fetches and grades the samples; replaces groups of equal rewards if the method does."""
        began, grading = time.monotonic(), 0.0
        rollouts, groups, cursor = {}, [], rows.prompt_cursor
        for name in rows.spec.sampled_by:
            rollouts[name], graded, seconds = self.fetch(rows, rows.prompts, handles.pop(name))
            groups.append(PolicySamples(name, rows.prompts, graded))
            grading += seconds
        metrics = self.metrics(groups[0], rollouts["theta"]) if rollouts else {}
        if rollouts and self.setup.method.resample_rounds:
            # over the first round alone, without replaced groups
            metrics["reward/mean"] = float(rollouts["theta"].reward_B.mean())
            rounds, seconds = self.replace_equal_groups(params, rows, rollouts["theta"])
            groups, grading = groups + rounds, grading + seconds
            cursor += sum(len(group.prompts) for group in rounds)
            metrics["rollout/rounds"] = 1 + len(rounds)
        metrics["time/grade_s"] = grading
        metrics["time/rollout_s"] = time.monotonic() - began - grading
        return Sampled(rollouts, groups, cursor, metrics)

    def fetch(self, rows: StepRows, prompts: np.ndarray, parts: list[sampler.Samples]):
        """(Rollouts, [Graded], seconds of grading) of dispatched parts."""
        s, graded, grading = self.setup.settings, [], 0.0
        size = len(prompts) // len(parts)
        for part, begin in zip(parts, range(0, len(prompts), size)):
            # waits for this part; the next is already running
            samples = arrays.device_get(f"samples of step {rows.step + 1}", part)
            began = time.monotonic()
            problems = [self.data.prompts.problems[i] for i in prompts[begin : begin + size]]
            graded.append(self.grade(problems, samples))
            grading += time.monotonic() - began
        join = lambda *leaves: np.concatenate(leaves)
        samples = jax.tree.map(join, *(part.samples for part in graded))
        reward_B = join(*(part.reward_B for part in graded))
        ids = [self.data.prompts.problems[i].id for i in prompts]
        reward_B = with_noise(s, reward_B, ids, rows.step)
        temperature = np.float32(s.rollout.temperature)
        return Rollouts(samples.seqs, samples.logp_BT, reward_B, temperature), graded, grading

    def metrics(self, group: PolicySamples, rollouts: Rollouts) -> dict[str, float]:
        """The host's metrics of theta's samples."""
        length_B = rollouts.seqs.length_B
        found = reading.rates([o for part in group.graded for o in part.outcomes])
        found |= {
            "rollout/tokens": int(length_B.sum()),
            "rollout/length": float(length_B.mean()),
            "rollout/stopped": float(np.mean([part.samples.stopped_B for part in group.graded])),
        }
        if self.data.task.stop:
            found["rollout/unread_tokens"] = sum(part.unread for part in group.graded)
        return found

    def replace_equal_groups(
        self, params: Params, rows: StepRows, rollouts: Rollouts
    ) -> tuple[list[PolicySamples], float]:
        """Replaces groups of equal rewards in place by groups of the next prompts.

        At most resample_rounds rounds; groups that cannot be replaced stay. Returns the rounds and
        the seconds of grading. Every sampled prompt advances the cursor, used or not, so that the
        order stays a function of the cursor.
        """
        M, rounds, grading = self.setup.settings.batch.samples_per_prompt, [], 0.0
        cursor, phi = rows.prompt_cursor, self.programs.policy["theta"](params)
        for _ in range(self.setup.method.resample_rounds):
            R_PM = rollouts.reward_B.reshape(-1, M)
            equal = [p for p in range(len(R_PM)) if R_PM[p].min() == R_PM[p].max()]
            if not equal:
                break
            prompts = self.order(cursor)
            cursor += len(prompts)
            extra, graded, seconds = self.fetch(rows, prompts, self.dispatch(phi, rows, prompts))
            extra_PM = extra.reward_B.reshape(-1, M)
            useful = [p for p in range(len(prompts)) if extra_PM[p].min() != extra_PM[p].max()]
            for old, new in zip(equal, useful):
                replace_group(rollouts, old, extra, new, M)
            rounds.append(PolicySamples("theta", prompts, graded))
            grading += seconds
        return rounds, grading

    def sampled_tokens(self, groups: list[PolicySamples]) -> dict[str, float]:
        """Token counts of sampling: prompts, each computed once, and completions."""
        tokens, graded = self.data.prompts.tokens, [x for group in groups for x in group.graded]
        prompts = sum(len(tokens[i]) for group in groups for i in group.prompts)
        generated = sum(int(part.samples.seqs.length_B.sum()) for part in graded)
        if not groups:
            return {}
        return {
            "budget/prefilled_tokens": float(prompts),
            "budget/generated_tokens": float(generated),
        }

    def transcript(self, groups: list[PolicySamples]) -> list[dict]:
        """The step's samples as rows of rollouts/step_*.jsonl."""
        return [row for group in groups for row in self.rows_of_transcript(group)]

    def rows_of_transcript(self, group: PolicySamples) -> list[dict]:
        """The samples of one policy in one round."""
        rows, M = [], self.setup.settings.batch.samples_per_prompt
        for part in group.graded:
            seqs = part.samples.seqs
            for b, (text, outcome) in enumerate(zip(part.texts, part.outcomes)):
                problem = self.data.prompts.problems[group.prompts[len(rows) // M]]
                length = seqs.length_B[b]
                rows.append(
                    {
                        "policy": group.policy,
                        "id": problem.id,
                        "level": problem.level,
                        "sample": len(rows) % M,
                        "question": problem.question,
                        "answer": problem.answer,
                        "text": text,
                        "outcome": str(outcome),
                        "stopped": part.samples.stopped_B[b],
                        "ids": seqs.tokens_BT[b, :length],
                        "logp": part.samples.logp_BT[b, :length],
                    }
                )
        return rows


def with_noise(s, reward_B: np.ndarray, ids: list[int], step: int) -> np.ndarray:
    """Rewards, each flipped with probability rollout.reward_noise; outcomes stay unchanged.

    The flips depend on seed, step and problem alone.
    """
    p, M = s.rollout.reward_noise, s.batch.samples_per_prompt
    if not p:
        return reward_B
    draws = [np.random.default_rng([s.seed, step, id]).random(M) for id in ids]
    return np.where(np.concatenate(draws) < p, 1.0 - reward_B, reward_B).astype(np.float32)


def replace_group(rollouts: Rollouts, old: int, extra: Rollouts, new: int, M: int) -> None:
    """Overwrites group `old` of rollouts with group `new` of extra, in host memory."""
    for leaf, other in zip(jax.tree.leaves(rollouts), jax.tree.leaves(extra)):
        if leaf.ndim:
            rows = leaf.shape[0] // (rollouts.reward_B.shape[0] // M)
            leaf[old * rows : (old + 1) * rows] = other[new * rows : (new + 1) * rows]
