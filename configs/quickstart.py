"""The quickstart's runs: any method from the shipped base model, fitted to a minute on one core.

    python -m experiments.quickstart                  # sft, grpo, hybrid and bridge, a table, a picture
    python -m experiments.train --config=configs/quickstart.py:chord --workdir=runs/chord

The model and task of the study (configs/ladder.py) with fewer steps and larger learning rates.
"""

from ml_collections import ConfigDict

from configs import base, ladder

STEPS = 50


def get_config(method: str = "bridge") -> ConfigDict:
    """Sums of three two-digit numbers from a base model that solves a third of them."""
    config = ladder.get_config(method)
    config.steps = STEPS
    for recipe in (config.optim.base, config.optim.lora):
        recipe.update(dict(learning_rate=5e-4, warmup_steps=5, decay_steps=STEPS - 5))
    config.eval.update(dict(every=10, rows=256, samples=2))
    config.log.rollouts_every = 10
    return base.fit_to_steps(config)
