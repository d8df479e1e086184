"""SmolLM2-135M on problems of your own, with answers that mathematics can compare.

    python -m experiments.get_smollm2 --out=models_local/smollm2
    python -m experiments.train --config=configs/own_data.py:sft --workdir=runs/own --config.task.data_dir=DIR

DIR/train/limr.jsonl holds the problems to train on, DIR/benchmarks/math500.jsonl those that judge
the run: docs/data.md shows the rows. The tasks limr and math500 read them in place of their own.
"""

from ml_collections import ConfigDict

from configs import smollm2_arithmetic, tasks


def get_config(method: str = "bridge") -> ConfigDict:
    """The settings of the SmolLM2 example, with room for longer texts."""
    tasks.refuse(method)
    config = smollm2_arithmetic.get_config(method)
    config.task = tasks.group("limr")
    # rows other than those that the two tasks declare
    config.task.update(dict(data_dir="own", allow_changed_data=True, held_out=("math500",)))
    # tokens of the longest prompt, and of the longest answer
    config.data.buckets = (256,)
    config.rollout.max_new = 256
    return config
