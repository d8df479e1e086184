"""The paper's ablation of the adapter: rank x alpha. The paper uses 16 and 16.

python -m experiments.sweep --sweep=configs/sweeps/lora.py --workdir=runs/lora --jobs=2
"""

from configs.sweeps import ladder


def get_sweep() -> dict:
    """Three ranks x three alphas x 4 seeds; rank 16 with alpha 16 is the middle."""
    return dict(
        config="configs/ladder.py",
        set=ladder.common(),
        variants=ladder.settled("bridge"),
        seeds=range(4),
        grid={"model.lora_rank": (4, 16, 64), "model.lora_alpha": (8.0, 16.0, 32.0)},
    )
