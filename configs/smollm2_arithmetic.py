"""SmolLM2-135M-Instruct on chains of small sums: the whole pipeline with a real pretrained model.

    python -m experiments.get_smollm2 --out=models_local/smollm2
    python -m experiments.train --config=configs/smollm2_arithmetic.py:bridge --workdir=runs/smollm2

Hardware: two CPU cores, 11 GB; about 80 s per step for bridge, 40 to 75 minutes in total. Results:
docs/smollm2.md. With METHOD,TASK as the argument it trains the same model on another task, with
longer prompts and completions.
"""

from ml_collections import ConfigDict

from configs import base, tasks


def get_config(method: str = "bridge") -> ConfigDict:
    """30 steps of 8 prompts x 8 samples and 8 demonstrations."""
    method, task = tasks.choose(method)
    config = base.get_config(method)
    config.steps = 30
    config.model.path = "models_local/smollm2"
    config.model.remat = "dots"
    config.optim.base.learning_rate = 2e-5
    config.optim.lora.learning_rate = 2e-4
    # one worked example: without it the base model hardly ever uses the box, and no sample is right
    config.task.update(
        dict(
            levels=(1, 2, 3),
            weights=(2.0, 1.0, 1.0),
            style="chat",
            system="You are a helpful assistant.",
            shots=1,
            train_size=400,
            demo_size=200,
            eval_size=120,
        )
    )
    config.data.buckets = (112,)
    config.rollout.update(dict(max_new=32, calls=2))
    if task:
        config.task = tasks.group(task)
        config.data.buckets = (128, 512)
        config.rollout.max_new = 512
    config.batch.update(
        dict(prompts_per_step=8, samples_per_prompt=8, demos_per_step=8, microbatch_rows=32)
    )
    config.eval.update(dict(every=10, rows=60))
    config.checkpoint.every = 10
    return base.fit_to_steps(config)
