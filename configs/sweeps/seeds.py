"""The spread over seeds: RL alone, the fixed mixture and BRIDGE on 16 seeds each.

python -m experiments.sweep --sweep=configs/sweeps/seeds.py --workdir=runs/seeds --jobs=2
"""

from configs.sweeps import ladder


def get_sweep() -> dict:
    """3 methods x 16 seeds."""
    return dict(
        config="configs/ladder.py",
        set=ladder.common(),
        variants=ladder.settled("grpo", "hybrid", "bridge"),
        seeds=range(16),
    )
