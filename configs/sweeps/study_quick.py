"""The study in ten minutes: the main methods at the config's learning rate, two seeds, half the steps.

    python -m experiments.study --quick

It shows how, it proves nothing.
"""
from configs.sweeps import ladder


def get_sweep() -> dict:
    """6 methods x 2 seeds."""
    half = lambda given: {"steps": given.get("steps", ladder.ROLLOUTS) // 2} | {
        key: given[key] // 2 for key in ("method.sft_steps",) if key in given}
    variants = {name: ladder.at_rate(name, ladder.ALPHA, **half(ladder.METHODS[name])) for name in ladder.MAIN}
    return dict(config="configs/ladder.py", set=ladder.common(), variants=variants, seeds=(0, 1))
