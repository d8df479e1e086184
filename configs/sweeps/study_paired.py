"""A demonstration for every prompt, 2,000 instead of 200.

    python -m experiments.study --stages=paired

luffy, srft and hpt need this to sample from as many prompts as the other methods. A variant is
METHOD+all experts, at its tuned rates. These three were tuned on 200 prompts, so each is run at
both rates that were ever chosen for a method without an adapter, as METHOD+all experts@RATE.
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
