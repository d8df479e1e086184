"""Learning rates of every method, by the same grid and two seeds, judged on the dev split (experiments.study reads them off).

    python -m experiments.sweep --sweep=configs/sweeps/study_tune.py --workdir=runs/study --results=docs/study/results.jsonl
"""
from configs.sweeps import ladder


def get_sweep() -> dict:
    """Methods x rates x 2 seeds that the main sweep does not use; a variant is METHOD@RATE."""
    variants = {f"{name}@{rate:g}": ladder.at_rate(name, rate) for name in ladder.METHODS for rate in ladder.RATES}
    return dict(config="configs/ladder.py", set=ladder.common(), variants=variants, seeds=(100, 101))
