"""Learning rates of every method: the same grid and two seeds, compared on the dev split.

    python -m experiments.study --stages=tune

experiments.study selects the rates.
"""

from configs.sweeps import ladder


def get_sweep() -> dict:
    """Methods x rates x 2 seeds that the main sweep does not use.

    A variant is METHOD@ALPHA, or METHOD@ALPHAxRATIO.
    """
    variants = {
        setting: ladder.at_rate(name, *rates)
        for name in ladder.METHODS
        for setting, rates in ladder.grid(name).items()
    }
    return dict(
        config="configs/ladder.py", set=ladder.common(), variants=variants, seeds=(100, 101)
    )
