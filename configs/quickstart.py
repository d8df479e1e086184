"""The quickstart's runs: any method from the shipped base model, fitted to a minute on one core.

    python -m experiments.quickstart                  # sft, grpo, hybrid and bridge, a table, a
    picture python -m experiments.train --config=configs/quickstart.py:chord --workdir=runs/chord

The model and task of the study (configs/ladder.py) with fewer steps and larger learning rates. With
METHOD,TASK as the argument it trains the same model on another task, whose texts may have digits
and +-=;# alone, such as a file of one's own (docs/data.md).
"""

from ml_collections import ConfigDict

from configs import base, ladder, tasks

STEPS = 50


def get_config(method: str = "bridge") -> ConfigDict:
    """Sums of three two-digit numbers from a base model that solves a third of them."""
    method, task = tasks.choose(method)
    config = ladder.get_config(method)
    config.steps = STEPS
    for recipe in (config.optim.base, config.optim.lora):
        recipe.update(dict(learning_rate=5e-4, warmup_steps=5, decay_steps=STEPS - 5))
    config.eval.update(dict(every=10, rows=256, samples=2))
    config.log.rollouts_every = 10
    if task:
        config.task = tasks.group(task)
        config.data.update(dict(tokenizer="", buckets=(32,)))
        config.rollout.max_new = 32
        config.batch.update(
            dict(prompts_per_step=8, samples_per_prompt=8, demos_per_step=8, microbatch_rows=32)
        )
    return base.fit_to_steps(config)
