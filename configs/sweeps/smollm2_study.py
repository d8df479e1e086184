"""The smaller study on a real pretrained model, SmolLM2-135M-Instruct: five methods, two seeds.

    python -m experiments.get_smollm2 --out=models_local/smollm2
    python -m experiments.sweep --sweep=configs/sweeps/smollm2_study.py \\
        --workdir=runs/smollm2_study --results=docs/study/results/smollm2.jsonl
    python -m experiments.report --runs='runs/smollm2_study/*' --out=runs/smollm2_study.html
    python -m experiments.study --stages=     # its tables and picture in docs/study.md

Each run has 20 generating steps. On two CPU cores, one run at a time, it takes 11 GB and three to
four hours. The base model solves 27% of the task greedily (docs/smollm2.md). All methods have one
learning rate; sft also has the 5e-5 of a strong recipe. beta = alpha, as in the paper and in the
ladder's tuning; bridge also has ten times that. Warm-up over a tenth, then a cosine to 0, as in the
ladder's study.
"""

from configs.sweeps import ladder

ROLLOUTS, ALPHA = 20, 2e-5


def get_sweep() -> dict:
    """7 variants x 2 seeds."""
    lengths = {
        "sft": {},
        "grpo": {},
        "cold_start": {"method.cold_start.sft_steps": ROLLOUTS, "steps": 2 * ROLLOUTS},
        "alternate": {"steps": 2 * ROLLOUTS},
        "bridge": {},
    }
    variants = {
        name: ladder.annealed(
            {"method": name, "steps": ROLLOUTS} | given | {"optim.base.learning_rate": ALPHA}
        )
        for name, given in lengths.items()
    }
    # an evaluation takes as long as three steps of grpo: at the start, half-way, at the end
    for variant in variants.values():
        variant["eval.every"] = variant["steps"] // 2
    variants["bridge"] |= {"optim.lora.learning_rate": ALPHA, "optim.lora.schedule": "cosine"}
    variants["sft_5e-5"] = variants["sft"] | {"optim.base.learning_rate": 5e-5}
    variants["bridge_10"] = variants["bridge"] | {"optim.lora.learning_rate": 10 * ALPHA}
    common = {"optim.base.schedule": "cosine", "eval.measured_gain": True, "eval.samples": 2}
    return dict(config="configs/smollm2_arithmetic.py", set=common, variants=variants, seeds=(0, 1))
