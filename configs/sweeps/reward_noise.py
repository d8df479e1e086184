"""The paper's test of robustness: each training reward is flipped with probability p.

    python -m experiments.sweep --sweep=configs/sweeps/reward_noise.py --workdir=runs/reward_noise
    \\
        --jobs=2

Rewards of evaluations are not flipped. Published at p = 0.2, Qwen2.5-3B: BRIDGE 32.9, RL 13.9
(arXiv 2509.06948 v3; not ours).
"""

from configs.sweeps import ladder


def get_sweep() -> dict:
    """Four probabilities x 5 methods x 4 seeds."""
    return dict(
        config="configs/ladder.py",
        set=ladder.common(),
        variants=ladder.settled(*ladder.MAIN_WITH_SAMPLES),
        grid={"rollout.reward_noise": (0.0, 0.1, 0.2, 0.4)},
        seeds=range(4),
    )
