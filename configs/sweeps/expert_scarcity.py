"""Number of demonstrations, from 16 to 2,000.

    python -m experiments.sweep --sweep=configs/sweeps/expert_scarcity.py
    --workdir=runs/expert_scarcity \\
        --jobs=2

16 are half of what a step reads, so that each is read twice in every step; with 2,000 each prompt
has one.
"""

from configs.sweeps import ladder


def get_sweep() -> dict:
    """Four sizes x 6 methods x 4 seeds."""
    return dict(
        config="configs/ladder.py",
        set=ladder.common(),
        variants=ladder.settled(*ladder.MAIN),
        grid={"task.demo_size": (16, 50, 200, 2000)},
        seeds=range(4),
    )
