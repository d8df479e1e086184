"""What a step asks, samples and grades, called by loop.py: rows of the step, sampling in parts, further rounds.

Everything is a function of seed, step and cursors, whatever was done before. A part is graded while the next is generated.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np

from bridge_jax.data import batches, packing
from bridge_jax.distributed import multihost, sharding
from bridge_jax.evaluation import evaluate
from bridge_jax.sampling import sampler
from bridge_jax.training.build import Run
from bridge_jax.training.programs import Programs
from bridge_jax.types import Batch, BatchSpec, Rollouts, Sequences


def on_mesh(run: Run, tree, mesh: jax.sharding.Mesh | None = None):
    """Host arrays onto the mesh (default: the one that trains), rows spread over its data axes."""
    return multihost.place(tree, sharding.of_rows(mesh or run.mesh, tree))


def sampling(run: Run, temperature: float) -> sampler.Sampling:
    """The traced settings of a sampler."""
    eos_E, limit = (
        jnp.asarray(run.tokenizer.eos_ids, jnp.int32),
        jnp.int32(run.settings.rollout.max_new),
    )
    return sampler.Sampling(jnp.float32(temperature), eos_E, limit)


def packed(run: Run, batch: Batch) -> Batch:
    """The batch with each of its parts packed, where batch.pack says so."""

    def part(seqs: Sequences) -> Sequences:
        width = seqs.prompt_PS.shape[1] + seqs.tokens_BT.shape[1]
        return seqs.replace(
            packing=packing.plan(packing.lengths(seqs), width, run.settings.batch.pack)
        )

    if not run.settings.batch.pack:
        return batch
    return Batch(
        part(batch.demos) if batch.demos else None,
        {
            actor: samples.replace(seqs=part(samples.seqs))
            for actor, samples in batch.rollouts.items()
        },
    )


def rows_of_step(run: Run, spec: BatchSpec, cursors: dict[str, int]):
    """The step's prompts and demonstrations, padded to their common bucket: a pure function of seed and cursors."""
    s, prompts, demos = run.settings, (), ()
    if spec.sampled_by:
        prompts = batches.order(
            s.seed, "rl", len(run.prompts.problems), cursors["rl"], s.batch.prompts_per_step
        )
    if spec.demos and run.method.paired:
        demos = prompts
    elif spec.demos:
        demos = batches.order(
            s.seed, "sft", len(run.demos.problems), cursors["sft"], s.batch.demos_per_step
        )
    used = [run.prompts.tokens[i] for i in prompts] + [run.demos.tokens[i] for i in demos]
    bucket = min(b for b in run.buckets if b >= max(map(len, used)))
    bucket = (
        run.buckets[-1] if run.method.resample_rounds else bucket
    )  # one that fits the prompts of further rounds, too
    demo_rows = (
        batches.demo_batch(
            run.demos,
            demos,
            (bucket,),
            s.rollout.max_new,
            s.batch.demos_per_step + s.batch.demo_padding,
        )
        if spec.demos
        else None
    )
    return bucket, prompts, demo_rows


def dispatch(
    run: Run, programs: Programs, phi, step: int, bucket: int, indices
) -> list[sampler.Samples]:
    """Begin to sample the step's prompts, in parts; waits for nothing."""
    s, parts, size = run.settings, [], len(indices) // run.settings.rollout.calls
    # a prompt may come twice in a step, at the turn of an epoch: its second group has sample ids of its own
    before = [int(np.sum(indices[:i] == index)) for i, index in enumerate(indices)]
    first_P = np.asarray(before, np.int32) * s.batch.samples_per_prompt
    for start in range(0, len(indices), size):
        batch = batches.prompt_batch(run.prompts, indices[start : start + size], (bucket,))
        keys = programs.keys(jnp.int32(step), batch.ids_P, first_P[start : start + size])
        prompts = on_mesh(run, (batch.prompt_PS, batch.prompt_len_P), run.decode_mesh)
        with multihost.waiting(
            f"the sampler's start in step {step + 1}"
        ):  # where programs run one by one, it waits for the last
            parts.append(
                multihost.whole(
                    programs.sample[bucket](
                        phi, *prompts, keys, sampling(run, s.rollout.temperature)
                    )
                )
            )
    return parts


def collect(
    run: Run, parts: list[sampler.Samples], indices, step: int
) -> tuple[Rollouts, list[evaluate.Graded], float]:
    """Fetch the parts and grade each while the next is generated; also the seconds of grading."""
    s, size, graded, grading = run.settings, len(indices) // len(parts), [], 0.0
    for part, start in zip(parts, range(0, len(indices), size)):
        samples = multihost.fetch(
            f"samples of step {step + 1}", part
        )  # waits for this part; the next is already running
        began = time.monotonic()
        asked = [run.prompts.problems[i] for i in indices[start : start + size]]
        graded.append(evaluate.grade(run.task, run.tokenizer, asked, samples, run.pool))
        grading += time.monotonic() - began
    join = lambda *leaves: np.concatenate(leaves)
    samples = jax.tree.map(join, *(part.samples for part in graded))
    reward_B = with_noise(run, join(*(part.reward_B for part in graded)), indices, step)
    return (
        Rollouts(samples.seqs, samples.logp_BT, reward_B, np.float32(s.rollout.temperature)),
        graded,
        grading,
    )


def with_noise(run: Run, reward_B: np.ndarray, indices, step: int) -> np.ndarray:
    """Each reward flipped with probability rollout.reward_noise, by seed, step and problem alone; outcomes stay what they are."""
    p, M = run.settings.rollout.reward_noise, run.settings.batch.samples_per_prompt
    if not p:
        return reward_B
    draws = [
        np.random.default_rng([run.settings.seed, step, run.prompts.problems[i].id]).random(M)
        for i in indices
    ]
    return np.where(np.concatenate(draws) < p, 1.0 - reward_B, reward_B).astype(np.float32)


def replace_equal_groups(
    run: Run, programs: Programs, phi, step: int, bucket: int, cursor: int, rollouts: Rollouts
):
    """Replace groups of equal rewards in place by informative ones of the next prompts, in at most method.resample_rounds rounds.

    Returns (cursor, [(indices, graded) of each round], seconds of grading); every prompt asked moves the cursor, used or not, so
    that the order stays a function of it. What cannot be replaced stays.
    """
    s, M, rounds, grading = run.settings, run.settings.batch.samples_per_prompt, [], 0.0
    for _ in range(run.method.resample_rounds):
        R_PM = rollouts.reward_B.reshape(-1, M)
        equal = [p for p in range(len(R_PM)) if R_PM[p].min() == R_PM[p].max()]
        if not equal:
            break
        asked = batches.order(
            s.seed, "rl", len(run.prompts.problems), cursor, s.batch.prompts_per_step
        )
        cursor += len(asked)
        more, graded, seconds = collect(
            run, dispatch(run, programs, phi, step, bucket, asked), asked, step
        )
        more_PM = more.reward_B.reshape(-1, M)
        useful = [p for p in range(len(asked)) if more_PM[p].min() != more_PM[p].max()]
        for old, new in zip(equal, useful):
            put(rollouts, old, more, new, M)
        rounds.append((asked, graded))
        grading += seconds
    return cursor, rounds, grading


def put(rollouts: Rollouts, old: int, more: Rollouts, new: int, M: int) -> None:
    """Group `new` of one batch in the place of group `old` of another, in host memory."""
    for leaf, other in zip(jax.tree.leaves(rollouts), jax.tree.leaves(more)):
        if leaf.ndim:
            rows = leaf.shape[0] // (rollouts.reward_B.shape[0] // M)
            leaf[old * rows : (old + 1) * rows] = other[new * rows : (new + 1) * rows]


def sampled_tokens(run: Run, written: list[tuple]) -> dict[str, float]:
    """What sampling took: prompts, each computed once, and completions; of all actors and rounds."""
    prompts = sum(len(run.prompts.tokens[i]) for _, indices, _ in written for i in indices)
    generated = sum(
        int(part.samples.seqs.length_B.sum()) for _, _, graded in written for part in graded
    )
    return (
        {"budget/prefilled_tokens": float(prompts), "budget/generated_tokens": float(generated)}
        if written
        else {}
    )


def transcript(run: Run, actor: str, indices, graded: list[evaluate.Graded]) -> list[dict]:
    """The step's samples as rows of rollouts/step_*.jsonl."""
    rows, M = [], run.settings.batch.samples_per_prompt
    for part in graded:
        seqs = part.samples.seqs
        for b, (text, outcome) in enumerate(zip(part.texts, part.outcomes)):
            problem, length = run.prompts.problems[indices[len(rows) // M]], seqs.length_B[b]
            rows.append(
                {
                    "actor": actor,
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
