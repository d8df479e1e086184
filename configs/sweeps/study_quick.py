"""The study in ten minutes: the main methods at the config's rate, two seeds, 40% of the steps.

    python -m experiments.study --quick

It demonstrates the procedure and proves nothing. It has its own base model, made on all cores,
which is faster; it is not the base model of the study.
"""

from configs.sweeps import ladder


def get_sweep() -> dict:
    """6 methods x 2 seeds."""
    variants = {
        name: ladder.at_rate(name, ladder.ALPHA, **ladder.scaled(name, 0.4)) for name in ladder.MAIN
    }
    common = ladder.common(**{"model.path": "runs/study_quick/base/model"})
    return dict(config="configs/ladder.py", set=common, variants=variants, seeds=(0, 1))
