"""The study's hard conditions: flipped rewards, wrong demonstrations, few demonstrations.

    python -m experiments.study --stages=conditions

Rewards are flipped with probability 0.2; 20% and 50% of the demonstrations are wrong; there are 16
instead of 200. A variant is METHOD+CONDITION. The learning rates are those tuned without these
conditions, as a user would have them.
"""

from configs.sweeps import ladder

CONDITIONS = {
    "corrupt 0.5": {"task.corrupt": 0.5},
    "16 experts": {"task.demo_size": 16},
    "noise 0.2": {"rollout.reward_noise": 0.2},
    "corrupt 0.2": {"task.corrupt": 0.2},
}


def get_sweep() -> dict:
    """4 conditions x 6 methods x 8 seeds, without what a method does not read."""
    variants = {}
    for condition, given in CONDITIONS.items():
        for name, own in ladder.settled(*ladder.MAIN).items():
            unread = name == "sft" if "rollout.reward_noise" in given else name == "grpo"
            variants |= {} if unread else {f"{name}+{condition}": own | given}
    return dict(config="configs/ladder.py", set=ladder.common(), variants=variants, seeds=range(8))
