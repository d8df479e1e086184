"""Wrong demonstrations: a share of them has one wrong step and so a wrong answer.

python -m experiments.sweep --sweep=configs/sweeps/expert_quality.py --workdir=runs/expert_quality
--jobs=2
"""

from configs.sweeps import ladder


def get_sweep() -> dict:
    """None, 20% and 50% of the demonstrations wrong x 6 methods x 4 seeds."""
    return dict(
        config="configs/ladder.py",
        set=ladder.common(),
        variants=ladder.settled(*ladder.MAIN),
        grid={"task.corrupt": (0.0, 0.2, 0.5)},
        seeds=range(4),
    )
