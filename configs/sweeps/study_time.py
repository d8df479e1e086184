"""The study's comparison at equal time: each method for the processor time of bridge's 100 steps.

    python -m experiments.study --stages=time

A variant is METHOD+equal time. bridge itself is in the main sweep.
"""

from configs.sweeps import ladder

# by the main table on B
LONGER = {
    "sft": 17.0,
    "grpo": 2.0,
    "cold_start": 1.8,
    "alternate": 1.8,
    "hybrid": 1.85,
    "joint": 1.75,
}


def get_sweep() -> dict:
    """6 methods x 8 seeds."""
    variants = {
        f"{name}+equal time": ladder.at_tuned(name, **ladder.scaled(name, factor))
        for name, factor in LONGER.items()
    }
    return dict(config="configs/ladder.py", set=ladder.common(), variants=variants, seeds=range(8))
