"""The paper's comparison of methods, with related ones and controls: 20 variants x 8 seeds.

    python -m experiments.sweep --sweep=configs/sweeps/methods.py --workdir=runs/methods --jobs=2

Variants and rates are those of docs/study/tuned.json; without that file all variants run at the
config's rate.
"""

from configs.sweeps import ladder


def get_sweep() -> dict:
    """Every variant of the study on eight seeds."""
    variants = ladder.settled()
    matched = ladder.at_rate("hybrid", ladder.at_tuned("bridge")["optim.base.learning_rate"])
    if matched != variants.get("hybrid"):  # the control with BRIDGE's learning rate of theta
        variants["hybrid_matched"] = matched
    return dict(config="configs/ladder.py", set=ladder.common(), variants=variants, seeds=range(8))
