"""An expert for every prompt (2,000 for 200): what luffy, srft and hpt need to sample from as many
prompts as the others.

    python -m experiments.study --stages=paired

A variant is METHOD+all experts, at its tuned rates; those three were tuned on 200 prompts, so each
is run at both rates that were ever chosen for a method without an adapter, as METHOD+all
experts@RATE.
"""

from configs.sweeps import ladder

EVERY = {"task.demo_size": 2000}
PAIRED, RATES = ("luffy", "srft", "hpt"), (1e-4, 3e-4)


def get_sweep() -> dict:
    """2 methods at their tuned rates, and 3 at two rates each, x 4 seeds."""
    variants = {
        f"{name}+all experts": given | EVERY
        for name, given in ladder.settled("hybrid", "bridge").items()
    }
    variants |= {
        f"{name}+all experts@{rate:g}": ladder.at_rate(name, rate, **EVERY)
        for rate in RATES
        for name in PAIRED
    }
    return dict(config="configs/ladder.py", set=ladder.common(), variants=variants, seeds=range(4))
