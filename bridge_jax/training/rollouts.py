"""What a step asks, samples and grades: rows of the step, sampling in parts, further rounds.

Everything is a function of seed, step and cursors, whatever was done before. A part of the samples
is graded while the next is generated.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bridge_jax.data import batches, packing
from bridge_jax.distributed import multihost, sharding
from bridge_jax.evaluation import evaluate
from bridge_jax.grading.pool import Pool
from bridge_jax.sampling import draw, sampler
from bridge_jax.training.build import RunData, Setup
from bridge_jax.training.programs import Programs
from bridge_jax.types import Batch, BatchSpec, Params, Problem, Rollouts, Sequences


def on_mesh(mesh: jax.sharding.Mesh, tree):
    """Host arrays onto the mesh, rows spread over its data axes."""
    return multihost.place(tree, sharding.of_rows(mesh, tree))


def sampling(setup: Setup, temperature: float) -> draw.Sampling:
    """The traced settings of a sampler."""
    eos_E, limit = jnp.asarray(setup.eos_ids, jnp.int32), jnp.int32(setup.settings.rollout.max_new)
    return draw.Sampling(jnp.float32(temperature), eos_E, limit)


def packed(pack: int, batch: Batch) -> Batch:
    """The batch with up to `pack` samples in each row of a pass; as it is where that is 0."""

    def part(seqs: Sequences) -> Sequences:
        width = seqs.prompt_PS.shape[1] + seqs.tokens_BT.shape[1]
        return seqs.replace(packing=packing.plan(packing.lengths(seqs), width, pack))

    if not pack:
        return batch
    rollouts = {
        name: samples.replace(seqs=part(samples.seqs)) for name, samples in batch.rollouts.items()
    }
    return Batch(part(batch.demos) if batch.demos else None, rollouts)


class Rows(NamedTuple):
    """What a step asks: prompts and demonstrations, padded to their common bucket."""

    step: int  # 0 for the first
    spec: BatchSpec
    bucket: int
    prompts: np.ndarray  # indices of the data's prompts; empty where nothing is sampled
    cursor: int  # of the order of prompts, behind these
    demos: Sequences | None


class Group(NamedTuple):
    """Samples of one policy in one round, on the host."""

    policy: str
    prompts: np.ndarray  # indices
    graded: list[evaluate.Graded]  # of each part


class Sampled(NamedTuple):
    """What a step sampled."""

    rollouts: dict[str, Rollouts]  # what the update reads
    groups: list[Group]  # all that was sampled, further rounds too
    cursor: int  # of the prompts, behind all that were asked
    metrics: dict[str, float]


class StepSampler(NamedTuple):
    """Samples and grades the steps of a run."""

    setup: Setup
    data: RunData
    programs: Programs
    pool: Pool | None  # of a task that makes DeferredComparisons

    def grade(self, problems: list[Problem], samples: sampler.Samples) -> evaluate.Graded:
        """What became of each sample; row b is of problem b // M."""
        return evaluate.grade(self.data.task, self.data.tokenizer, problems, samples, self.pool)

    def rows(self, step: int, cursors: dict[str, int]) -> Rows:
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
            # one that fits the prompts of further rounds, too
            bucket = self.setup.buckets[-1]
        demo_rows = None
        if spec.demos:
            count = s.batch.demos_per_step + s.batch.demo_padding
            demo_rows = batches.demo_batch(data.demos, demos, (bucket,), s.rollout.max_new, count)
        return Rows(step, spec, bucket, prompts, cursors["rl"] + len(prompts), demo_rows)

    def order(self, cursor: int) -> np.ndarray:
        """Indices of the prompts of one round."""
        s = self.setup.settings
        count = len(self.data.prompts.problems)
        return batches.order(s.seed, "rl", count, cursor, s.batch.prompts_per_step)

    def start(self, params: Params, rows: Rows) -> dict[str, list[sampler.Samples]]:
        """Begin to sample the step's prompts by every policy of the step, in parts.

        Waits for nothing.
        """
        return {
            name: self.dispatch(self.programs.policy[name](params), rows, rows.prompts)
            for name in rows.spec.sampled_by
        }

    def dispatch(self, phi, rows: Rows, prompts: np.ndarray) -> list[sampler.Samples]:
        """Begin to sample these prompts with the weights phi."""
        s, parts = self.setup.settings, []
        size = len(prompts) // s.rollout.calls
        how = sampling(self.setup, s.rollout.temperature)
        # a prompt may come twice in a step, at the turn of an epoch: its second group has sample
        # ids of its own
        before = [int(np.sum(prompts[:i] == index)) for i, index in enumerate(prompts)]
        first_P = np.asarray(before, np.int32) * s.batch.samples_per_prompt
        for begin in range(0, len(prompts), size):
            part = slice(begin, begin + size)
            batch = batches.prompt_batch(self.data.prompts, prompts[part], (rows.bucket,))
            keys = self.programs.keys(jnp.int32(rows.step), batch.ids_P, first_P[part])
            asked = on_mesh(self.setup.decode_mesh, (batch.prompt_PS, batch.prompt_len_P))
            # where programs run one by one, this waits for the last one
            with multihost.watchdog(f"the sampler's start in step {rows.step + 1}"):
                samples = self.programs.sample[rows.bucket](phi, *asked, keys, how)
                parts.append(multihost.replicate(samples))
        return parts

    def collect(self, params: Params, rows: Rows, under_way: dict) -> Sampled:
        """Fetch and grade what was started, and sample again in place of groups that teach nothing."""
        began, grading = time.monotonic(), 0.0
        rollouts, groups, cursor = {}, [], rows.cursor
        for name in rows.spec.sampled_by:
            rollouts[name], graded, seconds = self.fetch(rows, rows.prompts, under_way.pop(name))
            groups.append(Group(name, rows.prompts, graded))
            grading += seconds
        metrics = self.metrics(groups[0], rollouts["theta"]) if rollouts else {}
        if rollouts and self.setup.method.resample_rounds:
            # of all that was asked first
            metrics["reward/mean"] = float(rollouts["theta"].reward_B.mean())
            rounds, seconds = self.replace_equal_groups(params, rows, rollouts["theta"])
            groups, grading = groups + rounds, grading + seconds
            cursor += sum(len(group.prompts) for group in rounds)
            metrics["rollout/rounds"] = 1 + len(rounds)
        metrics["time/grade_s"] = grading
        metrics["time/rollout_s"] = time.monotonic() - began - grading
        return Sampled(rollouts, groups, cursor, metrics)

    def fetch(self, rows: Rows, prompts: np.ndarray, parts: list[sampler.Samples]):
        """(Rollouts, [Graded], seconds of grading): each part is graded while the next is
        generated.
        """
        s, graded, grading = self.setup.settings, [], 0.0
        size = len(prompts) // len(parts)
        for part, begin in zip(parts, range(0, len(prompts), size)):
            # waits for this part; the next is already running
            samples = multihost.device_get(f"samples of step {rows.step + 1}", part)
            began = time.monotonic()
            asked = [self.data.prompts.problems[i] for i in prompts[begin : begin + size]]
            graded.append(self.grade(asked, samples))
            grading += time.monotonic() - began
        join = lambda *leaves: np.concatenate(leaves)
        samples = jax.tree.map(join, *(part.samples for part in graded))
        reward_B = join(*(part.reward_B for part in graded))
        ids = [self.data.prompts.problems[i].id for i in prompts]
        reward_B = with_noise(s, reward_B, ids, rows.step)
        temperature = np.float32(s.rollout.temperature)
        return Rollouts(samples.seqs, samples.logp_BT, reward_B, temperature), graded, grading

    def metrics(self, group: Group, rollouts: Rollouts) -> dict[str, float]:
        """What the host reports of theta's samples."""
        length_B = rollouts.seqs.length_B
        found = evaluate.rates([o for part in group.graded for o in part.outcomes])
        found |= {
            "rollout/tokens": int(length_B.sum()),
            "rollout/length": float(length_B.mean()),
            "rollout/stopped": float(np.mean([part.samples.stopped_B for part in group.graded])),
        }
        if self.data.task.stop:
            found["rollout/unread_tokens"] = sum(part.unread for part in group.graded)
        return found

    def replace_equal_groups(
        self, params: Params, rows: Rows, rollouts: Rollouts
    ) -> tuple[list[Group], float]:
        """Replace groups of equal rewards in place by informative ones of the next prompts, in at
        most resample_rounds rounds.

        Returns the rounds and the seconds of grading. Every prompt that is asked moves the cursor,
        used or not, so that the order stays a function of it. What cannot be replaced stays.
        """
        M, rounds, grading = self.setup.settings.batch.samples_per_prompt, [], 0.0
        cursor, phi = rows.cursor, self.programs.policy["theta"](params)
        for _ in range(self.setup.method.resample_rounds):
            R_PM = rollouts.reward_B.reshape(-1, M)
            equal = [p for p in range(len(R_PM)) if R_PM[p].min() == R_PM[p].max()]
            if not equal:
                break
            asked = self.order(cursor)
            cursor += len(asked)
            more, graded, seconds = self.fetch(rows, asked, self.dispatch(phi, rows, asked))
            more_PM = more.reward_B.reshape(-1, M)
            useful = [p for p in range(len(asked)) if more_PM[p].min() != more_PM[p].max()]
            for old, new in zip(equal, useful):
                put(rollouts, old, more, new, M)
            rounds.append(Group("theta", asked, graded))
            grading += seconds
        return rounds, grading

    def sampled_tokens(self, groups: list[Group]) -> dict[str, float]:
        """What sampling took: prompts, each computed once, and completions.

        Of all policies and rounds.
        """
        tokens, graded = self.data.prompts.tokens, [x for group in groups for x in group.graded]
        prompts = sum(len(tokens[i]) for group in groups for i in group.prompts)
        generated = sum(int(part.samples.seqs.length_B.sum()) for part in graded)
        if not groups:
            return {}
        return {
            "budget/prefilled_tokens": float(prompts),
            "budget/generated_tokens": float(generated),
        }

    def transcript(self, groups: list[Group]) -> list[dict]:
        """The step's samples as rows of rollouts/step_*.jsonl."""
        return [row for group in groups for row in self.rows_of_transcript(group)]

    def rows_of_transcript(self, group: Group) -> list[dict]:
        """The samples of one policy in one round."""
        rows, M = [], self.setup.settings.batch.samples_per_prompt
        for part in group.graded:
            seqs = part.samples.seqs
            for b, (text, outcome) in enumerate(zip(part.texts, part.outcomes)):
                problem = self.data.prompts.problems[group.prompts[len(rows) // M]]
                length = seqs.length_B[b]
                rows.append(
                    {
                        "actor": group.policy,
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
    """Each reward flipped with probability rollout.reward_noise, by seed, step and problem alone.

    Outcomes stay what they are.
    """
    p, M = s.rollout.reward_noise, s.batch.samples_per_prompt
    if not p:
        return reward_B
    draws = [np.random.default_rng([s.seed, step, id]).random(M) for id in ids]
    return np.where(np.concatenate(draws) < p, 1.0 - reward_B, reward_B).astype(np.float32)


def put(rollouts: Rollouts, old: int, more: Rollouts, new: int, M: int) -> None:
    """Group `new` of one batch in the place of group `old` of another, in host memory."""
    for leaf, other in zip(jax.tree.leaves(rollouts), jax.tree.leaves(more)):
        if leaf.ndim:
            rows = leaf.shape[0] // (rollouts.reward_B.shape[0] // M)
            leaf[old * rows : (old + 1) * rows] = other[new * rows : (new + 1) * rows]
