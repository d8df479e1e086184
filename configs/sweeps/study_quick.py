"""The study in ten minutes: the main methods at the config's rate, two seeds, 40% of the steps.

    python -m experiments.study --quick

It demonstrates the procedure and proves nothing.
"""

from configs.sweeps import ladder


def get_sweep() -> dict:
    """6 methods x 2 seeds."""
    variants = {
        name: ladder.at_rate(name, ladder.ALPHA, **ladder.scaled(name, 0.4)) for name in ladder.MAIN
    }
    return dict(config="configs/ladder.py", set=ladder.common(), variants=variants, seeds=(0, 1))
