"""The study in ten minutes: the main methods at the config's learning rate, two seeds, half the steps.

    python -m experiments.study --quick

It shows how, it proves nothing.
"""
from configs.sweeps import ladder


def get_sweep() -> dict:
    """6 methods x 2 seeds."""
    variants = {name: ladder.at_rate(name, ladder.ALPHA, **ladder.scaled(name, 0.5)) for name in ladder.MAIN}
    return dict(config="configs/ladder.py", set=ladder.common(), variants=variants, seeds=(0, 1))
