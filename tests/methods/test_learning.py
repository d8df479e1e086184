"""Every method learns: greedy held-out accuracy on one-digit sums of three terms rises, from one
base model, by its defaults.

The base is made as experiments.pretrain makes one, in under a minute. A share of its demonstrations
blurts out the first partial result, which is always wrong, so it knows the steps and mostly does
not take them: 20 steps of rewards or of demos show which way pays. A method passes if accuracy
rises by more than three standard errors of the difference,

    after - before > 3 sqrt(stderr_before^2 + stderr_after^2),

errors as of scores.binomial_error. Both are of the same questions, so this errs on the strict side.
A method file that is new is picked up by itself; one whose Config counts steps needs them in
`small`.
"""

from __future__ import annotations

import math

import jax
import pytest

from bridge_jax import methods
from bridge_jax.rundir import logbook
from bridge_jax.tasks import arithmetic
from bridge_jax.training import programs, trainer
from configs import ladder
from experiments import pretrain

pytestmark = pytest.mark.slow
STEPS, RATE, BASE_STEPS = 20, 3e-4, 300
QUICKER = {
    "xla_backend_optimization_level": 1,
    "xla_cpu_use_fusion_emitters": False,
}  # to run; conftest's are quicker to compile


def small(method: str):
    """The study's config on one-digit sums, a fifth as long, with half its prompts."""
    c = ladder.get_config(method)
    c.task.update(dict(levels=(3,), weights=(), eval_size=200, dev_size=0))
    c.data.buckets = (8,)
    c.rollout.max_new = (
        24  # the longest solution has 19; dapo puts a price on what is above four fifths
    )
    c.eval.update(dict(rows=200, samples=0))
    c.log.rollouts_every = 0
    if method == "base":
        c.steps = c.eval.every = BASE_STEPS
        c.task.update(dict(direct=0.55, demo_size=2000))
        c.batch.update(dict(demos_per_step=64, microbatch_rows=64))
        c.optim.base.update(dict(warmup_steps=20, decay_steps=BASE_STEPS - 20))
        return c
    c.steps = c.eval.every = c.method.chord.mu_schedule.steps = STEPS
    c.method.cold_start.sft_steps = STEPS * 3 // 4
    c.batch.update(dict(prompts_per_step=16, demos_per_step=16, microbatch_rows=128))
    for recipe in (c.optim.base, c.optim.lora):
        recipe.update(dict(learning_rate=RATE, schedule="constant", warmup_steps=0, decay_steps=0))
    return c


def hasty(solution: str, style: str) -> str:
    """The first partial result for an answer: 1+2=3;3+4=7;#7 becomes #3."""
    return "#" + solution.split(";")[0].partition("=")[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of the base model."""
    out = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "without_steps", hasty)
        patch.setattr(programs, "compiler_options", lambda emitters=False: QUICKER)
        pretrain.pretrain(small("base"), out, jax.devices()[:1])
    return out / "model"


def rise(
    workdir, base, method: str, reward_noise: float = 0.0, beta: float = 10 * RATE, **fields
) -> float:
    """By how many standard errors of the difference greedy accuracy rises in a run of the method,
    its config's fields set.
    """
    c = small(method)
    c.optim.lora.learning_rate = beta
    c.model.path = str(base)
    c.rollout.reward_noise = reward_noise
    flat = {key.replace("__", "."): value for key, value in fields.items()}
    c.method[method].update_from_flattened_dict(flat)
    trainer.train(c, str(workdir), devices=jax.devices()[:1])
    before, after = (
        line for line in logbook.read(str(workdir)) if "eval/held_out_accuracy" in line
    )
    difference = after["eval/held_out_accuracy"] - before["eval/held_out_accuracy"]
    errors = difference / math.hypot(before["eval/held_out_stderr"], after["eval/held_out_stderr"])
    print(
        f"{method} {fields}: {before['eval/held_out_accuracy']:.3f} to {after['eval/held_out_accuracy']:.3f}, {errors:.1f} errors"
    )
    return errors


@pytest.mark.parametrize("method", methods.names())
def test_learns(base, tmp_path, method):
    """Held-out accuracy rises by more than three standard errors, whatever the method."""
    assert rise(tmp_path, base, method) > 3


VARIANTS = {
    "chord": [dict(weighting="phi", mu=0.1, mu_schedule__kind="constant")],
    "bridge": [
        dict(variant__w_learns="gain"),
        dict(variant__resync_every=5),
        dict(variant__inner_steps=3),
        dict(variant__shadow_rollouts="own"),
        dict(shadow__storage="difference", shadow__moments="bfloat16"),
        dict(shadow__moments="factored"),
        dict(lam_schedule__kind="gain", lam=0.3, lam_schedule__end=0.7),
        dict(lam=1.0),
    ],
}


@pytest.mark.parametrize(
    "method, fields", [(name, fields) for name, all in VARIANTS.items() for fields in all], ids=str
)
def test_variants_learn(base, tmp_path, method, fields):
    """What a method's config makes of it, with beta = alpha: ten times that, the gain alone ruins a
    policy (docs/study_appendix.md, 9). lam = 1 is BRIDGE by rewards alone.
    """
    assert rise(tmp_path, base, method, beta=RATE, **fields) > 3


def test_flipped_rewards_teach_nothing(base, tmp_path):
    """The same criterion can fail: grpo with every reward turned round."""
    assert rise(tmp_path, base, "grpo", reward_noise=1.0) < 3
