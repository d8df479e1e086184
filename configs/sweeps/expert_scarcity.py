"""How many experts it takes: 16 (half of what a step reads: each twice in every step) to 2,000
(each prompt has one).

python -m experiments.pretrain --out=runs/study/base    # once: the base model that every run starts
from python -m experiments.sweep --sweep=configs/sweeps/expert_scarcity.py
--workdir=runs/expert_scarcity --jobs=2
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
