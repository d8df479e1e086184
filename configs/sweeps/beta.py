"""The adapter's learning rate: beta from .1 to 1,000 times alpha.

    python -m experiments.sweep --sweep=configs/sweeps/beta.py --workdir=runs/beta --jobs=2

For BRIDGE, for the variant whose w ascends the gain alone, and for joint, which has no theta_hat.
The paper gives w the learning rate of theta, 5e-7, at which an adapter hardly moves. beta = 0 is
hybrid, which is included.
"""

from configs.sweeps import ladder


def get_sweep() -> dict:
    """Five ratios beta / alpha x 3 methods x 4 seeds, and hybrid."""
    variants = {}
    for name, given in ladder.settled("bridge", "bridge_gain_only", "joint").items():
        alpha = given.get("optim.base.learning_rate", ladder.ALPHA)
        variants |= {
            f"{name}@{ratio:g}": given | {"optim.lora.learning_rate": float(f"{ratio * alpha:.3g}")}
            for ratio in (0.1, 1, 10, 100, 1000)
        }
    return dict(
        config="configs/ladder.py",
        set=ladder.common(),
        variants=variants | ladder.settled("hybrid"),
        seeds=range(4),
    )
