"""Measure what method.bridge.shadow.share costs: `python -m experiments.study.gradient_noise`.

Runs bridge on the ladder (configs/ladder.py, from the base model that the repository ships, at its
tuned rates) and stops at some steps. There it draws several batches from theta and computes the
gradient of every group of samples at theta and at theta_hat. From these follow, for each part of
each division, theta_hat's gradient and the gain's gradient for w, each beside that of all samples:

    cosine     mean over parts and batches
    bias       |mean over all parts - whole| / |whole|, mean over batches
    variance   E|part - whole|^2 over the variance of `whole` from batch to batch: what the part
               adds to it, in multiples of it

`paired`: w's RL term is of theta_hat's part (the setting); `unpaired`: of all samples. `own count`:
divided by the part's own tokens rather than by the batch's times the share. One line of JSON for
each step and estimate goes to --out; the table is printed as Markdown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.flatten_util import ravel_pytree

from bridge_jax import objectives
from bridge_jax.evaluation import markdown
from bridge_jax.filesystem import files
from bridge_jax.training import build, loop
from bridge_jax.training.build import Setup
from bridge_jax.training.programs import compile_programs
from bridge_jax.training.rollouts import StepSampler, on_mesh
from bridge_jax.types import Batch, Params, Rollouts, TrainState
from configs import ladder
from configs.sweeps import ladder as sweeps
from experiments.cli import check_output, define_path, log_to_stderr, run_command

FRESH = 100_000  # no step of the run has this number: the batches are new samples


class Groups(NamedTuple):
    """Gradients of J_RL by group of samples, each divided by the tokens of the batch."""

    tokens_P: np.ndarray
    theta_w: np.ndarray  # [P, ...] at theta, in w
    hat_w: np.ndarray  # [P, ...] at theta_hat, in w
    hat: np.ndarray  # [P, ...] at theta_hat, in theta_hat


def estimates(groups: Groups, n: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, whole gradient, those of n parts [n, ...]); part k: the groups k, k + n, ..."""
    parts = lambda x: np.stack([n * x[k::n].sum(0) for k in range(n)])
    hat, hat_w, theta_w = map(parts, (groups.hat, groups.hat_w, groups.theta_w))
    # a part's own tokens instead of the n-th part of all
    own = groups.tokens_P.sum() / parts(groups.tokens_P.astype(np.float64))[:, None]
    whole_w = groups.theta_w.sum(0) - groups.hat_w.sum(0)
    yield "theta_hat", groups.hat.sum(0), hat
    yield "theta_hat, own count", groups.hat.sum(0), own * hat
    yield "gain, paired", whole_w, theta_w - hat_w
    yield "gain, paired, own count", whole_w, own * (theta_w - hat_w)
    yield "gain, unpaired", whole_w, groups.theta_w.sum(0) - hat_w


def summary(found: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """cosine, bias and variance (the module's docstring) from (whole, parts) of each batch."""
    norm = lambda x: np.linalg.norm(x, axis=-1)
    cosines = [(parts @ whole) / (norm(parts) * norm(whole) + 1e-30) for whole, parts in found]
    biases = [norm(parts.mean(0) - whole) / (norm(whole) + 1e-30) for whole, parts in found]
    added = np.mean([np.mean(norm(parts - whole) ** 2) for whole, parts in found])
    wholes = np.stack([whole for whole, _ in found])
    own = np.sum(wholes.var(axis=0, ddof=1))
    return {
        "cosine": float(np.mean(cosines)),
        "bias": float(np.mean(biases)),
        "variance": float(added / own),
    }


def gradients(setup: Setup):
    """(Params, Rollouts) -> Groups, compiled; one group of samples after the other."""
    policy, M = setup.policy, setup.settings.batch.samples_per_prompt

    def by_group(J, phi, seqs, rows, w):
        def one(carry, seqs, rows):
            (_, aux), G = jax.value_and_grad(J, has_aux=True)(phi, seqs, rows)
            return carry, aux | {"w_1N": flat(policy.pull(w, G)), "G_1N": flat(G)}

        flat = lambda tree: jnp.broadcast_to(ravel_pytree(tree)[0], (M, sum_of(tree)))
        count = seqs.length_B.shape[0] // M
        split = objectives.micro_split(seqs, rows, count)
        return jax.lax.scan(lambda carry, micro: one(carry, *micro), 0, split)[1]

    def compute(params: Params, samples: Rollouts):
        J = objectives.J_RL(policy, samples, objectives.surrogate)
        rows = objectives.rl_rows(policy, None, samples, "group", 0.0, 0)
        at_theta = by_group(J, policy.merge(params.theta, params.w), samples.seqs, rows, params.w)
        # the groups in the order of the batch: one micro-batch each
        behaviour_BT = objectives.micro_join(at_theta["logp_BT"], samples.seqs.prompt_PS.shape[0])
        phi_hat = policy.merge(params.theta_hat, params.w)
        rows |= {"behaviour_BT": behaviour_BT}
        at_hat = by_group(J, phi_hat, samples.seqs, rows, params.w)
        tokens_P = samples.seqs.length_B.reshape(-1, M).sum(1)
        return Groups(tokens_P, at_theta["w_1N"][:, 0], at_hat["w_1N"][:, 0], at_hat["G_1N"][:, 0])

    return jax.jit(compute)


def sum_of(tree) -> int:
    """Number of entries of a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def trained(sampler: StepSampler, steps: list[int]) -> Iterator[tuple[int, TrainState]]:
    """(step, the state after it) of a run, at these steps."""
    setup = sampler.setup
    key = jax.random.fold_in(jax.random.key(setup.settings.seed), 1)
    state, cursors = setup.method.init(build.initial_theta(setup), key), {"rl": 0, "sft": 0}
    for step in range(max(steps)):
        rows = sampler.rows(step, cursors)
        sampled = sampler.collect(state.params, rows, sampler.start(state.params, rows))
        state, _ = loop.update(sampler, state, rows, Batch(rows.demos, sampled.rollouts))
        cursors = {"rl": sampled.prompt_cursor, "sft": rows.demo_cursor}
        if step + 1 in steps:
            yield step + 1, state


def batches(sampler: StepSampler, state: TrainState, count: int) -> Iterator[Rollouts]:
    """Fresh batches of theta's samples, of other prompts each."""
    for i in range(count):
        cursors = {"rl": i * sampler.setup.settings.batch.prompts_per_step, "sft": 0}
        rows = sampler.rows(FRESH + i, cursors)
        sampled = sampler.collect(state.params, rows, sampler.start(state.params, rows))
        yield on_mesh(sampler.setup.mesh, sampled.rollouts["theta"])


def ladder_sampler(seed: int) -> StepSampler:
    """The programs of bridge on the ladder, at its tuned rates."""
    config = ladder.get_config("bridge")
    given = {key: value for key, value in sweeps.at_tuned("bridge").items() if key != "method"}
    config.update_from_flattened_dict(given)
    config.seed = seed
    setup, data = build.build(config, jax.devices()[:1])
    return StepSampler(setup, data, compile_programs(setup, build.abstract_state(setup)), None)


def measure(steps: list[int], parts: list[int], count: int, seed: int) -> Iterator[dict]:
    """A line for each step, number of parts and estimate."""
    sampler = ladder_sampler(seed)
    of_samples = gradients(sampler.setup)
    for step, state in trained(sampler, steps):
        groups = [
            jax.tree.map(np.asarray, of_samples(state.params, samples))
            for samples in batches(sampler, state, count)
        ]
        for n in parts:
            found: dict[str, list] = {}
            for one in groups:
                for name, *pair in estimates(one, n):
                    found.setdefault(name, []).append(tuple(pair))
            for name, pairs in found.items():
                line = {"step": step, "seed": seed, "share": 1 / n, "estimate": name}
                yield line | {"batches": count} | summary(pairs)


def table(lines: list[dict]) -> str:
    """The lines as a Markdown table."""
    head = ("step", "share", "estimate", "cosine", "bias", "added variance")
    order = lambda line: (line["step"], line["estimate"], -line["share"])
    numbers = lambda line: [f"{line[key]:.3f}" for key in ("cosine", "bias", "variance")]
    return markdown.grid(
        head,
        [
            [str(line["step"]), f"{line['share']:g}", line["estimate"], *numbers(line)]
            for line in sorted(lines, key=order)
        ],
    )


def main(argv: list[str]) -> None:
    """Measure, append, print."""
    given, lines = flags.FLAGS, []
    log_to_stderr()
    whole = lambda values: [int(value) for value in values]
    for line in measure(whole(given.steps), whole(given.parts), given.batches, given.seed):
        lines.append(line)
        if given.out:
            files.append(given.out, json.dumps(line) + "\n")
    print(table(lines))
    check_output()


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_list("steps", ["10", "30"], "steps of the run after which it is measured")
    flags.DEFINE_list("parts", ["2", "4", "8"], "numbers of parts: 4 for a share of 0.25")
    flags.DEFINE_integer("batches", 8, "batches of fresh samples at each step", lower_bound=2)
    flags.DEFINE_integer("seed", 0, "the run's seed", lower_bound=0)
    define_path("out", "", "a file to which each line of JSON is appended")


if __name__ == "__main__":
    define_flags()
    run_command(main)
